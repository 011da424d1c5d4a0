//! The elements of one packet's frontend as the kernel has them, and what they do
//! with the packet: to be compared with the agent's answer, or to have one
//! without an agent.
//!
//! Only look-ups by key, so that the work does not grow with the cluster.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vmap_proxy_compiler::evaluate::{Evaluator, Host, Packet, Verdict};
use vmap_proxy_compiler::explain::answer::{Explanation, Fate};
use vmap_proxy_compiler::model::Endpoint;
use vmap_proxy_compiler::plan::excerpt::Flow;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, ListNumber, Verdict as ElementVerdict};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::skeleton::SkeletonConfig;
use vmap_proxy_compiler::ruleset::spread::Spread;
use vmap_proxy_compiler::ruleset::table::{Ruleset, Table};
use vmap_proxy_compiler::ruleset::target::{Domain, FrontendKey, Pool, Target};
use vmap_proxy_compiler::words::count;
use vmap_proxy_wire::nf_tables::OwnTable;
use vmap_proxy_wire::nf_tables::table_state::ChainFault;

use crate::netlink::{Kernel, NetlinkError};

/// The fate of a packet by the kernel's own elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelAnswer {
    /// Whether our table of this family exists.
    pub table: bool,
    /// The fate of the packet.
    pub verdict: Fate,
    /// The endpoints that it may reach.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Those that see an address of this node.
    pub masqueraded: BTreeSet<SocketAddr>,
    /// The service port, as the comment of an element names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The endpoint that this client stays with, if it is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered: Option<SocketAddr>,
    /// The differences from the agent's answer, or from the rules that this
    /// configuration makes.
    pub differences: Vec<String>,
}

/// Reads what the kernel does with a packet.
///
/// # Errors
/// If the kernel can't be read.
pub fn read(
    kernel: &mut Kernel,
    rules: &SkeletonConfig,
    packet: &Packet,
    local_addresses: Vec<IpAddr>,
) -> Result<KernelAnswer, NetlinkError> {
    let family = Family::of(packet.destination);
    let Some(table) = kernel.read_table(OwnTable::Main, family)? else { return Ok(without_table(family)) };
    // All chains, as `verify` does: a packet's way goes through those for numbers of endpoints, for affinity and for
    // source ranges, too, and a wrong rule there may lose it. Their number is bounded.
    let difference = |(chain, fault)| match fault {
        ChainFault::Missing => format!("the kernel lacks chain {chain}"),
        ChainFault::Differs => format!("chain {chain} of the kernel is not the one that this configuration makes"),
    };
    let differences = table.wrong_chains(rules).map(difference).collect();
    let mut reading = Reading { kernel, family, elements: Vec::new() };
    reading.all_of(packet)?;
    let remembered = reading.remembered(packet.source)?;
    let owner = reading.elements.iter().find_map(|element| element.comment.as_deref().map(str::to_owned));
    let ruleset = Ruleset { tables: vec![Table::new(rules.clone(), reading.elements)] };
    let outcome = Evaluator::new(&ruleset, Host { local_addresses, bridges: Vec::new() }).evaluate(packet);
    let (verdict, endpoints) = match outcome.verdict {
        Verdict::Dnat { endpoints } => (Fate::Dnat, endpoints),
        Verdict::Inconsistent { endpoints, .. } => (Fate::Inconsistent, endpoints),
        Verdict::Drop => (Fate::Drop, BTreeSet::new()),
        Verdict::Reject => (Fate::Reject, BTreeSet::new()),
        Verdict::Pass => (Fate::Pass, BTreeSet::new()),
    };
    let addresses = |endpoints: &BTreeSet<Endpoint>| endpoints.iter().map(socket_address).collect();
    Ok(KernelAnswer {
        table: true,
        verdict,
        endpoints: addresses(&endpoints),
        masqueraded: addresses(&outcome.masqueraded),
        owner,
        remembered,
        differences,
    })
}

fn socket_address(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port)
}

