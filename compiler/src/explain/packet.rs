//! One packet: its verdict, the decisions behind it, and its endpoints.

use std::collections::BTreeMap;

use super::Known;
use super::answer::{Code, Decision, Explanation, Fate, MAX_LISTED, PortName, Question, Step, VERSION};
use super::decisions::{Serving, Story};
use super::endpoints::{List, PortEndpoints};
use super::fields::{created, decision, of_address, of_configuration, of_service, port_name};
use super::service;
use crate::evaluate::{Evaluator, Outcome, Packet, TraceStep, Verdict};
use crate::model::Endpoint;
use crate::model::types::ServiceName;
use crate::plan::claims::Reason;
use crate::plan::excerpt::Flow;
use crate::ruleset::Family;
use crate::ruleset::service::Claim;
use crate::ruleset::target::Target;

pub(super) fn explain(known: &Known<'_>, packet: &Packet, about: Option<&ServiceName>) -> Explanation {
    let Packet { source, destination, protocol, port, .. } = *packet;
    let flow = Flow { source, destination, protocol, port };
    let ruleset = known.planner.excerpt(&flow);
    let outcome = Evaluator::new(&ruleset, known.host.clone()).evaluate(packet);
    let family = Family::of(destination);
    let mut story = Story::new(known, packet, family, &outcome);
    outcome.trace.iter().for_each(|step| story.read(step));
    story.finish(about);

    let Story { decisions, decisive, serving, .. } = story;
    let mut answer = Explanation {
        version: VERSION,
        node: known.planner.config().node_name.clone(),
        packet: Question { source, destination, protocol, port, interface: packet.input_interface.clone() },
        verdict: fate(&outcome.verdict),
        service: serving.as_ref().map(Serving::port_name),
        decision: decisive,
        decisions,
        endpoints: Vec::new(),
        endpoint_count: 0,
        unused: Vec::new(),
        unused_count: 0,
        affinity_seconds: outcome.remembered.map(|remembered| remembered.seconds),
        path: outcome.trace.iter().map(step).collect(),
        notes: Vec::new(),
    };
    if let Some(serving) = &serving {
        add_endpoints(known, family, serving, &outcome, &mut answer);
    }
    add_notes(known, family, &flow, (serving.as_ref().map(|serving| &serving.name), about), &mut answer);
    answer.notes.truncate(MAX_LISTED);
    answer
}

fn fate(verdict: &Verdict) -> Fate {
    match verdict {
        Verdict::Dnat { .. } => Fate::Dnat,
        Verdict::Drop => Fate::Drop,
        Verdict::Reject => Fate::Reject,
        Verdict::Pass => Fate::Pass,
        Verdict::Inconsistent { .. } => Fate::Inconsistent,
    }
}

fn step(step: &TraceStep) -> Step {
    Step {
        hook: step.hook.keyword().to_owned(),
        chain: step.chain.to_string(),
        rule: step.rule_text.clone(),
        map: step.found.as_ref().map(|element| element.map.to_string()),
        element: step.element.clone(),
    }
}

/// The endpoints that the packet may reach, and those that the slices list
/// besides.
fn add_endpoints(known: &Known<'_>, family: Family, serving: &Serving, outcome: &Outcome, answer: &mut Explanation) {
    let Some(entry) = known.store.get(&serving.name) else { return };
    let Some(port) = serving.service.ports.get(serving.position) else { return };
    let reached: BTreeMap<Endpoint, bool> = match &outcome.verdict {
        Verdict::Dnat { endpoints } | Verdict::Inconsistent { endpoints, .. } => {
            endpoints.iter().map(|endpoint| (*endpoint, outcome.masqueraded.contains(endpoint))).collect()
        }
        Verdict::Drop | Verdict::Reject | Verdict::Pass => BTreeMap::new(),
    };
    let endpoints = PortEndpoints::of(known, (&serving.name, entry), port, family);
    let list = if answer.verdict == Fate::Reject { List::Cluster } else { serving.list };
    answer.endpoints = endpoints.uses(list, &reached, true);
    answer.endpoint_count = reached.len();
    (answer.unused, answer.unused_count) = endpoints.unused(list);
    answer.notes.extend(endpoints.slices());
}

/// Facts that may explain an unexpected answer.
fn add_notes(
    known: &Known<'_>,
    family: Family,
    flow: &Flow,
    (serving, about): (Option<&ServiceName>, Option<&ServiceName>),
    answer: &mut Explanation,
) {
    for target in flow.targets() {
        answer.notes.extend(contested(known, family, target));
    }
    for name in serving.into_iter().chain(about.filter(|about| Some(*about) != serving)) {
        answer.notes.extend(service::faults(known, name, Some(family)));
    }
    // A claim is noted for the target and for the Service.
    let mut seen: Vec<Decision> = Vec::new();
    let decisive = answer.decision.code;
    answer.notes.retain(|note| {
        // The decision has it already, where the Service of another proxy is the answer.
        let is_new = !seen.contains(note) && (note.code != decisive || !decisive.is_unserved());
        if is_new {
            seen.push(note.clone());
        }
        is_new
    });
}

/// The Services that want a frontend and do not have it.
pub(super) fn contested(known: &Known<'_>, family: Family, target: Target) -> Vec<Decision> {
    let firewall = match target {
        Target::Frontend(key) => Some(Claim::Firewall(key)),
        Target::NodePort(_) => None,
    };
    let claims = [Some(Claim::Serve(target)), Some(Claim::NoEndpoint(target)), firewall];
    let mut notes: Vec<Decision> = Vec::new();
    for claim in claims.into_iter().flatten() {
        let Some(holder) = known.planner.holder(family, &claim) else { continue };
        for name in known.planner.waiting(family, &claim).take(MAX_LISTED) {
            notes.extend(denied(known, family, name, &claim, holder));
        }
    }
    notes.dedup();
    notes
}

/// One frontend that a Service wants and another one has.
pub(super) fn denied(
    known: &Known<'_>,
    family: Family,
    name: &ServiceName,
    claim: &Claim,
    holder: &ServiceName,
) -> Option<Decision> {
    let service = |name| known.planner.compiled(name, family).map(|compiled| &compiled.service);
    let (loser, winner) = (service(name)?, service(holder)?);
    let reason = Reason::of(winner.created, loser.created);
    let text = format!("Service {name} wants {claim}, too; Service {holder} {reason} and has it");
    let deciding = |name: &ServiceName, service| match reason.is_name() {
        true => of_service(name, "metadata.name", name.name()),
        false => of_service(name, "metadata.creationTimestamp", created(service)),
    };
    let mut causes = vec![deciding(holder, winner), deciding(name, loser)];
    if let Claim::Serve(Target::Frontend(key)) | Claim::NoEndpoint(Target::Frontend(key)) | Claim::Firewall(key) = claim
    {
        causes.push(of_address(holder, winner, key.address));
    }
    Some(decision(Code::Contested, text, causes))
}

impl Serving {
    fn port_name(&self) -> PortName {
        match self.service.ports.get(self.position) {
            Some(port) => port_name(&self.name, port),
            None => PortName {
                namespace: self.name.namespace().to_owned(),
                name: self.name.name().to_owned(),
                port_name: String::new(),
                protocol: self.target.protocol(),
                port: 0,
            },
        }
    }
}

/// A setting that is not there, for a sentence about it.
pub(super) fn no_detection(known: &Known<'_>, family: Family) -> bool {
    known.planner.config().detector(known.store.node(), family).is_none()
}

/// The setting `masqueradeAll`.
pub(super) fn masquerade_all() -> super::answer::Cause {
    of_configuration("nftables.masqueradeAll", true)
}
