//! Names of addresses: `10.0.96.10.in-addr.arpa` and `….ip6.arpa`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Returns the prefix that a reverse name stands for: a whole address, or the
/// part of one that the name of a delegated zone holds. `None`: it is no reverse
/// name.
///
/// ```
/// use vmap_proxy_dns_zone::reverse::to_prefix;
///
/// let labels = |name: &'static str| name.split('.').map(str::as_bytes).collect::<Vec<_>>();
/// let prefix = |name| to_prefix(&labels(name)).map(|prefix| prefix.to_string());
/// assert_eq!(prefix("10.0.96.10.in-addr.arpa").as_deref(), Some("10.96.0.10/32"));
/// assert_eq!(prefix("96.10.IN-ADDR.arpa").as_deref(), Some("10.96.0.0/16"));
/// assert_eq!(prefix("example.com"), None);
/// ```
pub fn to_prefix(labels: &[&[u8]]) -> Option<IpNet> {
    let (rest, tail) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    let [kind, top] = tail else { return None };
    if !top.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    if kind.eq_ignore_ascii_case(b"in-addr") {
        return ipv4(rest);
    }
    if kind.eq_ignore_ascii_case(b"ip6") { ipv6(rest) } else { None }
}

fn ipv4(labels: &[&[u8]]) -> Option<IpNet> {
    if labels.len() > 4 {
        return None;
    }
    let mut octets = [0; 4];
    for (octet, label) in octets.iter_mut().zip(labels.iter().rev()) {
        let text = std::str::from_utf8(label).ok()?;
        let number: u8 = text.parse().ok()?;
        // "010" and "+1" are names of nothing.
        if number.to_string() != text {
            return None;
        }
        *octet = number;
    }
    IpNet::new(Ipv4Addr::from(octets).into(), u8::try_from(labels.len() * 8).ok()?).ok()
}

fn ipv6(labels: &[&[u8]]) -> Option<IpNet> {
    if labels.len() > 32 {
        return None;
    }
    let mut bits: u128 = 0;
    for (position, label) in labels.iter().rev().enumerate() {
        let [digit] = label else { return None };
        let nibble = char::from(*digit).to_digit(16)?;
        bits |= u128::from(nibble) << (124 - 4 * position);
    }
    IpNet::new(Ipv6Addr::from(bits).into(), u8::try_from(labels.len() * 4).ok()?).ok()
}

/// Returns the name of the smallest whole zone at or below `range` that holds
/// `address`: the first `range.prefix_len()` bits, rounded up to whole labels.
///
/// ```
/// use vmap_proxy_dns_zone::reverse::apex;
///
/// let apex_of = |address: &str, range: &str| apex(address.parse().unwrap(), range.parse().unwrap());
/// assert_eq!(apex_of("10.96.0.10", "10.96.0.0/12"), "96.10.in-addr.arpa");
/// assert_eq!(apex_of("fd00::a", "fd00::/14"), "0.0.d.f.ip6.arpa");
/// ```
pub fn apex(address: IpAddr, range: IpNet) -> String {
    let labels = match address {
        IpAddr::V4(_) => range.prefix_len().div_ceil(8),
        IpAddr::V6(_) => range.prefix_len().div_ceil(4),
    };
    name(address, usize::from(labels))
}

/// The reverse name of the first `labels` parts of an address.
fn name(address: IpAddr, labels: usize) -> String {
    match address {
        IpAddr::V4(address) => {
            let parts: Vec<String> = address.octets().iter().take(labels).rev().map(ToString::to_string).collect();
            [parts.join("."), "in-addr.arpa".to_owned()].join(if parts.is_empty() { "" } else { "." })
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 15]);
            let mut parts: Vec<String> = nibbles.take(labels).map(|nibble| format!("{nibble:x}")).collect();
            parts.reverse();
            [parts.join("."), "ip6.arpa".to_owned()].join(if parts.is_empty() { "" } else { "." })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn parsed(text: &str) -> Option<String> {
        let labels: Vec<&[u8]> = text.split('.').map(str::as_bytes).collect();
        to_prefix(&labels).map(|prefix| prefix.to_string())
    }

    #[test]
    fn whole_names_lead_to_their_address_and_back() {
        for address in ["10.96.0.10", "0.0.0.0", "255.255.255.255", "fd00:10:96::a", "::", "2001:db8::ffff"] {
            let address: IpAddr = address.parse().unwrap();
            let text = name(address, 32);
            assert_eq!(parsed(&text), Some(IpNet::from(address).to_string()), "{text}");
        }
        assert_eq!(apex("10.0.0.1".parse().unwrap(), "0.0.0.0/0".parse().unwrap()), "in-addr.arpa");
    }

    #[test]
    fn malformed_reverse_names_stand_for_nothing() {
        for text in [
            "010.0.96.10.in-addr.arpa",
            "256.in-addr.arpa",
            "+1.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "x.ip6.arpa",
            "ab.ip6.arpa",
            "arpa",
            "e164.arpa",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
        assert_eq!(parsed(&format!("{}ip6.arpa", "0.".repeat(33))), None);
        assert_eq!(parsed("in-addr.arpa").as_deref(), Some("0.0.0.0/0"));
    }
}
