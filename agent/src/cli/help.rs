//! Examples and exit statuses in the help of the subcommands.

/// Examples and exit status of `vmap-proxy explain`.
pub(super) const EXPLAIN_HELP: &str = "\
Sources (--from):
  198.51.100.7          an address
  pod:shop/web-0        a Pod that an EndpointSlice refers to, or that the files (--manifests) hold
  node                  this node itself
  outside               a client outside of the cluster

Destinations (--to):
  10.96.0.10:80         an address and a port; /UDP or /SCTP behind it, else TCP
  svc:shop/cart         the cluster IP of a Service and its first port
  svc:shop/cart:http    the same with the name or the number of a port
  pod:shop/web-0:8080   a Pod
  node:30080            this node's address, for NodePorts

Without --manifests the agent of this node is asked, over its Unix socket, and the kernel's elements are read and
compared with its answer. Without an agent the kernel alone answers.

Examples:
  Where does this pod's packet go on this node?
    vmap-proxy explain --from 10.244.1.5 --to svc:shop/cart
    kubectl -n kube-system exec POD -- /vmap-proxy explain --from 10.244.1.5 --to svc:shop/cart

  Why does a client outside not reach the load balancer?
    vmap-proxy explain --from outside --to 203.0.113.80:443 --manifests cluster/ --node-name node-1

  Which endpoints does this pod reach, with which chance?
    vmap-proxy explain --from pod:shop/web-0 --to svc:shop/cart --manifests cluster/ --node-name node-1

  Why is a Service not served?
    vmap-proxy explain --to svc:shop/cart --manifests cluster/ --node-name node-1

Exit status: 0 the packet reaches an endpoint (or every frontend of the Service serves), 1 failure, 2 wrong usage,
3 dropped or refused (or the Service is not served), 4 no frontend: the packet goes where it was sent to, 5 the kernel
differs from the agent.";

/// Examples and exit status of `vmap-proxy get`.
pub(super) const GET_HELP: &str = "\
Services, frontends and endpoints come from the agent, or from files. Connections come from the kernel's conntrack; the
comments of the kernel's elements name their Services, so that no agent is needed (long names are cut there). OPEN
connections go on; CLOSING ones (TCP: TIME_WAIT, CLOSE) are over and expire.

Examples:
  vmap-proxy get services
  vmap-proxy get frontends -n shop
  vmap-proxy get endpoints -n shop cart -o wide
  vmap-proxy get services --manifests cluster/ --node-name node-1 -o json

  How many connections does each endpoint of a Service have on this node?
    vmap-proxy get connections --service shop/cart

  Is an endpoint that is being drained still in use? Wait up to 5 minutes until it is not:
    vmap-proxy get connections --endpoint 10.244.1.7:8080 --wait --timeout 300

Exit status: 0 success, 1 failure (no agent, or no such Service), 2 wrong usage, 3 connections are open after the wait.";

/// Examples and exit status of `vmap-proxy status`.
pub(super) const STATUS_HELP: &str = "\
Examples:
  vmap-proxy status
  vmap-proxy status --watch
  vmap-proxy status --wait 60 && echo everything is programmed

Exit status: 0 everything is programmed, 1 failure (no agent), 2 wrong usage, 3 a change waits, the last sync failed, or
the kernel refused a Service or one is too large.";

/// Examples and exit status of `vmap-proxy verify`.
pub(super) const VERIFY_HELP: &str = "\
Every element is looked up and every rule compared. There are two digests: the one of the elements is this node's, the
one of the state is the same on every node of a cluster that knows the same Services and endpoints.

Examples:
  vmap-proxy verify
  vmap-proxy verify -o json

  In which Services do two nodes differ? On each:
    vmap-proxy verify --digests -o json | jq -r '.services[] | .name + \" \" + .digest' > $(hostname).txt

Exit status: 0 the kernel has exactly what the agent wants, 1 it differs, or failure (with a message on standard error),
2 wrong usage.";

/// Examples and exit status of `vmap-proxy doctor`.
pub(super) const DOCTOR_HELP: &str = "\
It examines the kernel (it loads the rules of every kind of Service in a network namespace of its own), the settings of
forwarding, bridges and connection tracking, the base chains of other tables, other programs that write rules, and whatever
kube-proxy left. It changes nothing, needs no agent, and names the remedy of each finding.