fn without_table(family: Family) -> KernelAnswer {
    KernelAnswer {
        table: false,
        verdict: Fate::Pass,
        endpoints: BTreeSet::new(),
        masqueraded: BTreeSet::new(),
        owner: None,
        remembered: None,
        differences: vec![format!(
            "the kernel has no table {} vmap-proxy: no agent has programmed it",
            family.keyword()
        )],
    }
}

impl KernelAnswer {
    /// Adds what differs from the agent's answer.
    pub fn compare(&mut self, agent: &Explanation) {
        if self.verdict != agent.verdict {
            self.differences
                .push(format!("the kernel's verdict is {:?}, the agent's {:?}", self.verdict, agent.verdict));
        }
        let of_agent = |masqueraded: bool| -> BTreeSet<SocketAddr> {
            let endpoints = agent.endpoints.iter().filter(|one| !masqueraded || one.masqueraded);
            endpoints.map(|one| SocketAddr::new(one.address, one.port)).collect()
        };
        // A long answer is cut, and can't be compared one by one.
        if agent.endpoint_count > agent.endpoints.len() {
            if self.endpoints.len() != agent.endpoint_count {
                let (kernel, agent) = (self.endpoints.len(), agent.endpoint_count);
                self.differences.push(format!("the kernel has {}, the agent {agent}", count(kernel, "endpoint")));
            }
            return;
        }
        let wanted = of_agent(false);
        self.differences
            .extend(wanted.difference(&self.endpoints).map(|one| format!("the kernel lacks endpoint {one}")));
        let foreign = self.endpoints.difference(&wanted);
        self.differences.extend(foreign.map(|one| format!("the kernel has endpoint {one}, the agent does not")));
        for one in of_agent(true).symmetric_difference(&self.masqueraded) {
            if wanted.contains(one) && self.endpoints.contains(one) {
                self.differences.push(format!("kernel and agent differ in whether {one} sees an address of this node"));
            }
        }
    }
}

/// The elements read so far.
struct Reading<'k> {
    kernel: &'k mut Kernel,
    family: Family,
    elements: Vec<Element>,
}

