//! The flow table does what it is meant to do, and is not used where it must not
//! be.

use vmap_proxy_wire::nf_tables::flow_table::FLOWS_TABLE;

use crate::doctor::facts::Facts;
use crate::doctor::{Finding, Severity};
use crate::lists::some_of;

const SUBJECT: &str = "flow table";

const ACCOUNTING: &str = "net/netfilter/nf_conntrack_acct";

/// Flow tables that one finding names.
const NAMED: usize = 3;

/// The remedy where it must not be used.
const SWITCH_OFF: &str = "remove nftables.flowTable.interfaces (--nftables-flow-table-interfaces)";

/// Networks whose own programs forward packets and apply policies before, or in
/// the place of, the kernel's rules, and an interface that only they make.
const OTHER_WAYS: [(&str, &str); 2] = [("cilium_host", "Cilium"), ("bpfin.cali", "Calico's eBPF data plane")];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let exists = facts.flow_tables.iter().any(|table| table.table == FLOWS_TABLE);
    if !exists && !facts.wants_flow_table {
        return Vec::new();
    }
    let mut findings = Vec::new();
    findings.extend(missing(facts, exists));
    findings.extend(accounting(facts));
    findings.extend(other_ways(facts));
    findings.extend(others(facts));
    findings
}

/// The configuration wants one, and there is none.
fn missing(facts: &Facts, exists: bool) -> Option<Finding> {
    if exists {
        return None;
    }
    if let Some(error) = &facts.flow_table_refused {
        let remedy = "load the modules, or boot a kernel with these options; without, everything works, but not faster";
        let finding = format!("the configuration wants one, but {error}");
        return Some(Finding::new(Severity::Warning, SUBJECT, finding, remedy));
    }
    facts.agent.answer().filter(|agent| agent.status.ready).map(|_| {
        let finding = "the configuration wants one, and the running agent has none";
        Finding::new(
            Severity::Warning,
            SUBJECT,
            finding,
            "read the agent's log; was it started with this configuration?",
        )
    })
}

/// Without accounting, connections count no packets, and none ever gets in.
fn accounting(facts: &Facts) -> Option<Finding> {
    (facts.number(ACCOUNTING) == Some(0)).then(|| {
        Finding::new(
            Severity::Warning,
            "net.netfilter.nf_conntrack_acct",
            "it is 0, so new connections count no packets and never get into the flow table, which switched it on",
            "set it to 1, and remove what sets it to 0 (a file in /etc/sysctl.d?)",
        )
    })
}

fn other_ways(facts: &Facts) -> Option<Finding> {
    let has = |name: &str| facts.interfaces.iter().any(|interface| interface.name == name);
    let (_, network) = OTHER_WAYS.into_iter().find(|(interface, _)| has(interface))?;
    let finding = format!(
        "{network} forwards packets by programs of its own; connections in a flow table may bypass its policies, and get \
         no faster"
    );
    Some(Finding::new(Severity::Warning, SUBJECT, finding, SWITCH_OFF))
}

fn others(facts: &Facts) -> Option<Finding> {
    let others = facts.flow_tables.iter().filter(|table| table.table != FLOWS_TABLE);
    let names: Vec<String> =
        others.map(|table| format!("{} in table {} {}", table.name, table.family, table.table)).collect();
    (!names.is_empty()).then(|| {
        let finding = format!(
            "another program has flow tables, too: {}; each connection is in the one whose rule comes first",
            some_of(&names, NAMED)
        );
        Finding::new(
            Severity::Note,
            SUBJECT,
            finding,
            "use one of them; Calico's is switched off in its FelixConfiguration",
        )
    })
}

#[cfg(test)]
mod tests {
    use vmap_proxy_wire::nf_tables::all_chains::{AnyFamily, AnyFlowTable};

    use super::*;
    use crate::doctor::facts::{Agent, AgentFact};
    use crate::netlink::Interface;
    use crate::query::protocol::StatusAnswer;

    fn table(table: &str) -> AnyFlowTable {
        AnyFlowTable { family: AnyFamily(1), table: table.to_owned(), name: "ft".to_owned() }
    }

    fn found(facts: Facts) -> Vec<String> {
        check(&facts).into_iter().map(|finding| finding.finding).collect()
    }

    #[test]
    fn nothing_is_checked_unless_it_is_wanted() {
        let settings = || [(ACCOUNTING.to_owned(), "0".to_owned())].into();
        assert_eq!(check(&Facts { settings: settings(), ..Facts::default() }), []);
        let facts = Facts { settings: settings(), flow_tables: vec![table(FLOWS_TABLE)], ..Facts::default() };
        assert_eq!(check(&facts)[0].subject, "net.netfilter.nf_conntrack_acct");
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = Facts {
            wants_flow_table: true,
            flow_table_refused: Some("this kernel lacks flow tables".to_owned()),
            ..Facts::default()
        };
        assert!(found(refused)[0].contains("this kernel lacks flow tables"));
        let agent = StatusAnswer { ready: true, ..StatusAnswer::default() };
        let without = Facts {
            wants_flow_table: true,
            agent: AgentFact::Answers(Box::new(Agent { status: agent, without_endpoints: Ok(Vec::new()) })),
            ..Facts::default()
        };
        assert!(found(without)[0].contains("the running agent has none"));
        assert_eq!(check(&Facts { wants_flow_table: true, ..Facts::default() }), []);
    }

    #[test]
    fn networks_and_flow_tables_of_others_are_named() {
        let interface = |name: &str| Interface { name: name.to_owned(), is_bridge: false };
        for (name, network) in [("cilium_host", "Cilium"), ("bpfin.cali", "Calico")] {
            let facts = Facts { wants_flow_table: true, interfaces: vec![interface(name)], ..Facts::default() };
            assert!(found(facts)[0].contains(network));
        }
        let flow_tables = vec![table(FLOWS_TABLE), table("calico")];
        let facts = Facts { interfaces: vec![interface("eth0")], flow_tables, ..Facts::default() };
        assert!(found(facts)[0].contains("ft in table inet calico"));
    }
}
