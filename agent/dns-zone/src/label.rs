//! Labels: which texts may be one, and labels made of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest label in bytes (RFC 1035, section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// Longest name in bytes as text without the final dot: 255 bytes in a message,
/// less the length byte of the first label and the root.
pub const MAX_NAME: usize = 253;

/// Returns whether the text is a label that Kubernetes gives an object
/// (RFC 1123): 1 to 63 lower-case letters, digits and hyphens, no hyphen at
/// either end.
pub fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Returns whether the text is a domain name that a CNAME record can hold, with
/// or without the final dot. Underscores are allowed, as in CoreDNS.
pub fn is_domain_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_fine = |label: &str| (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(is_allowed);
    text.len() <= MAX_NAME && text.split('.').all(is_fine)
}

/// Returns the label of an endpoint without a host name: its address with
/// hyphens, as CoreDNS makes it. An IPv6 address that begins or ends with `::`
/// gets a 0 there, because no host name begins or ends with a hyphen.
///
/// ```
/// use vmap_proxy_dns_zone::label::of_address;
///
/// assert_eq!(of_address("10.244.1.7".parse().unwrap()), "10-244-1-7");
/// assert_eq!(of_address("fd00::".parse().unwrap()), "fd00--0");
/// assert_eq!(of_address("::1".parse().unwrap()), "0--1");
/// ```
pub fn of_address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => {
            let mut text = colons(address).replace(':', "-");
            if text.starts_with('-') {
                text.insert(0, '0');
            }
            if text.ends_with('-') {
                text.push('0');
            }
            text
        }
    }
}

/// The address without the dotted notation of IPv4-mapped addresses.
fn colons(address: Ipv6Addr) -> String {
    let text = address.to_string();
    if !text.contains('.') {
        return text;
    }
    address.segments().map(|segment| format!("{segment:x}")).join(":")
}

/// Returns the address of a pod's label, `10-244-1-7` or `fd00-10--7`; `None` if
/// it is no address.
pub fn to_address(label: &str) -> Option<IpAddr> {
    let dotted: Option<Ipv4Addr> = label.replace('-', ".").parse().ok();
    let colons = || label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    dotted.map(IpAddr::V4).or_else(colons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_are_labels() {
        for good in ["a", "my-sts-0", "0", &"x".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "_x", "a.b", "A", "-a", "a-", "ä", &"x".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[test]
    fn external_names_are_checked_as_a_whole() {
        let longest = [&*"x".repeat(63), &"x".repeat(63), &"x".repeat(63), &"x".repeat(61)].join(".");
        for good in ["example.com", "example.com.", "_dmarc.Example.com", "localhost", &longest] {
            assert!(is_domain_name(good), "{good}");
        }
        for bad in ["", ".", "a..b", "a b", "a\n", &"x".repeat(64), &format!("{longest}x")] {
            assert!(!is_domain_name(bad), "{bad}");
        }
    }

    #[test]
    fn every_made_up_label_is_a_label_and_leads_back() {
        for text in ["10.244.1.7", "fd00::", "::", "::1", "fd00:10:244:1::7", "1::2:0:0:3", "::ffff:1.2.3.4"] {
            let Ok(address) = text.parse::<IpAddr>() else { panic!("{text}") };
            let label = of_address(address);
            assert!(is_label(&label), "{label}");
            assert_eq!(to_address(&label), Some(address), "{label}");
        }
        for none in ["1-2-3", "1-2-3-4-5", "256-1-1-1", "x", "", "1--2--3"] {
            assert_eq!(to_address(none), None, "{none}");
        }
    }
}
