//! Addresses and prefixes as Kubernetes reads them ("sloppily").
//!
//! Go's parser before 1.17 took numbers with leading zeros as decimal, and
//! Kubernetes still reads stored objects that way (`k8s.io/utils/net`,
//! `ParseIPSloppy`). An IPv4-mapped IPv6 address counts as IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// IPv4 or IPv6. kube-proxy runs one independent proxier for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The name in `ipFamilies` and `addressType`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Reads an address; `None` if the text is none.
pub fn parse(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let address = parse_v6(text)?;
        Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
    } else {
        parse_v4(text).map(IpAddr::V4)
    }
}

/// Reads `address/length` and masks the host bits off.
pub fn parse_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let mapped = address.contains(':');
    let address = parse(address)?;
    let length = decimal(length)?;
    // The length of an IPv4-mapped prefix counts the 96 leading bits.
    let length = if mapped && address.is_ipv4() { length.checked_sub(96)? } else { length };
    IpNet::new(address, u8::try_from(length).ok()?).ok().map(|net| net.trunc())
}

/// The address if the text is one of this family.
pub fn parse_of_family(text: &str, family: Family) -> Option<IpAddr> {
    parse(text).filter(|address| Family::of(*address) == family)
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let octets = text.split('.').map(|part| u8::try_from(decimal(part)?).ok()).collect::<Option<Vec<u8>>>()?;
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?))
}

fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    let groups: Vec<String> = text.split(':').map(canonical_group).collect::<Option<_>>()?;
    groups.join(":").parse().ok()
}

/// A group of an IPv6 address without needless leading zeros; the last may be
/// an IPv4 address.
fn canonical_group(group: &str) -> Option<String> {
    if group.contains('.') {
        return parse_v4(group).map(|address| address.to_string());
    }
    let digits = group.trim_start_matches('0');
    Some(if digits.is_empty() && !group.is_empty() { "0" } else { digits }.to_owned())
}

/// A decimal number, leading zeros allowed, signs and blanks not.
fn decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}
