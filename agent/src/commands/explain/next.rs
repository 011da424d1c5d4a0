//! Where to look next, when a packet gets nowhere or a Service is not served.

use vmap_proxy_compiler::explain::answer::{Code, Decision, EndpointLeftOut, Explanation, Fate, ServiceAnswer};
use vmap_proxy_compiler::select::Unused;

use crate::query::kernel::KernelAnswer;

/// The next step for a packet; `None` if it reaches an endpoint.
pub(super) fn of_packet(answer: &Explanation) -> Option<String> {
    if matches!(answer.verdict, Fate::Dnat | Fate::Inconsistent) {
        return None;
    }
    let decisions = [&answer.decision].into_iter().chain(&answer.notes);
    of_decisions(decisions, answer.unused_count > 0)
}

/// The next step for a Service; `None` if it is served.
pub(super) fn of_service(answer: &ServiceAnswer) -> Option<String> {
    let refuses = |port: &&vmap_proxy_compiler::explain::answer::PortAnswer| {
        port.frontends.iter().any(|frontend| !frontend.state.serves())
    };
    let ports: Vec<_> = answer.ports.iter().filter(refuses).collect();
    let has_unused = ports.iter().any(|port| port.unused_count > 0);
    let decisions = answer.reasons.iter().chain(ports.iter().flat_map(|port| &port.notes));
    of_decisions(decisions, has_unused).or_else(|| {
        let is_unready = |one: &EndpointLeftOut| one.unused == Unused::NotReady;
        let is_any = ports.iter().any(|port| port.endpoint_count == 0 && port.unused.iter().any(is_unready));
        is_any.then(|| see_pods(&answer.namespace))
    })
}

/// The next step where the kernel alone answered; `None` if it has the rules of this
/// configuration.
pub(super) fn of_kernel(kernel: &KernelAnswer) -> Option<String> {
    if kernel.differences.is_empty() {
        return None;
    }
    Some(if kernel.table {
        "without an agent the kernel is compared with the rules that the flags of this command make: give the agent's \
         own, --config FILE (its KubeProxyConfiguration), or --cluster-cidr, --detect-local-mode, \
         --pod-bridge-interface, --pod-interface-name-prefix, --masquerade-all and --nodeport-addresses; until then it \
         is uncertain which source address an endpoint sees, and which addresses serve NodePorts"
            .to_owned()
    } else {
        "start the agent on this node, or run this command in the network namespace of the node".to_owned()
    })
}

/// The next step where another table may drop a packet that gets through ours.
pub(super) fn of_doubt(answer: &Explanation) -> Option<String> {
    (answer.verdict == Fate::Dnat).then(|| {
        format!(
            "if connections hang, vmap-proxy trace --address {} --from {} shows which rule drops them; accept them in that \
             chain (ct status dnat accept)",
            answer.packet.destination, answer.packet.source
        )
    })
}

fn see_pods(namespace: &str) -> String {
    format!(
        "see why the pods are not ready: kubectl -n {namespace} get pods -o wide, then kubectl -n {namespace} describe \
         pod POD (readiness probe, events)"
    )
}

/// The step for the first decision that has one.
fn of_decisions<'a>(decisions: impl Iterator<Item = &'a Decision> + Clone, has_unused: bool) -> Option<String> {
    let no_endpoint = decisions.clone().find(|decision| decision.code == Code::NoEndpoint);
    let of_slices = decisions.clone().filter(|decision| is_about_slices(decision.code));
    match no_endpoint {
        // The slices show why there is none.
        Some(decision) if !has_unused => of_slices.chain([decision]).find_map(step),
        _ => decisions.into_iter().find_map(step),
    }
}

fn is_about_slices(code: Code) -> bool {
    matches!(code, Code::NoSlice | Code::OtherPort | Code::EmptySlice)
}

