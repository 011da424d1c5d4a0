//! The same cluster as rules of different shapes.

use std::fmt::Write;
use std::net::Ipv4Addr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use vmap_proxy_compiler::ruleset::chains::Chain;

use crate::scale::Failure;
use crate::scale::agent::Agent;
use crate::scale::workload::{Pods, Port, cluster_ip, names, node_manifest, parse, pod_ip};
use crate::scale::workload::{service_manifest, slice_manifests};

/// Endpoints of each Service.
pub const ENDPOINTS: u32 = 5;
/// All Services share this many pods, so that the pods' own namespace is the
/// same whatever the number of Services.
pub const PODS: u32 = 50;

/// Ports of the Services.
const PORTS: &[Port] = &[
    Port { name: "http", protocol: "TCP", port: 80, target: 8080 },
    Port { name: "dns", protocol: "UDP", port: 53, target: 5353 },
];
/// The TCP port.
pub const TCP: Port = PORTS[0];
/// The UDP port.
pub const UDP: Port = PORTS[1];

/// The ports of a Service: TCP and UDP in turn, and the first has both.
pub fn ports(service: u32) -> &'static [Port] {
    match service {
        0 => PORTS,
        odd if odd % 2 == 1 => &PORTS[1..],
        _ => &PORTS[..1],
    }
}

/// The rules on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Nothing: packets go straight to a pod, and connections aren't tracked.
    NoRules,
    /// One rule that translates one Service to one pod: the least that NAT in
    /// nf_tables costs. Loaded by `nft -f`.
    OneRule,
    /// Our maps, loaded by the agent.
    Maps,
    /// A chain with an anonymous map for each Service, as kube-proxy 1.36 has
    /// it, loaded by `nft -f`.
    ChainPerService,
}

impl Shape {
    /// Returns whether its figures depend on the number of Services.
    pub fn has_services(self) -> bool {
        matches!(self, Shape::Maps | Shape::ChainPerService)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Shape::NoRules => "no rules",
            Shape::OneRule => "one `dnat` rule",
            Shape::Maps => "vmap-proxy",
            Shape::ChainPerService => "chain per Service",
        }
    }
}

/// The pods of a Service: a few of the shared ones.
fn pods(service: u32) -> Pods {
    Pods { first: service * ENDPOINTS % PODS, count: ENDPOINTS, replaced: None }
}

/// The addresses of all pods.
pub fn pod_addresses() -> Vec<Ipv4Addr> {
    (0..PODS).map(pod_ip).collect()
}

/// Programs the Services through the agent's own path, in this thread's
/// namespace.
///
/// # Errors
/// If the kernel refuses anything.
pub fn load_maps(services: u32) -> Result<Agent, Failure> {
    let mut agent = Agent::start(&vmap_proxy_agent::netlink::families())?;
    agent.take(parse(&node_manifest())?)?;
    for service in 0..services {
        agent.take(parse(&service_manifest(service, ports(service)))?)?;
        for slice in slice_manifests(service, pods(service), ports(service)) {
            agent.take(parse(&slice)?)?;
        }
    }
    agent.sync()?;
    Ok(agent)
}

/// The first Service and its first pod as two rules with everything written
/// into them: one for packets from elsewhere, one for the node's own.
pub fn one_rule() -> String {
    let (ip, pod) = (cluster_ip(0), pod_ip(0));
    let mut text = String::from("table ip one-rule {\n");
    for (hook, chain) in [("prerouting", "from-elsewhere"), ("output", "from-the-node")] {
        // Writing to a String can't fail.
        let _ = writeln!(text, "  chain {chain} {{ type nat hook {hook} priority -100;");
        for Port { protocol, port, target, .. } in PORTS {
            let protocol = protocol.to_lowercase();
            let _ = writeln!(text, "    ip daddr {ip} {protocol} dport {port} dnat to {pod}:{target}");
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

/// The base chains of our table that a new connection may pass: nft text that
/// takes one out.
pub fn without(chain: Chain) -> String {
    format!("flush chain ip vmap-proxy {chain}\ndelete chain ip vmap-proxy {chain}\n")
}

/// The rules that every packet meets in kube-proxy 1.36
/// (`pkg/proxy/nftables/proxier.go`), for Services of type `ClusterIP` and
/// detection by cluster CIDR.
const SKELETON: &str = r#"
  set cluster-ips { type ipv4_addr; }
  set nodeport-ips { type ipv4_addr; }
  set hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  chain mark-for-masquerade { mark set mark or 0x4000; }
  chain reject-chain { reject; }
  chain masquerading {
    mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
    ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
  }
  chain services {
    ip daddr @cluster-ips ip saddr != 10.128.0.0/9 jump mark-for-masquerade
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain cluster-ips-check { ip daddr @cluster-ips reject; }
  chain filter-prerouting-pre-dnat {
    type filter hook prerouting priority -110; ct state new jump firewall-check; }
  chain filter-output-pre-dnat {
    type filter hook output priority -110; ct state new jump firewall-check; }
  chain filter-input { type filter hook input priority 0;
    ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }
  chain filter-forward { type filter hook forward priority 0;
    ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
  chain filter-output { type filter hook output priority 0;
    ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
"#;

/// The Services as nft text in the shape of kube-proxy: one chain, one rule and
/// one anonymous map for each service port.
pub fn chain_per_service(services: u32) -> String {
    let mut text = format!("table ip kube-proxy {{{SKELETON}");
    let (mut service_ips, mut cluster_ips) = (Vec::new(), Vec::new());
    for service in 0..services {
        let (namespace, name) = names(service);
        let ip = cluster_ip(service);
        cluster_ips.push(ip.to_string());
        for Port { name: port, protocol, port: number, target } in ports(service) {
            let protocol = protocol.to_lowercase();
            let chain = format!("service-{service:08X}-{namespace}/{name}/{protocol}/{port}");
            let Pods { first, count, .. } = pods(service);
            let targets: Vec<String> =
                (0..count).map(|slot| format!("{slot} : {} . {target}", pod_ip(first + slot))).collect();
            // Writing to a String can't fail.
            let _ = writeln!(
                text,
                "  chain {chain} {{ meta l4proto {protocol} dnat ip addr . port to numgen random mod {count} map {{ {} }}; }}",
                targets.join(", ")
            );
            service_ips.push(format!("{ip} . {protocol} . {number} : goto {chain}"));
        }
    }
    text.push_str("}\n");
    let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {} }}", cluster_ips.join(", "));
    let _ = writeln!(text, "add element ip kube-proxy service-ips {{ {} }}", service_ips.join(", "));
    text
}
