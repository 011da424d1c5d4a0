//! `NO_PROXY` as Go's programs read it (`golang.org/x/net/http/httpproxy`).
//!
//! curl's rules, which the libraries for Rust follow, differ: there
//! `.example.com` includes `example.com`, an entry has no port, and `*` does
//! not cover addresses.

use std::net::IpAddr;

use ipnet::IpNet;

/// Hosts that are reached without a proxy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NoProxy {
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    /// `*`
    All,
    /// `10.0.0.0/8`
    Range(IpNet),
    /// `10.0.0.1`, `10.0.0.1:6443`, `[fd00::1]:6443`
    Address(IpAddr, Option<u16>),
    /// `example.com` (itself and all subdomains) or `.example.com`,
    /// `*.example.com` (only subdomains), each with or without a port.
    Domain { suffix: String, includes_itself: bool, port: Option<u16> },
}

impl NoProxy {
    /// Reads a list with commas. What is no entry is ignored, as Go does.
    pub(super) fn parse(list: &str) -> Self {
        Self { entries: list.split(',').filter_map(|entry| Entry::parse(&entry.trim().to_lowercase())).collect() }
    }

    /// Returns whether `host` (an IPv6 address with or without brackets) is
    /// reached without a proxy. The machine itself always is.
    pub(super) fn includes(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.entries.iter().any(|entry| match entry {
            Entry::All => true,
            Entry::Range(range) => address.is_some_and(|address| range.contains(&address)),
            Entry::Address(excluded, at) => Some(*excluded) == address && at.is_none_or(|at| at == port),
            Entry::Domain { suffix, includes_itself, port: at } => {
                let is_meant = host.ends_with(suffix.as_str()) || (*includes_itself && host == suffix[1..]);
                is_meant && at.is_none_or(|at| at == port)
            }
        })
    }
}

impl Entry {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::All);
        }
        if let Ok(range) = entry.parse() {
            return Some(Self::Range(range));
        }
        let (host, port) = split_port(entry)?;
        if host.is_empty() {
            return None;
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let includes_itself = !host.starts_with('.');
        let suffix = if includes_itself { format!(".{host}") } else { host.to_owned() };
        Some(Self::Domain { suffix, includes_itself, port })
    }
}

/// `host`, `host:port`, `[v6]:port` or an IPv6 address. `None`: a port that is
/// no number can't be meant.
fn split_port(entry: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = entry.strip_prefix('[') {
        let (host, behind) = rest.split_once(']')?;
        return match behind.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => Some((host, None)),
        };
    }
    match entry.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some((host, Some(port.parse().ok()?))),
        _ => Some((entry, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_mean_what_they_mean_to_go() {
        for (list, host, port, is_included) in [
            // The machine itself, whatever the list contains.
            ("", "localhost", 6443, true),
            ("", "127.0.0.1", 6443, true),
            ("", "127.8.8.8", 6443, true),
            ("", "[::1]", 6443, true),
            ("", "::ffff:127.0.0.1", 6443, true),
            ("", "10.0.0.1", 6443, false),
            // Everything.
            ("*", "10.0.0.1", 6443, true),
            ("a.example, *", "api.example.com", 6443, true),
            // Addresses and ranges.
            ("10.0.0.1", "10.0.0.1", 6443, true),
            ("10.0.0.1:6443", "10.0.0.1", 6443, true),
            ("10.0.0.1:443", "10.0.0.1", 6443, false),
            ("10.0.0.10", "10.0.0.1", 6443, false),
            ("10.0.0.0/8", "10.255.0.1", 6443, true),
            ("10.1.2.3/8", "10.255.0.1", 6443, true),
            ("10.0.0.0/8", "11.0.0.1", 6443, false),
            ("fd00::/8", "[fd00::1]", 6443, true),
            ("fd00::1", "[fd00::1]", 6443, true),
            ("[fd00::1]", "[fd00::1]", 6443, true),
            ("[fd00::1]:6443", "fd00::1", 6443, true),
            ("[fd00::1]:443", "fd00::1", 6443, false),
            // A range does not cover names, nor a suffix addresses.
            ("10.0.0.0/8", "api.example.com", 6443, false),
            (".0.0.1", "10.0.0.1", 6443, true),
            // Names.
            ("example.com", "example.com", 6443, true),
            ("example.com", "api.example.com", 6443, true),
            ("example.com", "notexample.com", 6443, false),
            (".example.com", "example.com", 6443, false),
            (".example.com", "api.example.com", 6443, true),
            ("*.example.com", "api.example.com", 6443, true),
            ("*.example.com", "example.com", 6443, false),
            ("api.EXAMPLE.com:6443", "API.example.com", 6443, true),
            ("api.example.com:443", "api.example.com", 6443, false),
            ("svc,.cluster.local", "kubernetes.default.svc", 443, true),
            // White space, empty and senseless entries.
            (" , :80, [oops, api.example.com:x ,\t10.0.0.1 ", "10.0.0.1", 6443, true),
            ("api.example.com:x", "api.example.com", 6443, false),
        ] {
            assert_eq!(NoProxy::parse(list).includes(host, port), is_included, "NO_PROXY={list:?}, {host}:{port}");
        }
    }
}
