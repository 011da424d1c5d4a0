//! The facts about a node that the checks use. Reading changes
//! nothing, and a fact that can't be read is an unknown one, not an error.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::IpNet;
use vmap_proxy_wire::nf_tables::all_chains::{
    AnyChain, AnyFlowTable, any_chain, any_flow_table, list_all_chains, list_all_flow_tables,
};
use vmap_proxy_wire::nf_tables::all_rules::{any_rule, list_rules_of};

use super::probe::{self, Probed};
use crate::netlink::SocketError;
use crate::netlink::socket::{Protocol, Socket};
use crate::netlink::{Interface, interfaces, without_ipv6};
use crate::query::protocol::StatusAnswer;

/// Chains of one table through which a search for a rule that drops goes, at most.
const MOST_FOLLOWED: usize = 64;

/// The kubelet's chain on nearly every node: drops packets to 127.0.0.0/8 from elsewhere,
/// and none that was translated.
const CHAIN_OF_KUBELET: &str = "KUBE-FIREWALL";

/// Where nft and others are installed, whatever the user's `PATH` is.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// A node.
#[derive(Debug, Default)]
pub struct Facts {
    /// Kernel settings: paths below `/proc/sys` with their content. Absent ones
    /// do not exist here.
    pub settings: BTreeMap<String, String>,
    /// The number of connections that conntrack follows.
    pub tracked_connections: Option<u64>,
    /// The interfaces of this network namespace.
    pub interfaces: Vec<Interface>,
    /// The tables of legacy iptables, `ip` or `ip6` first.
    pub legacy_tables: Vec<String>,
    /// Whether IPVS has virtual servers.
    pub has_ipvs_servers: bool,
    /// The chains of all nftables tables.
    pub chains: Vec<AnyChain>,
    /// The reason why the chains can't be listed.
    pub chains_unknown: Option<String>,
    /// The flow tables of all nftables tables.
    pub flow_tables: Vec<AnyFlowTable>,
    /// Whether the configuration wants a flow table.
    pub wants_flow_table: bool,
    /// The reason why the kernel can't have a wanted one.
    pub flow_table_refused: Option<String>,
    /// Whether the kernel takes our rules.
    pub rules: Probed,
    /// The reason why the node has no IPv6; `None` if it has.
    pub without_ipv6: Option<&'static str>,
    /// The version of the nft program of this node, if it has one.
    pub nft: Option<Version>,
    /// `clusterCIDR` of the configuration.
    pub cluster_cidrs: Vec<IpNet>,
    /// The running agent.
    pub agent: AgentFact,
}

/// What is known of an agent on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AgentFact {
    /// Nobody asked for one.
    #[default]
    NotAsked,
    /// There is none at this socket.
    None(PathBuf),
    /// There is one, and it does not answer, for this reason.
    Silent(String),
    /// Its state.
    Answers(Box<Agent>),
}

impl AgentFact {
    /// The state of one that answers.
    pub fn answer(&self) -> Option<&Agent> {
        if let Self::Answers(agent) = self { Some(agent) } else { None }
    }
}

/// The state of a running agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its state.
    pub status: StatusAnswer,
    /// The Services of which a port has no endpoint, in the order of their names;
    /// or the reason why the agent did not list them.
    pub without_endpoints: Result<Vec<String>, String>,
}

/// The version of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The settings that checks ask for.
const SETTINGS: [&str; 10] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_acct",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
];

