//! Which endpoints of a service port serve, and why the others do not.

use std::collections::{BTreeMap, HashMap};

use super::Known;
use super::answer::{Cause, Code, Decision, EndpointLeftOut, EndpointUse, MAX_LISTED};
use super::fields::{decision, no_slice, of_slice, port_text};
use crate::model::Endpoint;
use crate::model::slice::{Hints, Slice};
use crate::model::store::ServiceEntry;
use crate::model::types::{ServiceName, ServicePort};
use crate::ruleset::Family;
use crate::select::{Joins, Judged, Unused, Used, Viewpoint, judge};
use crate::words::count;

/// The list that a packet's endpoint is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// Endpoints anywhere in the cluster.
    Cluster,
    /// Endpoints of this node.
    Local,
}

/// The endpoints of one service port as its slices list them.
pub(super) struct PortEndpoints<'a> {
    known: &'a Known<'a>,
    entry: &'a ServiceEntry,
    name: &'a ServiceName,
    port: &'a ServicePort,
    family: Family,
    judged: Vec<Judged<'a>>,
    names: HashMap<*const Slice, &'a str>,
}

impl<'a> PortEndpoints<'a> {
    pub(super) fn of(
        known: &'a Known<'a>,
        (name, entry): (&'a ServiceName, &'a ServiceEntry),
        port: &'a ServicePort,
        family: Family,
    ) -> Self {
        let config = known.planner.config();
        let viewpoint = Viewpoint { node_name: &config.node_name, zone: known.store.node().zone.as_deref() };
        let judged = judge(port, &Joins::new(family, entry.slices()), viewpoint);
        let names = entry.named_slices().map(|(name, slice)| (std::ptr::from_ref(slice), &**name)).collect();
        Self { known, entry, name, port, family, judged, names }
    }

