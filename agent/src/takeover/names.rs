//! The names of kube-proxy's objects. The kubelet, CNIs and users share its
//! tables and its prefix.

/// The nftables table of kube-proxy's nftables mode, in both families.
pub(crate) const TABLE: &str = "kube-proxy";

/// The dummy device that holds the cluster IPs in ipvs mode.
pub(crate) const IPVS_DEVICE: &str = "kube-ipvs0";

/// The tables in which its iptables and ipvs modes have chains.
pub(crate) const IPTABLES_TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Its chains with fixed names (`pkg/proxy/iptables/proxier.go`,
/// `pkg/proxy/ipvs/proxier.go`, `pkg/proxy/ipvs/ipset.go`).
const CHAINS: [&str; 12] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // ipvs mode
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Its chains for one service port or one endpoint: the prefix and a hash.
const CHAIN_PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-"];

/// The ipsets of its ipvs mode; those of IPv6 have `KUBE-6-` in front.
const IPSETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The longest name of an ipset, without the terminating zero.
const MAX_IPSET_NAME: usize = 31;

/// Returns whether kube-proxy creates chains of this name and removes them
/// itself.
///
/// `KUBE-MARK-MASQ`, `KUBE-MARK-DROP`, `KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`
/// and `KUBE-IPTABLES-HINT` are, or were, the kubelet's: `kube-proxy --cleanup`
/// leaves them as well. They do nothing unless a rule jumps to them.
pub(crate) fn is_proxy_chain(name: &str) -> bool {
    CHAINS.contains(&name) || CHAIN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns whether kube-proxy creates ipsets of this name.
pub(crate) fn is_proxy_ipset(name: &str) -> bool {
    let matches = |prefix: &str| {
        let Some(rest) = name.strip_prefix(prefix) else { return false };
        // kube-proxy shortens names that are too long with the prefix of IPv6.
        IPSETS.iter().any(|set| rest == *set || (name.len() == MAX_IPSET_NAME && set.starts_with(rest)))
    };
    matches("KUBE-") || matches("KUBE-6-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_others_are_told_from_kube_proxys() {
        for ours in ["KUBE-SERVICES", "KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-SEP-A", "KUBE-PROXY-CANARY", "KUBE-NODE-PORT"]
        {
            assert!(is_proxy_chain(ours), "{ours}");
        }
        for others in [
            "KUBE-MARK-MASQ",
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-ROUTER-SERVICES",
            "KUBE-POD-FW-ABC",
            "KUBE-NWPLCY-DEFAULT",
            "KUBE-SERVICES-2",
            "CILIUM_FORWARD",
            "PREROUTING",
            "",
        ] {
            assert!(!is_proxy_chain(others), "{others}");
        }
    }

    #[test]
    fn ipsets_of_others_are_told_from_kube_proxys() {
        for ours in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-LOOP-BACK"] {
            assert!(is_proxy_ipset(ours), "{ours}");
        }
        for others in ["KUBE-DST-VBH27M7NWLDOZIE", "KUBE-", "KUBE-6-", "CLUSTER-IP", "cali40all-ipam-pools"] {
            assert!(!is_proxy_ipset(others), "{others}");
        }
    }
}
