//! Whether NodePorts are served on localhost (Kubernetes 1.37, KEP-6032): the
//! feature gate, and the loopback ranges in `nodePortAddresses`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use vmap_proxy_compiler::model::{Family, PerFamily};

use super::Warning;
use super::kube_proxy_configuration::KubeProxyConfiguration;
use super::validate::LOCALHOST;

/// The feature gate, alpha and off by default, as in kube-proxy.
pub const GATE: &str = "KubeProxyNFTablesLocalhostNodePorts";

/// Kubernetes' gate for every alpha feature that has no value of its own.
const ALL_ALPHA: &str = "AllAlpha";

impl KubeProxyConfiguration {
    /// The families whose NodePorts are served on localhost: the gate is on, and
    /// `nodePortAddresses` names a loopback range of the family. As in kube-proxy,
    /// a range of length 0 (`all`) does not count.
    pub fn localhost_node_ports(&self) -> PerFamily<bool> {
        let is_on = gate_is_on(self);
        PerFamily::from_fn(|family| is_on && names_loopback(&self.node_port_addresses, family))
    }
}

/// Returns the address of a family on which NodePorts are served.
pub fn localhost(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn gate_is_on(configuration: &KubeProxyConfiguration) -> bool {
    let gates = &configuration.feature_gates;
    gates.get(GATE).or_else(|| gates.get(ALL_ALPHA)).copied().unwrap_or(false)
}

fn names_loopback(addresses: &[String], family: Family) -> bool {
    addresses.iter().any(|text| match text.parse::<IpNet>() {
        Ok(range) => {
            let is_of_family = Family::of(range.addr()) == family && range.prefix_len() > 0;
            is_of_family && (range.trunc().addr().is_loopback() || range.contains(&localhost(family)))
        }
        // The keyword names the ranges of both families.
        Err(_) => text == LOCALHOST,
    })
}

/// Returns a warning about feature gates without effect, and about the two
/// settings that have an effect together only.
pub(super) fn warnings(configuration: &KubeProxyConfiguration) -> Vec<Warning> {
    let names = configuration.feature_gates.keys().map(String::as_str);
    let others: Vec<&str> = names.filter(|name| ![GATE, ALL_ALPHA].contains(name)).collect();
    let mut warnings = Vec::new();
    if !others.is_empty() {
        let message = format!("ignored: {}: of all feature gates {GATE} alone concerns this proxy", others.join(", "));
        warnings.push(Warning::new("featureGates", message));
    }
    let is_named = Family::ALL.into_iter().any(|family| names_loopback(&configuration.node_port_addresses, family));
    match (gate_is_on(configuration), is_named) {
        (false, true) => warnings.push(Warning::new(
            "nodePortAddresses",
            format!(
                "localhost: no NodePort is served on a loopback address, as in kube-proxy, unless the feature gate \
                 {GATE} is on; set it to true in featureGates, or use an address of the node, or the Service's \
                 cluster IP"
            ),
        )),
        (true, false) => warnings.push(Warning::new(
            "featureGates",
            format!(
                "{GATE} is on, but nodePortAddresses names no loopback range: no NodePort is served on localhost; add \
                 localhost to nodePortAddresses"
            ),
        )),
        _ => {}
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(gates: &[(&str, bool)], addresses: &[&str]) -> KubeProxyConfiguration {
        KubeProxyConfiguration {
            feature_gates: gates.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect(),
            node_port_addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            ..KubeProxyConfiguration::default()
        }
    }

    #[test]
    fn both_the_gate_and_a_loopback_range_are_needed() {
        let on: &[_] = &[(GATE, true)];
        for (gates, addresses, ipv4, ipv6) in [
            (&[][..], &["localhost"][..], false, false),
            (&[(GATE, false), (ALL_ALPHA, true)], &["localhost"], false, false),
            (&[(ALL_ALPHA, true)], &["localhost"], true, true),
            (on, &[], false, false),
            (on, &["primary"], false, false),
            (on, &["all"], false, false),
            (on, &["0.0.0.0/0", "::/0"], false, false),
            (on, &["primary", "localhost"], true, true),
            (on, &["all", "localhost"], true, true),
            (on, &["127.0.0.0/8"], true, false),
            (on, &["0.0.0.0/0", "127.0.0.1/32"], true, false),
            (on, &["127.3.0.0/16"], true, false),
            (on, &["::1/128"], false, true),
            (on, &["10.0.0.0/8", "fd00::/64"], false, false),
        ] {
            let served = configuration(gates, addresses).localhost_node_ports();
            assert_eq!(served, PerFamily { ipv4, ipv6 }, "{gates:?} {addresses:?}");
        }
    }

    #[test]
    fn a_setting_without_the_other_is_reported_with_what_to_set() {
        let texts = |gates: &[(&str, bool)], addresses: &[&str]| -> Vec<String> {
            warnings(&configuration(gates, addresses)).iter().map(ToString::to_string).collect()
        };
        assert!(texts(&[(GATE, true)], &["localhost"]).is_empty());
        assert!(texts(&[(GATE, false)], &["primary"]).is_empty());
        let [without_gate] = &texts(&[], &["127.0.0.1/32"])[..] else { panic!() };
        assert!(without_gate.starts_with("nodePortAddresses: localhost: no NodePort"), "{without_gate}");
        let [without_range] = &texts(&[(GATE, true)], &["all"])[..] else { panic!() };
        assert!(without_range.ends_with("add localhost to nodePortAddresses"), "{without_range}");
        let [others] = &texts(&[("A", true), (GATE, true), ("B", false)], &["localhost"])[..] else { panic!() };
        assert!(others.starts_with("featureGates: ignored: A, B: "), "{others}");
    }
}
