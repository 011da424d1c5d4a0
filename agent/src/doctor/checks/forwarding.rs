//! The kernel forwards packets, and does not drop the answers.

use crate::doctor::facts::Facts;
use crate::doctor::{Finding, Severity};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    [ipv4(facts), ipv6(facts), reverse_path(facts), bridges(facts)].into_iter().flatten().collect()
}

fn ipv4(facts: &Facts) -> Option<Finding> {
    (facts.number("net/ipv4/ip_forward")? == 0).then(|| {
        Finding::new(
            Severity::Error,
            "net.ipv4.ip_forward",
            "it is 0: the node forwards no packets, so pods can't be reached through Services from elsewhere",
            "sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d",
        )
    })
}

fn ipv6(facts: &Facts) -> Option<Finding> {
    let off = facts.number("net/ipv6/conf/all/disable_ipv6") == Some(1);
    let wanted = facts.cluster_cidrs.iter().any(|range| range.addr().is_ipv6());
    (!off && facts.number("net/ipv6/conf/all/forwarding")? == 0).then(|| {
        Finding::new(
            if wanted { Severity::Error } else { Severity::Note },
            "net.ipv6.conf.all.forwarding",
            "it is 0: the node forwards no packets of IPv6",
            "in a cluster with IPv6: sysctl -w net.ipv6.conf.all.forwarding=1, and keep it in /etc/sysctl.d",
        )
    })
}

/// The kernel takes the higher of `all` and the interface's own.
fn reverse_path(facts: &Facts) -> Option<Finding> {
    let strict = ["all", "default"].iter().any(|of| facts.number(&format!("net/ipv4/conf/{of}/rp_filter")) == Some(1));
    strict.then(|| {
        Finding::new(
            Severity::Note,
            "net.ipv4.conf.*.rp_filter",
            "it is 1 (strict): packets are dropped if their answers would leave by another interface, as with several \
             uplinks or some CNI plug-ins",
            "where that applies: sysctl -w net.ipv4.conf.all.rp_filter=2 (loose)",
        )
    })
}

/// Two pods on one bridge: the answer goes back over the bridge, and is
/// translated back only if bridged packets pass the IP hooks.
fn bridges(facts: &Facts) -> Option<Finding> {
    let bridge = &facts.interfaces.iter().find(|interface| interface.is_bridge)?.name;
    (facts.number("net/bridge/bridge-nf-call-iptables") != Some(1)).then(|| {
        Finding::new(
            Severity::Warning,
            "net.bridge.bridge-nf-call-iptables",
            format!(
                "it is not 1, and this node has bridges ({bridge}): if pods are attached to one, a pod gets no usable \
                 answer through a Service from an endpoint on the same bridge"
            ),
            "if pods are on a bridge: modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 (and \
             bridge-nf-call-ip6tables)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Interface;

    fn node(settings: &[(&str, &str)]) -> Facts {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Facts { settings, ..Facts::default() }
    }

    fn subjects(facts: &Facts) -> Vec<(Severity, String)> {
        check(facts).into_iter().map(|finding| (finding.severity, finding.subject)).collect()
    }

    #[test]
    fn a_node_that_does_not_forward_serves_nobody_else() {
        let found = subjects(&node(&[("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/forwarding", "0")]));
        assert_eq!(found[0], (Severity::Error, "net.ipv4.ip_forward".to_owned()));
        assert_eq!(found[1], (Severity::Note, "net.ipv6.conf.all.forwarding".to_owned()));
        assert_eq!(found.len(), 2);
        let dual = Facts {
            cluster_cidrs: vec!["fd00::/48".parse().unwrap()],
            ..node(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "0")])
        };
        assert_eq!(subjects(&dual), [(Severity::Error, "net.ipv6.conf.all.forwarding".to_owned())]);
    }

    #[test]
    fn a_bridge_needs_the_ip_hooks() {
        let bridged = |value| Facts {
            interfaces: vec![Interface { name: "cni0".to_owned(), is_bridge: true }],
            ..node(&[("net/ipv4/ip_forward", "1"), ("net/bridge/bridge-nf-call-iptables", value)])
        };
        assert_eq!(subjects(&bridged("0")).len(), 1);
        assert_eq!(subjects(&bridged("1")), []);
    }

    #[test]
    fn what_cannot_be_read_is_no_finding() {
        assert_eq!(subjects(&node(&[])), []);
    }
}
