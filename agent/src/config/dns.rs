//! The settings of the DNS server, read from the section `dns`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_dns::options::{MAX_TTL, PORT};
use vmap_proxy_dns::{Options, Upstream};
use vmap_proxy_dns_zone::ZoneConfig;
use vmap_proxy_dns_zone::label::is_label;

use super::InvalidField;
use super::kube_proxy_configuration::Dns;

/// The cluster's domain, unless the operator names another.
pub const DEFAULT_DOMAIN: &str = "cluster.local";

const ADDRESS: &str = "must be an IP address, with or without a port";

impl Dns {
    /// Returns the settings of the server, or `None` if it is off.
    /// `cluster_ranges` are the ranges of pod addresses.
    ///
    /// # Errors
    /// Every field with an unusable value.
    pub fn options(&self, cluster_ranges: &[IpNet]) -> Result<Option<Options>, Vec<InvalidField>> {
        let mut invalid = Vec::new();
        let addresses = addresses("dns.bindAddresses", &self.bind_addresses, &mut invalid);
        let servers = self::addresses("dns.upstream", &self.upstream, &mut invalid);
        let client_ranges = ranges("dns.clientCIDRs", &self.client_cidrs, &mut invalid);
        let zone = match ZoneConfig::new(&self.domain, self.pod_names) {
            Ok(zone) => zone,
            Err(error) => {
                invalid.push(field("dns.domain", &self.domain, &error.to_string()));
                ZoneConfig::default()
            }
        };
        if self.ttl_seconds > MAX_TTL {
            let reason = format!("must be between 0 and {MAX_TTL}");
            invalid.push(field("dns.ttlSeconds", &self.ttl_seconds.to_string(), &reason));
        }
        let take_over = self.take_over(&addresses, &mut invalid);
        if !invalid.is_empty() {
            return Err(invalid);
        }
        let upstream = if servers.is_empty() { Upstream::ResolvConf } else { Upstream::Servers(servers) };
        let (ttl, cluster_ranges) = (self.ttl_seconds, cluster_ranges.to_vec());
        let options = Options { addresses, zone, ttl, upstream, cluster_ranges, client_ranges, take_over };
        Ok(Some(options).filter(|options| !options.addresses.is_empty() || options.take_over.is_some()))
    }

    /// The Service to take over. Its cluster IPs need sockets of their own, which
    /// the kernel refuses beside one for all addresses.
    fn take_over(&self, addresses: &[SocketAddr], invalid: &mut Vec<InvalidField>) -> Option<ServiceName> {
        let text = &self.take_over;
        if text.is_empty() {
            return None;
        }
        let parts = text.split_once('/').filter(|(namespace, name)| is_label(namespace) && is_label(name));
        if parts.is_none() {
            invalid.push(field(
                "dns.takeOver",
                text,
                "must be a Service as NAMESPACE/NAME, such as kube-system/kube-dns",
            ));
        }
        if let Some(all) = addresses.iter().find(|address| address.ip().is_unspecified() && address.port() == PORT) {
            let reason = format!("cannot be used with {all} in dns.bindAddresses, name single addresses there");
            invalid.push(field("dns.takeOver", text, &reason));
        }
        parts.map(|(namespace, name)| ServiceName::new(namespace, name))
    }
}

fn field(path: &str, value: &str, reason: &str) -> InvalidField {
    InvalidField { path: path.to_owned(), value: format!("{value:?}"), reason: reason.to_owned() }
}

fn addresses(path: &str, texts: &[String], invalid: &mut Vec<InvalidField>) -> Vec<SocketAddr> {
    let mut addresses = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match address(text) {
            Some(address) => addresses.push(address),
            None => invalid.push(field(&format!("{path}[{index}]"), text, ADDRESS)),
        }
    }
    addresses
}

fn address(text: &str) -> Option<SocketAddr> {
    let bare = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    let with_port = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    with_port.or_else(|| bare().map(|address| SocketAddr::new(address, PORT)))
}

fn ranges(path: &str, texts: &[String], invalid: &mut Vec<InvalidField>) -> Vec<IpNet> {
    let mut ranges = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => invalid.push(field(&format!("{path}[{index}]"), text, "must be a valid CIDR block")),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn it_is_off_unless_an_address_is_given() {
        assert_eq!(Dns::default().options(&[]).unwrap(), None);
        let bind_addresses = ["169.254.20.10", "[fd00::a]:5353", "fd00::b"].map(str::to_owned).to_vec();
        let dns = Dns { bind_addresses, ..Dns::default() };
        let options = dns.options(&["10.244.0.0/16".parse().unwrap()]).unwrap().unwrap();
        let addresses = ["169.254.20.10:53", "[fd00::a]:5353", "[fd00::b]:53"].map(|text| text.parse().unwrap());
        assert_eq!(options.addresses, addresses);
        assert_eq!((options.ttl, options.upstream), (5, Upstream::ResolvConf));
        assert_eq!((options.cluster_ranges.len(), options.zone.domain()), (1, "cluster.local"));
    }

    #[test]
    fn a_service_to_take_over_switches_it_on() {
        let dns = |take_over: &str, bind: &[&str]| Dns {
            take_over: take_over.to_owned(),
            bind_addresses: bind.iter().map(|&text| text.to_owned()).collect(),
            ..Dns::default()
        };
        let options = dns("kube-system/kube-dns", &[]).options(&[]).unwrap().unwrap();
        assert_eq!(options.take_over, Some(ServiceName::new("kube-system", "kube-dns")));
        assert!(dns("kube-system/kube-dns", &["169.254.20.10", "0.0.0.0:5353"]).options(&[]).is_ok());
        for (service, bind) in
            [("kube-dns", &[][..]), ("a/b/c", &[]), ("/x", &[]), ("kube-system/kube-dns", &["::"]), ("A/b", &[])]
        {
            let invalid = dns(service, bind).options(&[]).unwrap_err();
            assert!(invalid.iter().all(|field| field.path == "dns.takeOver") && invalid.len() == 1, "{invalid:?}");
        }
    }
}
