//! Other programs that write rules, what kube-proxy left, and the nft of this
//! node.

use crate::doctor::facts::{Facts, Version};
use crate::doctor::{Finding, Severity};
use crate::takeover::names::{IPVS_DEVICE, TABLE as KUBE_PROXY_TABLE, is_proxy_chain};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = kube_proxy(facts);
    findings.extend(managers(facts));
    findings.extend(legacy(facts));
    findings.extend(nft(facts));
    findings
}

fn kube_proxy(facts: &Facts) -> Vec<Finding> {
    let mut left = Vec::new();
    if facts.chains.iter().any(|chain| chain.table == KUBE_PROXY_TABLE) {
        left.push("its nftables table");
    }
    if facts
        .chains
        .iter()
        .any(|chain| chain.table != KUBE_PROXY_TABLE && chain.base.is_none() && is_proxy_chain(&chain.name))
    {
        left.push("chains of its iptables mode");
    }
    if facts.interfaces.iter().any(|interface| interface.name == IPVS_DEVICE) {
        left.push("the device kube-ipvs0");
    }
    if facts.has_ipvs_servers {
        left.push("virtual servers of IPVS");
    }
    if left.is_empty() {
        return Vec::new();
    }
    vec![Finding::new(
        Severity::Warning,
        "kube-proxy",
        format!("there are rules of kube-proxy: {}; they translate Service traffic too", left.join(", ")),
        "if kube-proxy runs no more, restart vmap-proxy with --cleanup-kube-proxy",
    )]
}

/// Programs that replace rules, by a table or chain that only they make.
fn managers(facts: &Facts) -> Vec<Finding> {
    let has_table = |table: &str| facts.chains.iter().any(|chain| chain.table == table);
    let has_chain = |name: &str| facts.chains.iter().any(|chain| chain.name == name);
    let programs = [
        (
            has_table("firewalld"),
            "firewalld",
            "put the pod and Service ranges into a zone with target ACCEPT (firewall-cmd --zone=trusted --add-source=RANGE)",
        ),
        (
            has_chain("ufw-user-forward"),
            "ufw",
            "allow routed traffic of the pod ranges (ufw route allow), or set DEFAULT_FORWARD_POLICY=\"ACCEPT\"",
        ),
        (
            has_chain("DOCKER-USER"),
            "Docker",
            "it sets the policy of forwarded packets to drop; accept the pod ranges in the chain DOCKER-USER",
        ),
    ];
    programs
        .into_iter()
        .filter(|(found, ..)| *found)
        .map(|(_, name, remedy)| {
            Finding::new(Severity::Note, name, "it manages rules on this node, which may drop Service traffic", remedy)
        })
        .collect()
}

fn legacy(facts: &Facts) -> Option<Finding> {
    (!facts.legacy_tables.is_empty()).then(|| {
        Finding::new(
            Severity::Note,
            "legacy iptables",
            format!(
                "tables of legacy iptables are in use beside nftables ({}); nft does not show their rules",
                facts.legacy_tables.join(", ")
            ),
            "iptables-legacy-save shows them; a DROP there counts whatever nftables accepts",
        )
    })
}

/// See `docs/compatibility.md` for the versions.
fn nft(facts: &Facts) -> Option<Finding> {
    let version = facts.nft?;
    let (affected, problem) = match version {
        Version(1, 0, 6..10) => {
            (true, "it aborts when it loads (nft -f) a saved listing with session affinity over IPv6")
        }
        Version(1, 1, _) => (true, "it aborts when it lists a copy of our tables that was loaded from its own JSON"),
        _ => (false, ""),
    };
    affected.then(|| {
        Finding::new(
            Severity::Note,
            format!("nft {version}"),
            format!("{problem}; it lists the agent's own tables without a problem"),
            "don't restore the tables ip vmap-proxy and ip6 vmap-proxy from a saved listing: the agent makes them",
        )
    })
}

#[cfg(test)]
mod tests {
    use vmap_proxy_wire::nf_tables::all_chains::{AnyChain, AnyFamily};

    use super::*;
    use crate::netlink::Interface;

    fn chain(table: &str, name: &str) -> AnyChain {
        AnyChain { family: AnyFamily(2), table: table.to_owned(), name: name.to_owned(), base: None }
    }

    fn subjects(facts: &Facts) -> Vec<String> {
        check(facts).into_iter().map(|finding| finding.subject).collect()
    }

    #[test]
    fn what_kube_proxy_left_is_found_in_each_mode() {
        assert_eq!(subjects(&Facts::default()), Vec::<String>::new());
        let nodes = [
            Facts { chains: vec![chain("kube-proxy", "services")], ..Facts::default() },
            Facts { chains: vec![chain("nat", "KUBE-SERVICES")], ..Facts::default() },
            Facts {
                interfaces: vec![Interface { name: "kube-ipvs0".to_owned(), is_bridge: false }],
                ..Facts::default()
            },
            Facts { has_ipvs_servers: true, ..Facts::default() },
        ];
        for facts in &nodes {
            assert_eq!(subjects(facts), ["kube-proxy"], "{facts:?}");
        }
    }

    #[test]
    fn programs_that_write_rules_are_named() {
        let chains = vec![
            chain("firewalld", "filter_FORWARD"),
            chain("filter", "DOCKER-USER"),
            chain("filter", "ufw-user-forward"),
        ];
        let facts = Facts { chains, legacy_tables: vec!["ip nat".to_owned()], ..Facts::default() };
        assert_eq!(subjects(&facts), ["firewalld", "ufw", "Docker", "legacy iptables"]);
    }

    #[test]
    fn versions_of_nft_with_a_problem_are_named() {
        let with = |nft| subjects(&Facts { nft: Some(nft), ..Facts::default() });
        assert_eq!(with(Version(1, 0, 4)), Vec::<String>::new());
        assert_eq!(with(Version(1, 0, 6)), ["nft 1.0.6"]);
        assert_eq!(with(Version(1, 1, 3)), ["nft 1.1.3"]);
    }
}