impl Facts {
    /// Reads this node, in the network namespace of the calling thread. Does not
    /// ask the agent.
    pub async fn read(cluster_cidrs: Vec<IpNet>, wants_flow_table: bool) -> Self {
        let files = Files { root: "/".into() };
        let (chains, chains_unknown) = match chains() {
            Ok(chains) => (chains, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        Self {
            settings: files.settings(),
            tracked_connections: files.text("proc/sys/net/netfilter/nf_conntrack_count").and_then(|n| n.parse().ok()),
            interfaces: interfaces().await.unwrap_or_default(),
            legacy_tables: files.legacy_tables(),
            has_ipvs_servers: files.has_ipvs_servers(),
            chains,
            chains_unknown,
            flow_tables: flow_tables().unwrap_or_default(),
            wants_flow_table,
            flow_table_refused: if wants_flow_table { probe::flow_table() } else { None },
            rules: probe::rules(),
            without_ipv6: without_ipv6(),
            nft: nft_version(),
            cluster_cidrs,
            agent: AgentFact::NotAsked,
        }
    }

    /// The number that a setting has.
    pub(super) fn number(&self, setting: &str) -> Option<u64> {
        self.settings.get(setting)?.parse().ok()
    }
}

/// The kernel's files.
struct Files {
    root: PathBuf,
}

impl Files {
    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let read = |name: &&str| Some(((*name).to_owned(), self.text(&format!("proc/sys/{name}"))?));
        SETTINGS.iter().filter_map(read).collect()
    }

    fn legacy_tables(&self) -> Vec<String> {
        let tables = [("ip", "proc/net/ip_tables_names"), ("ip6", "proc/net/ip6_tables_names")];
        let of = |(family, path): (&str, &str)| {
            let text = self.text(path).unwrap_or_default();
            text.lines().map(|table| format!("{family} {table}")).collect::<Vec<_>>()
        };
        tables.into_iter().flat_map(of).collect()
    }

    /// Behind a heading of three lines there is a line for each server.
    fn has_ipvs_servers(&self) -> bool {
        self.text("proc/net/ip_vs").is_some_and(|text| text.lines().count() > 3)
    }
}

/// The chains of all tables.
pub(crate) fn chains() -> Result<Vec<AnyChain>, SocketError> {
    Socket::open(Protocol::Netfilter)?.list(&list_all_chains(), any_chain)
}

/// The rule, or a rule behind it, that drops packets in a chain of any table: the name of
/// its chain. Follows jumps through [`MOST_FOLLOWED`] chains; `None` if none is found.
pub(crate) fn dropping_chain(chain: &AnyChain) -> Result<Option<String>, SocketError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let (mut ahead, mut seen) = (vec![chain.name.clone()], HashSet::new());
    while let Some(name) = ahead.pop() {
        if seen.len() == MOST_FOLLOWED || name == CHAIN_OF_KUBELET || !seen.insert(name.clone()) {
            continue;
        }
        let rules = socket.list(&list_rules_of(chain.family, &chain.table, &name), any_rule)?;
        for rule in rules.into_iter().filter(|rule| rule.table == chain.table && rule.chain == name) {
            if rule.drops {
                return Ok(Some(name));
            }
            ahead.extend(rule.leads_to);
        }
    }
    Ok(None)
}

fn flow_tables() -> Result<Vec<AnyFlowTable>, SocketError> {
    Socket::open(Protocol::Netfilter)?.list(&list_all_flow_tables(), any_flow_table)
}

fn nft_version() -> Option<Version> {
    let program = PROGRAM_FOLDERS.iter().map(|folder| Path::new(folder).join("nft")).find(|path| path.exists())?;
    let output = Command::new(program).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Reads a line such as `nftables v1.0.6 (Lester Gooch #5)`.
fn parse_version(text: &str) -> Option<Version> {
    let number = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
    Some(Version(parts.next()??, parts.next()??, parts.next().flatten().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/sys/net/ipv4/ip_forward", "1\n");
        write("proc/sys/net/netfilter/nf_conntrack_count", "77\n");
        write("proc/net/ip_tables_names", "filter\nnat\n");
        write(
            "proc/net/ip_vs",
            "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\nTCP  0A600001:01BB rr\n",
        );
        let files = Files { root: root.path().to_owned() };
        assert_eq!(files.settings(), BTreeMap::from([("net/ipv4/ip_forward".to_owned(), "1".to_owned())]));
        assert_eq!(files.legacy_tables(), ["ip filter", "ip nat"]);
        assert!(files.has_ipvs_servers());
    }

    #[test]
    fn nft_prints_its_version() {
        assert_eq!(parse_version("nftables v1.0.6 (Lester Gooch #5)\n"), Some(Version(1, 0, 6)));
        assert_eq!(parse_version("nftables v1.1 (Commodore)"), Some(Version(1, 1, 0)));
        assert_eq!(parse_version("sh: not found"), None);
    }
}
