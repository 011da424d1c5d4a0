//! Host and port of the health and metrics servers, as kube-proxy reads them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The value of `healthzBindAddress` and `metricsBindAddress` that switches the
/// server off. In a file the empty string cannot mean that, because kubeadm writes
/// it for the default.
pub const ADDRESS_OFF: &str = "0";

/// kube-proxy's port of `/healthz` and `/livez`.
pub const HEALTHZ_PORT: u16 = 10256;

/// kube-proxy's port of `/metrics`.
pub const METRICS_PORT: u16 = 10249;

/// Returns whether the text is an IPv6 address.
pub fn is_ipv6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok()
}

/// Returns the address with a port: a bare IP address gets `port`, any other
/// text is unchanged (kube-proxy's `AppendPortIfNeeded`).
pub fn with_port(address: &str, port: u16) -> String {
    match address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => address.to_owned(),
    }
}

/// Returns the socket address to listen on, or `Ok(None)` if the server is
/// switched off.
///
/// # Errors
/// The reason why the text is no `IP:port`, worded to follow the path of the
/// field.
pub fn listen_address(text: &str) -> Result<Option<SocketAddr>, &'static str> {
    if text == ADDRESS_OFF {
        return Ok(None);
    }
    let (_, port) = text.rsplit_once(':').ok_or("must be IP:port")?;
    if !matches!(port.parse::<u16>(), Ok(1..)) {
        return Err("must be a valid port");
    }
    // A missing host means every address, as in Go.
    let text = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    text.parse().map(Some).map_err(|_| "must be a valid IP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_addresses_get_a_port() {
        assert_eq!(with_port("10.0.0.1", 10249), "10.0.0.1:10249");
        assert_eq!(with_port("fd00::1", 10249), "[fd00::1]:10249");
        assert_eq!(with_port("[fd00::1]", 10249), "[fd00::1]:10249");
        assert_eq!(with_port("10.0.0.1:80", 10249), "10.0.0.1:80");
    }

    #[test]
    fn zero_switches_a_server_off() {
        assert_eq!(listen_address("0"), Ok(None));
        assert_eq!(listen_address("0.0.0.0:10256"), Ok(Some(SocketAddr::from(([0, 0, 0, 0], 10256)))));
        for wrong in ["", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:99999", "host:80", "10.0.0.1:80:80"] {
            assert!(listen_address(wrong).is_err(), "{wrong}");
        }
    }
}
