//! Statements and rules as nft text.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::ruleset::Family;
use crate::ruleset::maps::Map;
use crate::ruleset::rule::{KeyPart, Op, Rule, Side, Statement, Way};

/// One rule as nft text, without the line's end.
pub fn rule(family: Family, rule: &Rule) -> String {
    rule.0.iter().map(|statement| self::statement(family, statement)).collect::<Vec<_>>().join(" ")
}

fn statement(family: Family, statement: &Statement) -> String {
    let ip = family.keyword();
    match statement {
        Statement::CtStateNew(op) => format!("ct state{} new", op_word(*op)),
        Statement::CtStatusDnat => "ct status dnat".to_owned(),
        Statement::Protocol(protocol) => format!("meta l4proto {}", protocol.keyword()),
        Statement::Address(side, op, net) => format!("{ip} {}{} {}", side_word(*side), op_word(*op), prefix(*net)),
        Statement::Interface(way, op, name) => {
            format!("{}{} \"{}\"", way_word(*way), op_word(*op), interface(name))
        }
        Statement::InterfacePrefix(way, op, name) => {
            format!("{}{} \"{}*\"", way_word(*way), op_word(*op), quotable(name))
        }
        Statement::NoInputInterface(op) => format!("iif{} 0", op_word(*op)),
        Statement::FibLocal(side) => format!("fib {} type local", side_word(*side)),
        Statement::Lookup(key, op, map) => format!("{}{} @{map}", concatenation(family, key), op_word(*op)),
        Statement::Vmap(key, map) => format!("{} vmap @{map}", concatenation(family, key)),
        Statement::Dnat(key, map) => format!("dnat {ip} to {} map @{map}", concatenation(family, key)),
        Statement::SetPriority(key, map) => {
            format!("meta priority set {} map @{map}", concatenation(family, key))
        }
        Statement::ClearPriority => "meta priority set none".to_owned(),
        Statement::LearnAffinity { seconds } => format!(
            "update @{} {{ {ip} saddr . meta priority timeout {} : {ip} daddr . th dport }}",
            Map::Affinity,
            duration(*seconds),
        ),
        Statement::Jump(chain) => format!("jump {chain}"),
        Statement::Goto(chain) => format!("goto {chain}"),
        Statement::Return => "return".to_owned(),
        Statement::Accept => "accept".to_owned(),
        Statement::Drop => "drop".to_owned(),
        Statement::Reject => "reject".to_owned(),
        Statement::Masquerade => "masquerade fully-random".to_owned(),
    }
}

fn concatenation(family: Family, key: &[KeyPart]) -> String {
    key.iter().map(|part| key_part(family, *part)).collect::<Vec<_>>().join(" . ")
}

fn key_part(family: Family, part: KeyPart) -> String {
    let ip = family.keyword();
    match part {
        KeyPart::Address(side) => format!("{ip} {}", side_word(side)),
        KeyPart::Protocol => "meta l4proto".to_owned(),
        KeyPart::Port => "th dport".to_owned(),
        KeyPart::TcpPort => "tcp dport".to_owned(),
        KeyPart::SourceNetwork(length) => format!("{ip} saddr & {}", address(mask(family, length, true))),
        KeyPart::SourceBroadcast(length) => format!("{ip} saddr | {}", address(mask(family, length, false))),
        KeyPart::OriginalDestination => format!("ct original {ip} daddr"),
        KeyPart::OriginalPort => "ct original proto-dst".to_owned(),
        KeyPart::Random(modulus) => format!("numgen random mod {modulus}"),
        KeyPart::Priority => "meta priority".to_owned(),
    }
}

/// The bits of a prefix of this length, or those behind it.
fn mask(family: Family, length: u8, of_network: bool) -> IpAddr {
    match family {
        Family::Ipv4 => {
            let behind = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            IpAddr::V4((if of_network { !behind } else { behind }).into())
        }
        Family::Ipv6 => {
            let behind = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            IpAddr::V6((if of_network { !behind } else { behind }).into())
        }
    }
}

fn side_word(side: Side) -> &'static str {
    match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    }
}

fn way_word(way: Way) -> &'static str {
    match way {
        Way::In => "iifname",
        Way::Out => "oifname",
    }
}

/// The operator with the space before it; equality is not written.
fn op_word(op: Op) -> &'static str {
    match op {
        Op::Is => "",
        Op::IsNot => " !=",
    }
}

/// A prefix; nft leaves the length out where it is the whole address.
pub(super) fn prefix(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        address(net.addr())
    } else {
        format!("{}/{}", address(net.network()), net.prefix_len())
    }
}

/// An address as the C library's `inet_ntop` writes it, which nft prints with.
/// Unlike Rust it writes `::a.b.c.d` for addresses in `::/96`.
pub(super) fn address(address: IpAddr) -> String {
    if let IpAddr::V6(v6) = address {
        let [.., high, low] = v6.segments();
        let embeds_ipv4 = v6.segments()[..6] == [0; 6] && high != 0;
        if embeds_ipv4 {
            let embedded = Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
            return format!("::{embedded}");
        }
    }
    address.to_string()
}

/// Seconds as nft prints them: `3h`, `1m30s`, `1d3h46m40s`.
pub(super) fn duration(seconds: u32) -> String {
    let parts = [(seconds / 86400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let text: String =
        parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The exact name of an interface: a `*` at its end would be nft's wildcard.
fn interface(name: &str) -> String {
    let name = quotable(name);
    match name.strip_suffix('*') {
        Some(stem) => format!("{stem}\\*"),
        None => name,
    }
}

/// Returns the text with only the characters that nft allows between double
/// quotes. nft cannot escape a quote or the end of a line there. Kubernetes
/// names contain neither, so this only keeps a listing loadable in every case.
pub(super) fn quotable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '"' {
                '\''
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_no_empty_parts() {
        for (seconds, text) in
            [(1, "1s"), (60, "1m"), (90, "1m30s"), (10800, "3h"), (86400, "1d"), (100_000, "1d3h46m40s"), (0, "0s")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn addresses_are_written_as_the_c_library_does() {
        for (given, text) in [
            ("::", "::"),
            ("::1", "::1"),
            ("::1:0", "::0.1.0.0"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ("fd00:0:0:1::", "fd00:0:0:1::"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(address(given.parse::<IpAddr>().unwrap_or_else(|_| panic!("{given}"))), text);
        }
    }

    #[test]
    fn quotes_cannot_end_a_comment() {
        assert_eq!(quotable("a\"b\nc"), "a'b c");
        assert_eq!(interface("odd*"), "odd\\*");
    }
}
