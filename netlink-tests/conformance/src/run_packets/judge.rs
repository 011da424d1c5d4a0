//! Turns the packets of one phase into connections until their fate is known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vmap_proxy_lab::{self as lab, Lab, LabError, ProbeResult};

use super::stage::{self, Stage};
use crate::schema::{Probe, Verdict};

/// Longest wait for an answer. Below one second, a TCP SYN is not sent again, so a lost packet is noticed.
const ANSWER_LIMIT: Duration = Duration::from_millis(950);
/// The silence after which a packet counts as dropped.
const SILENCE: Duration = Duration::from_millis(300);
/// Connections of a sticky client.
const STICKY_CONNECTIONS: usize = 12;
/// Connections for outcomes that leave no choice.
const PLAIN_CONNECTIONS: usize = 2;

/// One packet of a phase and what became of its connections.
pub(super) struct Check<'v> {
    packet: &'v Probe,
    connections: usize,
    /// The number of answers of each endpoint.
    seen: BTreeMap<SocketAddr, usize>,
    complaint: Option<String>,
}

/// Makes connections for all packets of a phase, in rounds: all packets at once in each.
pub(super) fn run<'v>(stage: &Stage, packets: &'v [Probe]) -> Result<Vec<Check<'v>>, LabError> {
    let mut checks: Vec<Check<'_>> = packets.iter().map(Check::new).collect();
    let mut leaders = BTreeSet::new();
    // In a group with common affinity one packet goes first, so that there is something to stick to.
    let leads: Vec<bool> =
        packets.iter().map(|packet| packet.sticky_group.as_ref().is_none_or(|group| leaders.insert(group))).collect();
    for round in 0.. {
        let mut connections = Vec::new();
        for (index, check) in checks.iter().enumerate() {
            if round > 0 || leads[index] {
                connections.extend(std::iter::repeat_n((index, check.connection()), check.next_connections()));
            }
        }
        if connections.is_empty() && round > 0 {
            break;
        }
        let probes: Vec<lab::Probe> = connections.iter().map(|(_, probe)| *probe).collect();
        for ((index, _), result) in connections.iter().zip(stage.lab.probe_all(&probes)?) {
            checks[*index].note(&stage.lab, &result);
        }
    }
    checks.iter_mut().for_each(Check::complain_of_missing_endpoints);
    complain_of_split_groups(&mut checks);
    Ok(checks)
}

impl<'v> Check<'v> {
    fn new(packet: &'v Probe) -> Self {
        Self { packet, connections: 0, seen: BTreeMap::new(), complaint: None }
    }

    /// The packet.
    pub(super) fn packet(&self) -> &Probe {
        self.packet
    }

    /// The number of tried connections.
    pub(super) fn connections(&self) -> usize {
        self.connections
    }