fn step(decision: &Decision) -> Option<String> {
    let (namespace, name) = service_of(decision);
    let (namespace, name) = (shown(namespace, "NAMESPACE"), shown(name, "NAME"));
    let value = decision.causes.first().map(|cause| cause.value.as_str()).unwrap_or_default();
    Some(match decision.code {
        Code::NoEndpoint => see_pods(namespace),
        Code::OtherPort => format!(
            "compare targetPort of the Service with the ports of its pods' containers: kubectl -n {namespace} get \
             services,pods -o yaml"
        ),
        Code::EmptySlice => format!(
            "compare spec.selector of the Service with the labels of the pods: kubectl -n {namespace} get services -o \
             wide, kubectl -n {namespace} get pods --show-labels"
        ),
        Code::NoSlice => format!(
            "if Service {namespace}/{name} has a selector, see whether kube-controller-manager runs; without one, make an \
             EndpointSlice with the label kubernetes.io/service-name={name}"
        ),
        Code::NoLocalEndpoint => format!(
            "let a pod run on this node, send clients to nodes that have one (a load balancer learns that from \
             healthCheckNodePort), or set the policy of Service {namespace}/{name} to Cluster"
        ),
        Code::SourceRangesDeny => format!(
            "if this client may connect, add its address to spec.loadBalancerSourceRanges of Service {namespace}/{name}; \
             the address is the one that arrives here, behind any translation on the way"
        ),
        Code::UndefinedPort => {
            "use a port that the Service has: vmap-proxy get frontends, or add the port to it".to_owned()
        }
        Code::Unallocated => {
            "find out who still uses the address: kubectl get services -A -o wide lists those in use. A Service of \
             another proxy (label service.kubernetes.io/service-proxy-name) is not followed by the agent; a Service \
             that was deleted may be in an old answer of DNS"
                .to_owned()
        }
        Code::NotAFrontend => {
            "if a Service should have this address and port: vmap-proxy explain --to svc:NAMESPACE/NAME answers why it \
             is not programmed; kubectl get services -A --show-labels shows one that the agent does not follow \
             (label service.kubernetes.io/service-proxy-name)"
                .to_owned()
        }
        Code::NotANodePortAddress => {
            "use an address that serves NodePorts, or add this one to nodePortAddresses of the configuration".to_owned()
        }
        Code::Contested => "give one of the two Services another port or address".to_owned(),
        Code::OtherProxy => format!(
            "ask the proxy {value}, or remove the label from Service {namespace}/{name} to have it served here"
        ),
        Code::Headless => format!(
            "connect to the pods by the Service's name in DNS; if it should have an address, make it again without \
             clusterIP: None (kubectl -n {namespace} get service {name} -o yaml)"
        ),
        Code::ExternalName => "connect to the name in DNS; no proxy has a part in it".to_owned(),
        Code::NoClusterIp => format!("see the field: kubectl -n {namespace} get service {name} -o yaml"),
        Code::TooLarge => "make several Services of it, with fewer ports, addresses or endpoints each".to_owned(),
        Code::Quarantined => "the kernel's reason is in vmap-proxy journal; please report it".to_owned(),
        Code::NoService => {
            "see whether it exists: kubectl get services -A. The agent does not follow a headless one (clusterIP: None), \
             whose clients get the pods' addresses from DNS, nor one with the label \
             service.kubernetes.io/service-proxy-name, which belongs to another proxy"
                .to_owned()
        }
        Code::BadField => "correct the field".to_owned(),
        _ => return None,
    })
}

/// The first Service among the causes, or the Service of a slice's label, or only a
/// namespace.
fn service_of(decision: &Decision) -> (&str, &str) {
    let of_kind = |kind: &str| decision.causes.iter().find(|cause| cause.kind == kind);
    match (of_kind("Service"), of_kind("EndpointSlice")) {
        (Some(service), _) => (&service.namespace, &service.name),
        (None, Some(slice)) if slice.name.is_empty() => (&slice.namespace, &slice.value),
        (None, Some(slice)) => (&slice.namespace, ""),
        (None, None) => ("", ""),
    }
}

fn shown<'a>(text: &'a str, absent: &'a str) -> &'a str {
    if text.is_empty() { absent } else { text }
}
