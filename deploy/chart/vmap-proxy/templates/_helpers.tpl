{{- define "vmap-proxy.labels" -}}
k8s-app: vmap-proxy
app.kubernetes.io/name: vmap-proxy
{{- end }}

{{- define "vmap-proxy.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- /* KubeProxyConfiguration: config, with what the chart knows better. */}}
{{- define "vmap-proxy.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if not $config.clusterCIDR }}{{ $_ := set $config "clusterCIDR" .Values.clusterCIDR }}{{ end }}
{{- $client := $config.clientConnection | default dict }}
{{- if not $client.kubeconfig }}{{ $_ := set $client "kubeconfig" "/var/lib/kube-proxy/kubeconfig.conf" }}{{ end }}
{{- $_ := set $config "clientConnection" $client -}}
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
{{ toYaml (omit $config "apiVersion" "kind") }}
{{- end }}

{{- define "vmap-proxy.kubeconfig" -}}
apiVersion: v1
kind: Config
clusters:
  - name: default
    cluster:
      certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
      server: {{ required "apiServer is empty: set it to the API server's own address, https://HOST:PORT" .Values.apiServer }}
contexts:
  - name: default
    context:
      cluster: default
      namespace: default
      user: default
current-context: default
users:
  - name: default
    user:
      tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
{{- end }}

{{- /* The port of a field such as healthzBindAddress: its argument is (list FIELD DEFAULT). "0" switches a server off. */}}
{{- define "vmap-proxy.port" -}}
{{- $address := index . 0 | default "" | toString -}}
{{- if eq $address "0" }}{{ else if regexMatch ":[0-9]+$" $address }}{{ regexFind "[0-9]+$" $address }}{{ else }}{{ index . 1 }}{{ end }}
{{- end }}

{{- define "vmap-proxy.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}

{{- define "vmap-proxy.args" -}}
- --config=/var/lib/kube-proxy/config.conf
- --hostname-override=$(NODE_NAME)
{{- end }}
