//! `loadBalancerSourceRanges` in hash sets: a binary search over prefix
//! lengths.
//!
//! An interval concatenation would need only one look-up. But the kernel fills
//! one in quadratic time, its IPv6 form of five fields was wrong on machines
//! with AVX2 before 6.12.24, and newer kernels refuse the expression that nft
//! makes for it: see decision 18.
//!
//! Each length has a chain that looks for the client's prefix of that length
//! among the frontend's ranges. If it is not there, the frontend's *markers*
//! show whether it has longer ranges that begin with this prefix; if not,
//! shorter ones are tried. A client is therefore found in at most 6 steps, or 8
//! of IPv6, whatever the lengths (Waldvogel et al., "Scalable High Speed IP
//! Routing Lookups", 1997). The ranges of a frontend hold no other range of it,
//! so that a marker never leads past a shorter range that matches.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Family;
use super::chains::Chain;
use super::maps::Map;
use super::rule::{KeyPart, Op, Rule, Side, Statement};

/// One prefix length of the search, and where it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// The length that is looked up.
    length: u8,
    /// The next length where the frontend has longer ranges that begin so.
    longer: Option<u8>,
    /// The next length else.
    shorter: Option<u8>,
}

/// The lengths most in use: they are tried first.
fn usual(family: Family) -> &'static [u8] {
    match family {
        Family::Ipv4 => &[24, 32, 16, 8],
        Family::Ipv6 => &[64, 128, 48, 32],
    }
}

fn bits(family: Family) -> u8 {
    8 * family.address_bytes() as u8
}

/// Returns the length that is looked up first, of those from `low` to `high`.
fn first_of(family: Family, low: u8, high: u8) -> Option<u8> {
    let middle = (low <= high).then(|| low + (high - low) / 2);
    usual(family).iter().copied().find(|length| (low..=high).contains(length)).or(middle)
}

/// Walks the search towards one length, which comes last. Length 0 is in no
/// list: a frontend with this range has no firewall.
fn steps_to(family: Family, target: u8) -> Vec<Step> {
    let (mut low, mut high) = (1, bits(family));
    let mut steps = Vec::new();
    while let Some(length) = first_of(family, low, high) {
        let longer = first_of(family, length + 1, high);
        let shorter = first_of(family, low, length - 1);
        steps.push(Step { length, longer, shorter });
        match target.cmp(&length) {
            std::cmp::Ordering::Less => high = length - 1,
            std::cmp::Ordering::Equal => break,
            std::cmp::Ordering::Greater => low = length + 1,
        }
    }
    steps
}

/// The chain in which the search begins.
fn first_length(family: Family) -> u8 {
    usual(family)[0]
}

/// The chain of one length.
fn chain_of(family: Family, length: u8) -> Chain {
    if length == first_length(family) { Chain::SourceRanges(family) } else { Chain::SourceRangesOfLength { length } }
}

/// The chains that the first one leads to, each behind those that it leads to.
pub(super) fn later_chains(family: Family) -> Vec<Chain> {
    let mut lengths: Vec<u8> = (1..=bits(family)).filter(|length| *length != first_length(family)).collect();
    lengths.sort_by_key(|length| std::cmp::Reverse(steps_to(family, *length).len()));
    lengths.into_iter().map(|length| Chain::SourceRangesOfLength { length }).collect()
}

/// Returns the prefixes that lead a search to these ranges, of which none
/// contains another.
pub(super) fn markers(family: Family, ranges: &[IpNet]) -> BTreeSet<IpNet> {
    let mut markers = BTreeSet::new();
    for range in ranges {
        let steps = steps_to(family, range.prefix_len());
        let passed = steps.iter().filter(|step| step.length < range.prefix_len());
        markers.extend(passed.filter_map(|step| IpNet::new(range.network(), step.length).ok()).map(|net| net.trunc()));
    }
    markers
}