Examples:
  On a node, or in the agent's container:
    vmap-proxy doctor --config /var/lib/kube-proxy/config.conf

  For a script:
    vmap-proxy doctor -o json

Exit status: 0 nothing worse than a note, 1 an error was found (or a failure), 2 wrong usage, 3 a warning was found.";

/// Examples of `vmap-proxy completion`.
pub(super) const COMPLETION_HELP: &str = "\
Examples:
  vmap-proxy completion bash > /etc/bash_completion.d/vmap-proxy
  vmap-proxy completion zsh > \"${fpath[1]}/_vmap-proxy\"
  vmap-proxy completion fish > ~/.config/fish/completions/vmap-proxy.fish";

/// Examples and exit status of `vmap-proxy journal`.
pub(super) const JOURNAL_HELP: &str = "\
The agent keeps its last syncs in memory, up to 1 MiB: their time, the objects that caused them, the Services and
addresses that changed, their duration, and who changed the tables if it was a repair.

Examples:
  vmap-proxy journal --since 10m
  vmap-proxy journal --service shop/cart

  What happened to this address?
    vmap-proxy journal --address 10.96.0.10 -o json

Exit status: 0 success, 1 failure (no agent), 2 wrong usage, 3 nothing matches.";

/// Examples and exit status of `vmap-proxy version`.
pub(super) const VERSION_HELP: &str = "\
Examples:
  vmap-proxy version
  vmap-proxy version -o json

Exit status: 0 success, 1 failure, 2 wrong usage, 3 the agent of this node is of another version.";

/// Examples and exit status of `vmap-proxy plan`.
pub(super) const PLAN_HELP: &str = "\
The plan starts from the tables in the kernel of this node, as a restart of the agent does, or with --against from other
manifests. It is in words for each Service, in elements, and in the transactions in which they would be committed. How
long each keeps other writers of nftables waiting is predicted from the measured figures in docs/performance.md: the
machine there is meant, and a busy one takes longer.

Examples:
  What would change on this node with the objects of the cluster, by this version and this configuration?
    kubectl get services,endpointslices,servicecidrs,nodes -A -o yaml > state.yaml
    vmap-proxy plan --manifests state.yaml --config new.conf

  What does a change of manifests do on a node?
    vmap-proxy plan --manifests new/ --against old/ --node-name node-1

  What does another configuration do?
    vmap-proxy plan --manifests cluster/ --config new.conf --against cluster/ --against-config old.conf --node-name node-1

Exit status: 0 nothing would change, 1 failure, 2 wrong usage, 3 something would change.";

/// Examples and exit status of `vmap-proxy trace`.
pub(super) const TRACE_HELP: &str = "\
A table of its own (vmap-proxy-trace-PID, with the flag owner) marks the first packets of the connections that are asked
for, and nothing else. The kernel deletes it when this command ends, however it does. TCP is followed from the first
chain on, other protocols from priority -150 on. With -o json there is one object in each line.

Examples:
  Where do the next connections to a Service go?
    vmap-proxy trace --service shop/cart

  Why does this client not get through?
    vmap-proxy trace --address 10.96.0.10 --from 198.51.100.7 --duration 1m

  What reaches an endpoint?
    vmap-proxy trace --endpoint 10.244.1.7:8080 --count 5

Exit status: 0 success, 1 failure, 2 wrong usage, 3 no such packet came.";

/// Examples and exit status of `vmap-proxy check-migration`.
pub(super) const CHECK_MIGRATION_HELP: &str = "\
It reads the table of a running kube-proxy (nftables mode) on this node, or with --iptables-save its rules (iptables
mode), follows a packet to each frontend of either side through them, from a pod of this node, from this node and from
outside, and compares endpoints, verdict and masquerading with vmap-proxy's. The other side is the running agent, or
files. It changes nothing.

Examples:
  Before the change, with the objects of the cluster:
    kubectl get services,endpointslices,servicecidrs,nodes -A -o yaml > state.yaml
    vmap-proxy check-migration --manifests state.yaml --config /var/lib/kube-proxy/config.conf --node-name $(hostname)

  The same for kube-proxy in iptables mode:
    (iptables-save; ip6tables-save) > rules
    vmap-proxy check-migration --iptables-save rules --manifests state.yaml --node-name $(hostname)

  While both run:
    vmap-proxy check-migration -o json

Exit status: 0 the two do the same, 1 failure (no kube-proxy found), 2 wrong usage, 3 they differ.";
