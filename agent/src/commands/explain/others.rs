//! Base chains outside of the table of Services that a packet passes: their place
//! and policy. What the rules of other programs do is between them and their nft,
//! and our side tables act on few packets; neither is evaluated.

use serde::Serialize;
use vmap_proxy_compiler::explain::answer::Explanation;
use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::ruleset::TABLE;
use vmap_proxy_compiler::ruleset::chains::Hook;
use vmap_proxy_wire::nf_tables::all_chains::AnyChain;

use crate::doctor::facts::chains;
use crate::netlink::is_own_table;
use crate::terminal::{Paint, columns};

/// The hooks of a packet that this node sends to itself, or receives and hands on,
/// in the order of its way.
const ORDER: [Hook; 5] = [Hook::Output, Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Postrouting];

/// A base chain of another table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OtherChain {
    /// `prerouting`
    hook: &'static str,
    /// Lower ones come first.
    priority: i32,
    /// `filter`, `nat` or `route`
    kind: String,
    /// `inet filter forward`
    name: String,
    /// `accept` or `drop`
    policy: &'static str,
    /// Whether it belongs to a side table of vmap-proxy.
    own: bool,
}

/// The chains at the hooks of a packet's way, in the order in which it passes them.
/// `None` if they can't be listed.
pub(super) fn on_the_way(answer: &Explanation) -> Option<Vec<OtherChain>> {
    let all = chains().inspect_err(|error| tracing::debug!("no chains of other tables: {error}")).ok()?;
    let hooks: Vec<&str> = answer.path.iter().map(|step| step.hook.as_str()).collect();
    Some(at(&all, Family::of(answer.packet.destination), &hooks))
}

fn at(all: &[AnyChain], family: Family, hooks: &[&str]) -> Vec<OtherChain> {
    let mut found: Vec<(usize, OtherChain)> = all.iter().filter_map(|chain| other(chain, family, hooks)).collect();
    found.sort_by_key(|(position, chain)| (*position, chain.priority));
    found.into_iter().map(|(_, chain)| chain).collect()
}

fn other(chain: &AnyChain, family: Family, hooks: &[&str]) -> Option<(usize, OtherChain)> {
    let base = chain.base.as_ref().filter(|_| chain.table != TABLE && chain.family.has_packets_of(family))?;
    let hook = Hook::from_number(base.hook).filter(|hook| hooks.contains(&hook.keyword()))?;
    let position = ORDER.iter().position(|one| *one == hook)?;
    let other = OtherChain {
        hook: hook.keyword(),
        priority: base.priority,
        kind: base.kind.clone(),
        name: format!("{} {} {}", chain.family, chain.table, chain.name),
        policy: if base.drops { "drop" } else { "accept" },
        own: is_own_table(&chain.table),
    };
    Some((position, other))
}

/// The chains as a part of an explanation.
pub(super) fn text(chains: &[OtherChain], paint: Paint) -> String {
    let (own, others): (Vec<&OtherChain>, Vec<&OtherChain>) = chains.iter().partition(|chain| chain.own);
    list(
        "Chains of vmap-proxy's side tables on its way; they act on few packets and are not part of this answer",
        &own,
        paint,
    ) + &list("Chains of other tables on its way; their rules are not part of this answer", &others, paint)
}

fn list(heading: &str, chains: &[&OtherChain], paint: Paint) -> String {
    if chains.is_empty() {
        return String::new();
    }
    let row = |one: &&OtherChain| {
        vec![
            one.hook.to_owned(),
            format!("priority {}", one.priority),
            format!("{} chain {}", one.kind, one.name),
            format!("policy {}", one.policy),
        ]
    };
    let rows: Vec<Vec<String>> = chains.iter().map(row).collect();
    format!("\n{}\n{}", paint.heading(heading), columns("  ", &rows))
}

#[cfg(test)]
mod tests {
    use vmap_proxy_wire::nf_tables::all_chains::{AnyBase, AnyFamily};

    use super::*;

    fn chain(family: u8, name: &str, hook: u32, priority: i32, drops: bool) -> AnyChain {
        let base = AnyBase { kind: "filter".to_owned(), hook, priority, drops };
        AnyChain { family: AnyFamily(family), table: "wall".to_owned(), name: name.to_owned(), base: Some(base) }
    }

    #[test]
    fn chains_come_in_the_order_of_the_way() {
        let mut ours = chain(2, "ours", 0, 0, false);
        ours.table = TABLE.to_owned();
        let all = [
            chain(1, "late", 2, 10, true),
            chain(1, "early", 2, -10, false),
            chain(2, "first", 0, 0, false),
            chain(10, "of-ipv6", 0, 0, false),
            chain(2, "to-the-node", 1, 0, false),
            chain(7, "of-a-bridge", 2, 0, true),
            ours,
        ];
        let found = at(&all, Family::Ipv4, &["prerouting", "forward", "prerouting"]);
        let names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["ip wall first", "inet wall early", "inet wall late"]);
        assert!(found.iter().all(|chain| !chain.own));
        let text = text(&found, Paint::plain());
        assert!(text.contains("  forward     priority 10   filter chain inet wall late   policy drop\n"), "{text}");
        assert!(!text.contains("side tables"), "{text}");
    }

    #[test]
    fn our_side_tables_are_not_taken_for_foreign_ones() {
        let mut side = chain(2, "c", 0, -300, false);
        side.table = format!("{TABLE}-dns");
        let found = at(&[side, chain(2, "first", 0, 0, false)], Family::Ipv4, &["prerouting"]);
        assert_eq!(found.iter().map(|chain| chain.own).collect::<Vec<_>>(), [true, false]);
        let text = text(&found, Paint::plain());
        let (own, others) = text.split_once("Chains of other tables").unwrap();
        assert!(own.contains("side tables") && own.contains("vmap-proxy-dns"), "{text}");
        assert!(others.contains("ip wall first") && !others.contains("vmap-proxy-dns"), "{text}");
    }
}