/// Returns the number of markers that one range of a length needs.
fn markers_of(family: Family, length: u8) -> usize {
    steps_to(family, length).iter().filter(|step| step.length < length).count()
}

/// Returns the maximum number of markers of a range, whatever its length.
pub(crate) fn most_markers(family: Family) -> usize {
    (1..=bits(family)).map(|length| markers_of(family, length)).max().unwrap_or(0)
}

/// Returns the number of markers of these ranges if they share none.
pub(crate) fn markers_at_most(family: Family, ranges: &[IpNet]) -> usize {
    let mut of_length = [0_usize; 129];
    for range in ranges {
        of_length[usize::from(range.prefix_len())] += 1;
    }
    (1..=bits(family)).map(|length| of_length[usize::from(length)] * markers_of(family, length)).sum()
}

/// The rules of the chain in which the search begins.
pub(super) fn first_rules(family: Family, frontend: &[KeyPart]) -> Vec<Rule> {
    rules(family, first_length(family), frontend)
}

/// The rules of the chain of one length.
///
/// ```nft
/// chain source-ranges-ipv4 {
///     ip daddr . meta l4proto . th dport . ip saddr & 255.255.255.0 . ip saddr | 0.0.0.255 @source-ranges accept
///     ip daddr . meta l4proto . th dport . ip saddr & 255.255.255.0 . ip saddr | 0.0.0.255 @source-range-markers goto source-ranges-32
///     goto source-ranges-16
/// }
/// chain source-ranges-25 {
///     ip daddr . meta l4proto . th dport . ip saddr & 255.255.255.128 . ip saddr | 0.0.0.127 @source-ranges accept
///     drop
/// }
/// ```
///
/// A prefix is its first and its last address, because one alone would not show
/// its length. `accept` ends this base chain only.
pub(super) fn rules(family: Family, length: u8, frontend: &[KeyPart]) -> Vec<Rule> {
    let Some(step) = steps_to(family, length).last().copied().filter(|step| step.length == length) else {
        // A length that the family does not have.
        return vec![Rule(vec![Statement::Drop])];
    };
    let source = match length == bits(family) {
        true => [KeyPart::Address(Side::Source); 2],
        false => [KeyPart::SourceNetwork(length), KeyPart::SourceBroadcast(length)],
    };
    let found = |map, then| Rule(vec![Statement::Lookup([frontend, &source].concat(), Op::Is, map), then]);
    let goto = |length| Statement::Goto(chain_of(family, length));
    let mut rules = vec![found(Map::SourceRanges, Statement::Accept)];
    rules.extend(step.longer.map(|length| found(Map::SourceRangeMarkers, goto(length))));
    rules.push(Rule(vec![step.shorter.map_or(Statement::Drop, goto)]));
    rules
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// Searches as the rules do.
    fn finds(family: Family, ranges: &[IpNet], client: IpAddr) -> bool {
        let markers = markers(family, ranges);
        let mut next = Some(first_length(family));
        while let Some(length) = next {
            let step = *steps_to(family, length).last().unwrap();
            let prefix = IpNet::new(client, length).unwrap().trunc();
            if ranges.contains(&prefix) {
                return true;
            }
            next = if step.longer.is_some() && markers.contains(&prefix) { step.longer } else { step.shorter };
        }
        false
    }

    #[test]
    fn every_length_is_found_in_a_few_steps() {
        for (family, most) in [(Family::Ipv4, 6), (Family::Ipv6, 8)] {
            for length in 1..=bits(family) {
                let steps = steps_to(family, length);
                assert_eq!(steps.last().unwrap().length, length);
                assert!(steps.len() <= most, "{length}: {steps:?}");
            }
            let later = later_chains(family);
            assert_eq!(later.len(), usize::from(bits(family)) - 1);
            let mut made = BTreeSet::new();
            for chain in later.into_iter().chain([Chain::SourceRanges(family)]) {
                let length = match chain {
                    Chain::SourceRangesOfLength { length } => length,
                    _ => first_length(family),
                };
                for rule in rules(family, length, &[]) {
                    if let Some(Statement::Goto(to)) = rule.0.last() {
                        assert!(made.contains(to), "{chain} goes to {to}, which is made later");
                    }
                }
                made.insert(chain);
            }
        }
    }

    #[test]
    fn markers_are_counted() {
        for (family, most) in [(Family::Ipv4, 3), (Family::Ipv6, 6)] {
            assert_eq!(most_markers(family), most);
        }
        let ranges = ["10.0.0.0/8", "192.0.2.128/25", "198.51.100.7/32", "198.51.100.9/32"];
        let ranges = ranges.map(|text| text.parse().unwrap());
        assert!(markers(Family::Ipv4, &ranges).len() < markers_at_most(Family::Ipv4, &ranges));
        for range in ranges {
            assert_eq!(markers(Family::Ipv4, &[range]).len(), markers_at_most(Family::Ipv4, &[range]), "{range}");
        }
    }

    #[test]
    fn exactly_the_clients_of_the_ranges_are_found() {
        let lists = [
            ["10.0.0.0/8", "192.0.2.128/25", "198.51.100.7/32", "198.51.100.8/31", "203.0.0.0/11"],
            ["0.0.0.0/1", "128.0.0.0/5", "192.0.2.1/32", "192.0.2.4/30", "192.0.3.0/24"],
        ];
        for list in lists {
            let ranges = IpNet::aggregate(&list.map(|text| text.parse().unwrap()).to_vec());
            for number in 0..10_000_u32 {
                // Some near the ranges, most anywhere.
                let near = u32::from_be_bytes([192 + (number % 12) as u8, 0, 2, 0]) + number % 300;
                let near = if number % 5 == 0 { 0xc633_6400 + number % 16 } else { near };
                for client in [near, number.wrapping_mul(2_654_435_761)] {
                    let client = IpAddr::V4(client.into());
                    let expected = ranges.iter().any(|range| range.contains(&client));
                    assert_eq!(finds(Family::Ipv4, &ranges, client), expected, "{client} in {ranges:?}");
                }
            }
        }
        let text = ["2001:db8::/32", "fd00:1::/48", "fd00:2::1/128", "fd00:2::10/124", "fd00:3::/57", "8000::/3"];
        let ranges = IpNet::aggregate(&text.map(|text| text.parse().unwrap()).to_vec());
        for range in &ranges {
            for (client, expected) in [(range.network(), true), (range.broadcast(), true)] {
                assert_eq!(finds(Family::Ipv6, &ranges, client), expected, "{client}");
            }
        }
        for client in ["fd00:2::2", "fd00:2::20", "fd00:3:0:80::1", "fd00:0:ffff::", "::1"] {
            assert!(!finds(Family::Ipv6, &ranges, client.parse().unwrap()), "{client}");
        }
    }

    /// A client that old and new ranges admit is found while both are present.
    #[test]
    fn while_ranges_change_who_may_stay_is_found() {
        let lists: [&[&str]; 5] = [
            &["10.0.0.0/16"],
            &["10.0.0.0/28", "10.0.0.64/26", "10.0.1.0/24"],
            &["10.0.0.0/25", "10.0.0.128/30"],
            &["10.0.0.5/32", "10.0.1.128/25", "10.0.0.66/31"],
            &["10.0.0.0/9"],
        ];
        let lists = lists.map(|list| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>());
        for old in &lists {
            for new in &lists {
                let mut both = old.clone();
                both.extend(new);
                for number in 0..1024_u32 {
                    let client = IpAddr::V4((0x0a00_0000 + number).into());
                    let stays = [old, new].iter().all(|list| list.iter().any(|range| range.contains(&client)));
                    assert!(!stays || finds(Family::Ipv4, &both, client), "{client}: {old:?} and {new:?}");
                }
            }
        }
    }
}