    fn slice_name(&self, slice: &Slice) -> &'a str {
        self.names.get(&std::ptr::from_ref(slice)).copied().unwrap_or_default()
    }

    fn verdict(list: List, judged: &Judged<'_>) -> Result<Used, Unused> {
        match list {
            List::Cluster => judged.cluster,
            List::Local => judged.local,
        }
    }

    /// The endpoints that a list serves, for a Service that is not asked about
    /// with a packet.
    pub(super) fn served(&self, list: List) -> BTreeMap<Endpoint, bool> {
        let served = self.judged.iter().filter(|judged| Self::verdict(list, judged).is_ok());
        served.map(|judged| (judged.address, false)).collect()
    }

    /// The endpoints that a packet may reach, each with whether it is
    /// masqueraded; with the field that lets it serve, if it is wanted.
    pub(super) fn uses(&self, list: List, reached: &BTreeMap<Endpoint, bool>, with_causes: bool) -> Vec<EndpointUse> {
        let judged: HashMap<Endpoint, &Judged<'_>> =
            self.judged.iter().filter(|one| Self::verdict(list, one).is_ok()).map(|one| (one.address, one)).collect();
        let answer = |(address, masqueraded): (&Endpoint, &bool)| {
            let found = judged.get(address);
            let used = found.and_then(|judged| Self::verdict(list, judged).ok());
            EndpointUse {
                address: address.address,
                port: address.port,
                one_in: reached.len(),
                masqueraded: *masqueraded,
                local: found.is_some_and(|judged| judged.entry.local),
                used,
                cause: found.zip(used).filter(|_| with_causes).map(|(judged, used)| self.cause_of_use(judged, used)),
            }
        };
        reached.iter().take(MAX_LISTED).map(answer).collect()
    }

    fn field(&self, judged: &Judged<'_>, field: &str, value: impl ToString) -> Cause {
        of_slice(self.slice_name(judged.slice), format!("endpoints[{}].{field}", judged.entry.index), value)
    }

    fn cause_of_use(&self, judged: &Judged<'_>, used: Used) -> Cause {
        let zone = self.known.store.node().zone.as_deref().unwrap_or_default();
        match used {
            Used::Ready => self.field(judged, "conditions.ready", true),
            Used::HintOfNode => self.field(judged, "hints.forNodes", &self.known.planner.config().node_name),
            Used::HintOfZone => self.field(judged, "hints.forZones", zone),
            Used::Terminating => self.field(judged, "conditions.serving", true),
        }
    }

    /// The endpoints that slices list and that a list does not serve, and the
    /// number of them.
    pub(super) fn unused(&self, list: List) -> (Vec<EndpointLeftOut>, usize) {
        let unused = || self.judged.iter().filter_map(|one| Some((one, Self::verdict(list, one).err()?)));
        let answer = |(judged, unused): (&Judged<'_>, Unused)| {
            let (text, cause) = self.exclusion(judged, unused);
            let Endpoint { address, port } = judged.address;
            EndpointLeftOut { address, port, unused, text, cause }
        };
        (unused().take(MAX_LISTED).map(answer).collect(), unused().count())
    }

    fn exclusion(&self, judged: &Judged<'_>, unused: Unused) -> (String, Cause) {
        let node = &self.known.planner.config().node_name;
        let zone = self.known.store.node().zone.as_deref().unwrap_or_default();
        let hints = |list: fn(&Hints) -> &Vec<String>| {
            judged.entry.hints.map(|hints| list(hints).join(",")).unwrap_or_default()
        };
        match unused {
            Unused::NotReady => {
                let draining = if judged.entry.terminating { " and terminates" } else { "" };
                (format!("is not ready{draining}"), self.field(judged, "conditions.ready", false))
            }
            Unused::Terminating => {
                ("terminates, and others are ready".to_owned(), self.field(judged, "conditions.terminating", true))
            }
            Unused::OtherNode => (format!("is not on {node}"), self.field(judged, "nodeName", format!("(not {node})"))),
            Unused::HintOfOtherNode => (
                format!("its hints do not name the node {node}"),
                self.field(judged, "hints.forNodes", hints(|hints| &hints.nodes)),
            ),
            Unused::HintOfOtherZone => (
                format!("its hints do not name the zone {zone} of this node"),
                self.field(judged, "hints.forZones", hints(|hints| &hints.zones)),
            ),
            Unused::Duplicate => (
                "is listed again; the other entry counts".to_owned(),
                self.field(judged, "addresses[0]", judged.address.address),
            ),
        }
    }

    /// How the endpoints of a list were chosen.
    pub(super) fn choice(&self, list: List) -> Option<Decision> {
        let used = || self.judged.iter().filter_map(|one| Some((one, Self::verdict(list, one).ok()?)));
        let (first, kind) = used().find(|(_, used)| *used != Used::Ready).or_else(|| used().next())?;
        let number = count(used().count(), "endpoint");
        let cause = self.cause_of_use(first, kind);
        Some(match kind {
            Used::Ready => decision(Code::Ready, format!("{number}, ready"), [cause]),
            Used::HintOfNode => decision(
                Code::HintOfNode,
                format!("every ready endpoint has a hint of a node: {number} for this node"),
                [cause],
            ),
            Used::HintOfZone => decision(
                Code::HintOfZone,
                format!("every ready endpoint has a hint of a zone: {number} for the zone of this node"),
                [cause, self.known.zone()],
            ),
            Used::Terminating => decision(
                Code::Terminating,
                format!("no endpoint is ready, so {number} that still serve while they terminate are used"),
                [cause],
            ),
        })
    }

    /// Why there is no endpoint at all.
    pub(super) fn none_at_all(&self) -> Decision {
        let port = port_text(self.port);
        let service = format!("Service {}", self.name);
        if !self.judged.is_empty() {
            let number = count(self.judged.len(), "endpoint");
            let text = format!("{service} {port} has {number}, and none is ready: the packet is refused");
            let excluded = self.judged.iter().filter_map(|one| Some((one, one.cluster.err()?)));
            let causes = excluded.take(3).map(|(one, unused)| self.exclusion(one, unused).1);
            return decision(Code::NoEndpoint, text, causes);
        }
        let slices = self.slices();
        let causes: Vec<Cause> = slices.iter().flat_map(|note| note.causes.iter().take(1)).take(3).cloned().collect();
        let text = match slices.first() {
            Some(note) => format!("{service} {port} has no endpoint, and the packet is refused: {}", note.text),
            None => format!("{service} {port} has no endpoint: the packet is refused"),
        };
        decision(Code::NoEndpoint, text, causes)
    }

    /// The slices of the Service that have no part in this port, and why.
    pub(super) fn slices(&self) -> Vec<Decision> {
        let mut notes = Vec::new();
        let port = self.port;
        for (name, slice) in self.entry.named_slices() {
            if slice.family() != self.family {
                let text = format!("EndpointSlice {name} holds {} addresses", slice.family());
                notes.push(decision(Code::OtherFamily, text, [of_slice(name, "addressType", slice.family())]));
            } else if slice.endpoints.is_empty() {
                let text = format!("EndpointSlice {name} lists no usable endpoint: the selector matches no pod");
                notes.push(decision(Code::EmptySlice, text, [of_slice(name, "endpoints", "[]")]));
            } else if !slice.ports.iter().any(|one| one.name == port.name && one.protocol == port.protocol) {
                notes.push(self.other_port(name, slice));
            }
            if notes.len() == MAX_LISTED {
                break;
            }
        }
        if self.entry.slices().next().is_none() {
            let text = format!(
                "no EndpointSlice belongs to Service {}: it has no selector, or nothing made slices for it",
                self.name
            );
            notes.push(decision(Code::NoSlice, text, [no_slice(self.name)]));
        }
        notes
    }

    fn other_port(&self, name: &str, slice: &Slice) -> Decision {
        let port = self.port;
        let wanted = format!("{:?}/{}", &*port.name, port.protocol);
        let have: Vec<String> = slice.ports.iter().map(|one| format!("{:?}/{}", &*one.name, one.protocol)).collect();
        let text = match have.is_empty() {
            true => format!("EndpointSlice {name} has no usable port: targetPort names no port of the pods"),
            false => format!("EndpointSlice {name} has no port {wanted}, only {}", have.join(", ")),
        };
        let cause = match slice.ports.iter().find(|one| one.protocol == port.protocol).or(slice.ports.first()) {
            None => of_slice(name, "ports", "[]"),
            Some(other) if other.protocol != port.protocol && other.name == port.name => {
                of_slice(name, format!("ports[{}].protocol", other.index), other.protocol)
            }
            Some(other) => of_slice(name, format!("ports[{}].name", other.index), &other.name),
        };
        decision(Code::OtherPort, text, [cause])
    }
}
