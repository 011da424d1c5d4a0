//! Converts kube-proxy's configuration to the compiler's.

use std::net::IpAddr;

use ipnet::IpNet;
use vmap_proxy_compiler::model::config::{DetectLocal, NodePortAddresses, ProxyConfig};

use super::kube_proxy_configuration::KubeProxyConfiguration;
use super::validate::{ALL, LOCALHOST, PRIMARY, parse_cidrs, validate};
use super::{ConfigError, InvalidField};

impl KubeProxyConfiguration {
    /// Returns the part that decides the fate of packets, for the node
    /// `node_name`.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn to_proxy_config(&self, node_name: &str) -> Result<ProxyConfig, ConfigError> {
        validate(self)?;
        Ok(ProxyConfig {
            node_name: node_name.to_owned(),
            masquerade_all: self.nftables.masquerade_all,
            detect_local: self.detect_local()?,
            node_port_addresses: self.node_port_addresses()?,
            bind_address: self.bind_address.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified()),
        })
    }

    fn detect_local(&self) -> Result<DetectLocal, ConfigError> {
        Ok(match self.detect_local_mode.as_str() {
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(self.detect_local.bridge_interface.clone()),
            "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(self.detect_local.interface_name_prefix.clone()),
            _ => DetectLocal::ClusterCidr(self.cluster_cidrs()?),
        })
    }

    /// The ranges of `clusterCIDR`.
    ///
    /// # Errors
    /// If one is no range.
    pub fn cluster_cidrs(&self) -> Result<Vec<IpNet>, ConfigError> {
        let cidrs = parse_cidrs(&self.cluster_cidr).map_err(|part| not_a_cidr("clusterCIDR", &part))?;
        Ok(cidrs.iter().map(IpNet::trunc).collect())
    }

    fn node_port_addresses(&self) -> Result<NodePortAddresses, ConfigError> {
        let range = |text: &str| {
            text.parse::<IpNet>().map(|range| range.trunc()).map_err(|_| not_a_cidr("nodePortAddresses", text))
        };
        let (mut with_primary, mut ranges) = (self.node_port_addresses.is_empty(), Vec::new());
        for address in &self.node_port_addresses {
            match address.as_str() {
                PRIMARY => with_primary = true,
                LOCALHOST => ranges.extend([range("127.0.0.0/8")?, range("::1/128")?]),
                ALL => ranges.extend([range("0.0.0.0/0")?, range("::/0")?]),
                other => ranges.push(range(other)?),
            }
        }
        Ok(match (with_primary, ranges.is_empty()) {
            (true, true) => NodePortAddresses::Primary,
            (true, false) => NodePortAddresses::PrimaryAndRanges(ranges),
            (false, _) => NodePortAddresses::Ranges(ranges),
        })
    }
}

fn not_a_cidr(path: &str, value: &str) -> ConfigError {
    ConfigError::Invalid(vec![InvalidField {
        path: path.to_owned(),
        value: format!("{value:?}"),
        reason: "must be a valid CIDR block".to_owned(),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(change: impl FnOnce(&mut KubeProxyConfiguration)) -> ProxyConfig {
        let mut configuration = KubeProxyConfiguration::default();
        change(&mut configuration);
        configuration.to_proxy_config("node-1").unwrap()
    }

    #[test]
    fn the_defaults_are_the_compilers_defaults() {
        let expected = ProxyConfig { node_name: "node-1".to_owned(), ..ProxyConfig::default() };
        assert_eq!(converted(|_| ()), expected);
    }

    #[test]
    fn every_detect_local_mode_is_carried_over() {
        let nets = converted(|c| c.cluster_cidr = "10.244.1.0/16, fd00::/48".to_owned()).detect_local;
        let expected = ["10.244.0.0/16", "fd00::/48"].map(|net| net.parse().unwrap()).to_vec();
        assert_eq!(nets, DetectLocal::ClusterCidr(expected));
        assert_eq!(converted(|c| c.detect_local_mode = "NodeCIDR".to_owned()).detect_local, DetectLocal::NodeCidr);
        let bridge = converted(|c| {
            c.detect_local_mode = "BridgeInterface".to_owned();
            c.detect_local.bridge_interface = "cni0".to_owned();
        });
        assert_eq!(bridge.detect_local, DetectLocal::BridgeInterface("cni0".to_owned()));
    }

    #[test]
    fn node_port_addresses_default_to_primary() {
        let primary = converted(|c| c.node_port_addresses = vec!["primary".to_owned()]);
        assert_eq!(primary.node_port_addresses, NodePortAddresses::Primary);
        let keywords = |words: &[&str]| {
            converted(|c| c.node_port_addresses = words.iter().map(|word| (*word).to_owned()).collect())
                .node_port_addresses
        };
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(keywords(&["all"]), NodePortAddresses::Ranges(nets(&["0.0.0.0/0", "::/0"])));
        assert_eq!(keywords(&["localhost"]), NodePortAddresses::Ranges(nets(&["127.0.0.0/8", "::1/128"])));
        assert_eq!(
            keywords(&["primary", "localhost", "10.0.0.0/8"]),
            NodePortAddresses::PrimaryAndRanges(nets(&["127.0.0.0/8", "::1/128", "10.0.0.0/8"]))
        );
        let ranges = converted(|c| c.node_port_addresses = vec!["10.0.0.0/8".to_owned()]);
        let expected = vec!["10.0.0.0/8".parse().unwrap()];
        assert_eq!(ranges.node_port_addresses, NodePortAddresses::Ranges(expected));
    }

    #[test]
    fn only_a_specific_bind_address_counts() {
        let specific = converted(|c| c.bind_address = "192.0.2.7".to_owned());
        assert_eq!(specific.bind_address, Some("192.0.2.7".parse().unwrap()));
        assert_eq!(converted(|c| c.bind_address = "::".to_owned()).bind_address, None);
    }

    #[test]
    fn an_invalid_configuration_is_refused() {
        let configuration = KubeProxyConfiguration { oom_score_adj: 2000, ..Default::default() };
        assert!(matches!(configuration.to_proxy_config("n"), Err(ConfigError::Invalid(_))));
    }
}