impl Reading<'_> {
    /// Everything that the packet can meet, but for what clients learned.
    fn all_of(&mut self, packet: &Packet) -> Result<(), NetlinkError> {
        let Packet { source, destination, protocol, port, .. } = *packet;
        let flow = Flow { source, destination, protocol, port };
        for target in flow.targets() {
            self.of_target(target)?;
        }
        self.source_ranges(source, FrontendKey { address: destination, protocol, port })?;
        self.look_up(Map::NodePortIps, &[Key::Address(destination)])?;
        self.look_up(Map::ClusterIps, &[Key::Address(destination)])?;
        let (ranges, _) = self.kernel.read_contents(self.family, Map::ServiceCidrs)?;
        self.elements.extend(ranges.into_iter().map(|state| state.element));
        self.behind(&flow)
    }

    fn look_up(&mut self, map: Map, keys: &[Key]) -> Result<(), NetlinkError> {
        if keys.is_empty() {
            return Ok(());
        }
        let (found, _) = self.kernel.look_up(self.family, map, keys)?;
        self.elements.extend(found.into_iter().map(|state| state.element));
        Ok(())
    }

    /// The elements of a frontend or NodePort, with its endpoints.
    fn of_target(&mut self, target: Target) -> Result<(), NetlinkError> {
        let domain = target.domain();
        let begin = self.elements.len();
        for map in [
            Map::Frontends(domain),
            Map::LocalFrontends(domain),
            Map::ShortCircuit(domain),
            Map::NoEndpoints(domain),
            Map::Masquerade(domain),
            Map::LocalPolicy(domain),
            Map::AffinityLists(domain, Pool::Main),
            Map::AffinityLists(domain, Pool::ShortCircuit),
        ] {
            self.look_up(map, &[Key::Target(target)])?;
        }
        let balancing: BTreeSet<(Domain, Pool, u32)> = self.elements[begin..].iter().filter_map(slots).collect();
        for (domain, pool, count) in balancing {
            let keys: Vec<Key> = (0..count).map(|slot| Key::Slot(target, slot)).collect();
            // Of a list that is not full some slots are missing.
            self.look_up(Map::Endpoints(domain, pool), &keys)?;
        }
        let numbers: Vec<Key> = self.elements[begin..].iter().filter_map(number).map(Key::List).collect();
        self.look_up(Map::AffinityTimeouts, &numbers)
    }

    fn source_ranges(&mut self, source: IpAddr, frontend: FrontendKey) -> Result<(), NetlinkError> {
        let begin = self.elements.len();
        self.look_up(Map::FirewallIps, &[Key::Target(Target::Frontend(frontend))])?;
        if self.elements.len() == begin {
            return Ok(());
        }
        let bits = if source.is_ipv4() { 32 } else { 128 };
        let prefixes = (1..=bits).filter_map(|length| IpNet::new(source, length).ok());
        let keys: Vec<Key> = prefixes.map(|prefix| Key::SourceRange(frontend, prefix.trunc())).collect();
        self.look_up(Map::SourceRanges, &keys)?;
        self.look_up(Map::SourceRangeMarkers, &keys)
    }

    /// The elements that can stop a packet on its way to an endpoint.
    fn behind(&mut self, flow: &Flow) -> Result<(), NetlinkError> {
        let endpoints: BTreeSet<Endpoint> = self.elements.iter().filter_map(endpoint).collect();
        let addresses: BTreeSet<IpAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        let keys: Vec<Key> = addresses.into_iter().map(Key::Address).collect();
        self.look_up(Map::ClusterIps, &keys)?;
        let (mut frontends, mut node_ports) = (Vec::new(), BTreeSet::new());
        for endpoint in &endpoints {
            let translated = Flow { destination: endpoint.address, port: endpoint.port, ..*flow };
            let [frontend, node_port] = translated.targets();
            frontends.push(Key::Target(frontend));
            node_ports.insert(Key::Target(node_port));
        }
        self.look_up(Map::NoEndpoints(Domain::Frontend), &frontends)?;
        self.look_up(Map::NoEndpoints(Domain::NodePort), &node_ports.into_iter().collect::<Vec<_>>())?;
        let own = endpoints.iter().filter(|endpoint| endpoint.address == flow.source);
        let hairpins: Vec<Key> = own.map(|endpoint| Key::Hairpin(*endpoint, flow.protocol)).collect();
        self.look_up(Map::HairpinConnections, &hairpins)?;
        // The elements of the destination itself may be found again.
        self.elements.sort_unstable_by_key(|element| (element.map, element.key));
        self.elements.dedup_by_key(|element| (element.map, element.key));
        Ok(())
    }

    /// The endpoint that a client stays with.
    fn remembered(&mut self, client: IpAddr) -> Result<Option<SocketAddr>, NetlinkError> {
        let numbers: BTreeSet<ListNumber> = self.elements.iter().filter_map(number).collect();
        let keys: Vec<Key> = numbers.into_iter().map(|number| Key::Affinity(client, number)).collect();
        if keys.is_empty() {
            return Ok(None);
        }
        let (found, _) = self.kernel.look_up(self.family, Map::Affinity, &keys)?;
        Ok(found.iter().find_map(|state| endpoint(&state.element)).map(|endpoint| socket_address(&endpoint)))
    }
}

fn slots(element: &Element) -> Option<(Domain, Pool, u32)> {
    match element.data {
        Data::Verdict(ElementVerdict::Goto(Chain::Balance { domain, pool, spread, .. })) => match spread {
            Spread::Exactly(count) | Spread::AtMost(count) => Some((domain, pool, count)),
        },
        _ => None,
    }
}

fn number(element: &Element) -> Option<ListNumber> {
    match element.data {
        Data::List(number) => Some(number),
        _ => None,
    }
}

fn endpoint(element: &Element) -> Option<Endpoint> {
    match element.data {
        Data::Endpoint(endpoint) => Some(endpoint),
        _ => None,
    }
}
