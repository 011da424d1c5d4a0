//! Base chains of other tables at our hooks: they may drop or translate Service
//! traffic before us or after us.
//!
//! Only the place and the policy of a chain are judged. What its rules do is
//! between their program and its nft.

use vmap_proxy_compiler::ruleset::chains::{Chain, Hook};
use vmap_proxy_wire::nf_tables::all_chains::{AnyBase, AnyChain};

use crate::doctor::facts::Facts;
use crate::doctor::{Finding, Severity};
use crate::netlink::is_own_table;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let unknown = facts.chains_unknown.iter().map(|error| {
        Finding::new(
            Severity::Note,
            "other tables",
            format!("not checked, because the chains can't be listed: {error}"),
            "run doctor as root, in the node's network namespace",
        )
    });
    let others = facts.chains.iter().filter(|chain| chain.family.is_ip() && !is_own_table(&chain.table));
    unknown.chain(others.filter_map(|chain| finding(chain, chain.base.as_ref()?))).collect()
}

fn finding(chain: &AnyChain, base: &AnyBase) -> Option<Finding> {
    let hook = Hook::from_number(base.hook)?.keyword();
    let place = format!("chain {} {} {}", chain.family, chain.table, chain.name);
    let at = format!("at hook {hook}, priority {}", base.priority);
    if base.drops {
        let (lost, accept) = match hook {
            "forward" => ("traffic from and to pods is lost unless a rule there accepts it", "ct status dnat accept"),
            "input" => (
                "NodePorts of pods in the host's network are lost unless a rule there accepts them",
                "ct status dnat accept",
            ),
            "output" => (
                "the node's own connections to Services are lost unless a rule there accepts them",
                "ct status dnat accept",
            ),
            _ => ("Service traffic is lost unless a rule there accepts it", "the ranges of pods and Services"),
        };
        let remedy = format!("if connections hang, accept them in that chain: {accept}");
        return Some(Finding::new(Severity::Warning, place, format!("its policy is drop, {at}: {lost}"), remedy));
    }
    // Of several chains that translate, the first that does decides.
    let before = base.kind == "nat" && hook == "prerouting" && base.priority <= our_priority(Chain::NatPrerouting);
    let before = before || (base.kind == "nat" && hook == "output" && base.priority <= our_priority(Chain::NatOutput));
    before.then(|| {
        Finding::new(
            Severity::Note,
            place,
            format!("it may translate destinations before vmap-proxy, {at}"),
            "if a Service can't be reached, see whether its rules match the Service's address and port",
        )
    })
}

/// The priority of one of our base chains.
fn our_priority(chain: Chain) -> i32 {
    chain.base().map_or(i32::MIN, |base| base.priority)
}

#[cfg(test)]
mod tests {
    use vmap_proxy_wire::nf_tables::all_chains::AnyFamily;

    use super::*;

    fn chain(family: u8, table: &str, kind: &str, hook: u32, priority: i32, drops: bool) -> AnyChain {
        let base = AnyBase { kind: kind.to_owned(), hook, priority, drops };
        AnyChain { family: AnyFamily(family), table: table.to_owned(), name: "c".to_owned(), base: Some(base) }
    }

    fn found(chain: AnyChain) -> Option<Severity> {
        let findings = check(&Facts { chains: vec![chain], ..Facts::default() });
        findings.first().map(|finding| finding.severity)
    }

    #[test]
    fn a_policy_of_drop_is_a_warning_at_every_hook_of_ours() {
        for hook in 0..5 {
            assert_eq!(found(chain(1, "filter", "filter", hook, 0, true)), Some(Severity::Warning));
            assert_eq!(found(chain(1, "filter", "filter", hook, 0, false)), None);
        }
        // A bridge's hooks have other numbers and other packets.
        assert_eq!(found(chain(7, "filter", "filter", 2, 0, true)), None);
        assert_eq!(found(chain(2, "vmap-proxy", "filter", 2, 0, true)), None);
        assert_eq!(found(chain(2, "vmap-proxy-dns", "filter", 2, 0, true)), None);
        assert_eq!(found(chain(2, "vmap-proxyless", "filter", 2, 0, true)), Some(Severity::Warning));
    }

    #[test]
    fn who_translates_first_is_named() {
        assert_eq!(found(chain(2, "nat", "nat", 0, -100, false)), Some(Severity::Note));
        assert_eq!(found(chain(2, "nat", "nat", 0, -90, false)), None);
        assert_eq!(found(chain(2, "nat", "nat", 4, 100, false)), None);
    }

    #[test]
    fn chains_that_cannot_be_listed_are_said_to_be_unchecked() {
        let findings = check(&Facts { chains_unknown: Some("denied".to_owned()), ..Facts::default() });
        assert!(findings[0].finding.contains("denied"));
    }
}
