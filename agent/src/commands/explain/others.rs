//! Base chains outside of the table of Services that a packet passes: their place,
//! their policy, and whether a rule behind them drops packets. For which packets the rules of
//! other programs hold is between them and their nft, and our side tables act on few
//! packets; neither is evaluated.

use serde::Serialize;
use vmap_proxy_compiler::explain::answer::{Explanation, Question};
use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::ruleset::TABLE;
use vmap_proxy_compiler::ruleset::chains::Hook;
use vmap_proxy_compiler::words::count;
use vmap_proxy_wire::nf_tables::all_chains::AnyChain;

use crate::doctor::facts::{chains, dropping_chain};
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
    /// What in it may drop the packet; absent if nothing is known to.
    #[serde(skip_serializing_if = "Option::is_none")]
    may_drop: Option<MayDrop>,
}

/// What may drop a packet in a chain of another table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum MayDrop {
    /// Its policy, where no rule accepts the packet.
    Policy,
    /// A rule of this chain, which it is or leads to.
    Rule(String),
}

impl OtherChain {
    /// The end of a sentence about a packet that gets through otherwise.
    fn doubt(&self) -> Option<String> {
        let Self { name, hook, .. } = self;
        match self.may_drop.as_ref()? {
            MayDrop::Policy => Some(format!("chain {name} drops it (policy drop in {hook})")),
            MayDrop::Rule(chain) if name.ends_with(&format!(" {chain}")) => {
                Some(format!("a rule of chain {name} drops it (in {hook})"))
            }
            MayDrop::Rule(chain) => Some(format!("a rule of chain {chain}, behind {name}, drops it (in {hook})")),
        }
    }
}

/// The doubt about a packet that gets through as far as our rules go: the first chain of
/// another table on its way that may drop it. Empty if there is none.
pub(super) fn doubt(chains: &[OtherChain]) -> String {
    let mut doubts = chains.iter().filter(|chain| !chain.own).filter_map(OtherChain::doubt);
    match (doubts.next(), doubts.count()) {
        (None, _) => String::new(),
        (Some(first), 0) => format!(", unless {first}"),
        (Some(first), more) => format!(", unless {first}, or {} below", count(more, "other chain")),
    }
}

/// The chains at the hooks of a packet's way, in the order in which it passes them.
/// `None` if they can't be listed.
pub(super) fn on_the_way(answer: &Explanation) -> Option<Vec<OtherChain>> {
    let hooks: Vec<&str> = answer.path.iter().map(|step| step.hook.as_str()).collect();
    listed(Family::of(answer.packet.destination), &hooks)
}

/// The same where only the packet is known: one that is handed on.
pub(super) fn on_the_usual_way(packet: &Question) -> Option<Vec<OtherChain>> {
    let hooks = match packet.interface {
        None => [Hook::Output, Hook::Postrouting].map(Hook::keyword).to_vec(),
        Some(_) => [Hook::Prerouting, Hook::Forward, Hook::Postrouting].map(Hook::keyword).to_vec(),
    };
    listed(Family::of(packet.destination), &hooks)
}

fn listed(family: Family, hooks: &[&str]) -> Option<Vec<OtherChain>> {
    let all = chains().inspect_err(|error| tracing::debug!("no chains of other tables: {error}")).ok()?;
    Some(at(&all, family, hooks, dropping_rule))
}

/// The chain of a rule that drops packets, in a chain or behind it.
fn dropping_rule(chain: &AnyChain) -> Option<String> {
    dropping_chain(chain).inspect_err(|error| tracing::debug!("rules of {} are not known: {error}", chain.name)).ok()?
}

fn at(
    all: &[AnyChain],
    family: Family,
    hooks: &[&str],
    dropping: impl Fn(&AnyChain) -> Option<String>,
) -> Vec<OtherChain> {
    let mut found: Vec<(usize, OtherChain)> =
        all.iter().filter_map(|chain| other(chain, family, hooks, &dropping)).collect();
    found.sort_by_key(|(position, chain)| (*position, chain.priority));
    found.into_iter().map(|(_, chain)| chain).collect()
}

fn other(
    chain: &AnyChain,
    family: Family,
    hooks: &[&str],
    dropping: impl Fn(&AnyChain) -> Option<String>,
) -> Option<(usize, OtherChain)> {
    let base = chain.base.as_ref().filter(|_| chain.table != TABLE && chain.family.has_packets_of(family))?;
    let hook = Hook::from_number(base.hook).filter(|hook| hooks.contains(&hook.keyword()))?;
    let position = ORDER.iter().position(|one| *one == hook)?;
    let own = is_own_table(&chain.table);
    let may_drop = match (own, base.drops) {
        (true, _) => None,
        (false, true) => Some(MayDrop::Policy),
        // Rules for translation drop nothing as a rule, and iptables mode of kube-proxy has very many of them.
        (false, false) if base.kind == "nat" => None,
        (false, false) => dropping(chain).map(MayDrop::Rule),
    };
    let other = OtherChain {
        hook: hook.keyword(),
        priority: base.priority,
        kind: base.kind.clone(),
        name: format!("{} {} {}", chain.family, chain.table, chain.name),
        policy: if base.drops { "drop" } else { "accept" },
        own,
        may_drop,
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
            match &one.may_drop {
                Some(MayDrop::Rule(chain)) => format!("policy {}, and a rule of {chain} that drops", one.policy),
                _ => format!("policy {}", one.policy),
            },
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
        let found = at(&all, Family::Ipv4, &["prerouting", "forward", "prerouting"], |_| None);
        let names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["ip wall first", "inet wall early", "inet wall late"]);
        assert!(found.iter().all(|chain| !chain.own));
        let text = text(&found, Paint::plain());
        assert!(text.contains("  forward     priority 10   filter chain inet wall late   policy drop\n"), "{text}");
        assert!(!text.contains("side tables"), "{text}");
    }

    #[test]
    fn a_chain_that_may_drop_is_a_doubt() {
        let all = [chain(1, "late", 2, 10, true), chain(1, "early", 2, -10, false), chain(2, "nothing", 2, 0, false)];
        let dropping = |chain: &AnyChain| (chain.name == "early").then(|| "early".to_owned());
        let found = at(&all, Family::Ipv4, &["forward"], dropping);
        let expected = ", unless a rule of chain inet wall early drops it (in forward), or 1 other chain below";
        assert_eq!(doubt(&found), expected);
        assert_eq!(doubt(&found[2..]), ", unless chain inet wall late drops it (policy drop in forward)");
        assert_eq!(doubt(&found[1..2]), "");
        assert!(text(&found, Paint::plain()).contains("policy accept, and a rule of early that drops"));
    }

    #[test]
    fn our_side_tables_are_not_taken_for_foreign_ones() {
        let mut side = chain(2, "c", 0, -300, false);
        side.table = format!("{TABLE}-dns");
        let dropping = |_: &AnyChain| Some("c".to_owned());
        let found = at(&[side, chain(2, "first", 0, 0, false)], Family::Ipv4, &["prerouting"], dropping);
        assert_eq!(doubt(&found), ", unless a rule of chain c, behind ip wall first, drops it (in prerouting)");
        assert_eq!(found.iter().map(|chain| chain.own).collect::<Vec<_>>(), [true, false]);
        let text = text(&found, Paint::plain());
        let (own, others) = text.split_once("Chains of other tables").unwrap();
        assert!(own.contains("side tables") && own.contains("vmap-proxy-dns"), "{text}");
        assert!(others.contains("ip wall first") && !others.contains("vmap-proxy-dns"), "{text}");
    }
}