    /// The defect, if any.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    fn connection(&self) -> lab::Probe {
        let Probe { from, to, expect, .. } = self.packet;
        let dropped = expect.verdict == Verdict::Drop;
        lab::Probe {
            source: from.ip,
            target: SocketAddr::new(to.ip, to.port),
            transport: stage::transport(to.proto),
            timeout: if dropped { SILENCE } else { ANSWER_LIMIT },
        }
    }

    /// Returns the number of connections in the next round; none once the result is certain.
    fn next_connections(&self) -> usize {
        if self.complaint.is_some() {
            return 0;
        }
        let endpoints = self.packet.expect.endpoints.len();
        let (at_least, at_most) = match self.packet.expect.verdict {
            // The first one alone: it is what the others stick to.
            Verdict::Dnat if self.packet.sticky && self.connections == 0 => (1, 1),
            Verdict::Dnat if self.packet.sticky => (STICKY_CONNECTIONS, STICKY_CONNECTIONS),
            // The chance to miss one of n fairly chosen endpoints in 60 + 16n tries is below one in a million
            // for every n up to 50, and n times the chance for a single one.
            Verdict::Dnat => (4 + 2 * endpoints, 60 + 16 * endpoints),
            Verdict::Drop | Verdict::Reject | Verdict::Pass => (PLAIN_CONNECTIONS, PLAIN_CONNECTIONS),
        };
        if self.connections < at_least {
            at_least - self.connections
        } else if self.seen.len() < endpoints && !self.packet.sticky {
            (2 * endpoints + 8).min(at_most.saturating_sub(self.connections))
        } else {
            0
        }
    }

    /// Takes note of one connection's fate.
    fn note(&mut self, lab: &Lab, result: &ProbeResult) {
        self.connections += 1;
        let wrong = match (self.packet.expect.verdict, result) {
            (Verdict::Dnat, ProbeResult::Answered { by, seen_source }) => {
                *self.seen.entry(*by).or_default() += 1;
                self.wrong_translation(lab, *by, *seen_source)
            }
            (Verdict::Pass, ProbeResult::Answered { by, seen_source }) => {
                let untouched = *by == self.connection().target && *seen_source == self.packet.from.ip;
                (!untouched).then(|| result.to_string())
            }
            (Verdict::Drop, ProbeResult::Silence) => None,
            (Verdict::Reject, unreachable) if unreachable.is_port_unreachable() => None,
            _ => Some(result.to_string()),
        };
        if let Some(wrong) = wrong {
            let number = self.connections;
            self.complaint.get_or_insert(format!("{wrong} (connection {number})"));
        }
    }

    /// Returns the defect of a delivery to `by` with the source address `seen`.
    fn wrong_translation(&self, lab: &Lab, by: SocketAddr, seen: IpAddr) -> Option<String> {
        let expect = &self.packet.expect;
        if by == self.connection().target && !expect.endpoints.contains(&by) {
            return Some(format!("passed untranslated, from {seen}"));
        }
        if !expect.endpoints.contains(&by) {
            return Some(format!("delivered to {by}, which is none of its endpoints"));
        }
        if self.packet.sticky && self.seen.len() > 1 {
            return Some(format!("went to {}, though sticky", self.seen_list()));
        }
        let sent = self.packet.from.ip;
        let kept = seen == sent;
        let by_node = lab.is_node_address(seen);
        // Towards the node itself there is no postrouting: both are right.
        if lab.is_node_address(by.ip()) && (kept || by_node) {
            return None;
        }
        let masquerade = expect.masquerade == Some(true) || expect.hairpin.contains(&by);
        match (masquerade, kept) {
            (true, true) => Some(format!("{by} saw {seen}: not masqueraded")),
            (true, false) if !by_node => Some(format!("{by} saw {seen}, which is no address of the node")),
            (false, false) => Some(format!("{by} saw {seen}: masqueraded")),
            _ => None,
        }
    }

    fn complain_of_missing_endpoints(&mut self) {
        let missing: Vec<String> = self
            .packet
            .expect
            .endpoints
            .iter()
            .filter(|endpoint| !self.seen.contains_key(*endpoint))
            .map(ToString::to_string)
            .collect();
        if self.complaint.is_none() && !self.packet.sticky && !missing.is_empty() {
            let missing = missing.join(", ");
            self.complaint =
                Some(format!("never reached {missing} in {} connections: {}", self.connections, self.seen_list()));
        }
    }

    fn seen_list(&self) -> String {
        let counts: Vec<String> = self.seen.iter().map(|(endpoint, count)| format!("{endpoint} x{count}")).collect();
        counts.join(", ")
    }
}

/// Packets of one group must have reached one pod. Within a family a pod has one address.
fn complain_of_split_groups(checks: &mut [Check<'_>]) {
    let mut pods: BTreeMap<(String, bool), BTreeSet<IpAddr>> = BTreeMap::new();
    let key = |check: &Check<'_>| {
        let group = check.packet.sticky_group.clone()?;
        Some((group, check.packet.to.ip.is_ipv4()))
    };
    for check in checks.iter() {
        if let Some(key) = key(check) {
            pods.entry(key).or_default().extend(check.seen.keys().map(SocketAddr::ip));
        }
    }
    for check in checks {
        let Some(pods) = key(check).and_then(|key| pods.get(&key)) else {
            continue;
        };
        if pods.len() > 1 {
            let list: Vec<String> = pods.iter().map(ToString::to_string).collect();
            let list = list.join(", ");
            check.complaint.get_or_insert(format!("its group reached several pods: {list}"));
        }
    }
}
