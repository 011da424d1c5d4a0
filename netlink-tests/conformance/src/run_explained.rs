//! A vector against `explain`: for each packet it must name the endpoints, the
//! verdict, and a field that decides about it. The field must be in the
//! vector's objects with the value that `explain` gives, and be the one that the
//! reference model holds responsible.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use serde_json::Value;
use vmap_proxy_compiler::evaluate::Host;
use vmap_proxy_compiler::explain::answer::Fate;
use vmap_proxy_compiler::explain::{Cause, Code, Explanation};

use crate::model::deciding::{Choice, Deciding};
use crate::model::{ObjectKey, Outcome, Packet, ReferenceModel};
use crate::run_compiled::{Compiled, host};
use crate::run_model;
use crate::run_packets::ProxyError;
use crate::schema::{Step, Vector};
use crate::under_test;

/// One packet whose explanation is wrong.
#[derive(Debug, Clone)]
pub struct Wrong {
    phase: usize,
    index: usize,
    packet: Packet,
    what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phase {}, packet {}: {}: {}", self.phase, self.index, self.packet, self.what)
    }
}

/// Runs every phase of a vector; none in the answer means that it passed.
///
/// # Errors
/// If the agent refuses the vector's configuration or manifests.
pub fn run(vector: &Vector) -> Result<Vec<Wrong>, ProxyError> {
    run_with(vector, |explanation| explanation)
}

/// As [`run`], with explanations that `change` has changed: for a test of the
/// comparison.
fn run_with(vector: &Vector, change: impl Fn(Explanation) -> Explanation) -> Result<Vec<Wrong>, ProxyError> {
    let config = under_test::proxy_config(&vector.config, &vector.node.name)?;
    let host = host(vector);
    let mut compiled = Compiled::start(config, host.clone(), under_test::changes(&[], &vector.objects)?);
    let mut model = run_model::start(vector);
    let mut objects = Objects::new(vector);
    let mut wrong = Vec::new();
    for (phase, (step, probes)) in vector.phases().enumerate() {
        if let Some(step) = step {
            compiled.step(under_test::changes(&step.delete, &step.apply)?);
            run_model::step(&mut model, step);
            objects.step(step);
        }
        for (index, probe) in probes.iter().enumerate() {
            let packet = run_model::packet(probe);
            let explanation = change(compiled.explain(&packet));
            let expected = run_model::outcome(&probe.expect);
            let faults = [
                fate_fault(&explanation, &packet, &expected, &host),
                field_fault(&explanation, &objects),
                cause_fault(&explanation, &model, &packet),
            ];
            let faults = faults.into_iter().flatten();
            wrong.extend(faults.map(|what| Wrong { phase, index, packet: packet.clone(), what }));
        }
    }
    Ok(wrong)
}

/// Verdict, endpoints and masquerading.
fn fate_fault(answer: &Explanation, packet: &Packet, expected: &Outcome, host: &Host) -> Option<String> {
    let endpoints: BTreeSet<SocketAddr> =
        answer.endpoints.iter().map(|one| SocketAddr::new(one.address, one.port)).collect();
    let wanted = match expected {
        Outcome::Dnat { endpoints, .. } => (Fate::Dnat, endpoints.clone()),
        Outcome::Drop => (Fate::Drop, BTreeSet::new()),
        Outcome::Reject => (Fate::Reject, BTreeSet::new()),
        Outcome::Pass => (Fate::Pass, BTreeSet::new()),
    };
    let actual = (answer.verdict, endpoints);
    if actual != wanted {
        return Some(format!("explain says {actual:?}, the vector {wanted:?}: {answer:#?}"));
    }
    if let Some(one) = answer.endpoints.iter().find(|one| one.used.is_none() || one.one_in != wanted.1.len()) {
        return Some(format!("explain gives no reason or a wrong chance for {one:?}"));
    }
    // Packets to the node itself never leave it, and only leaving packets are masqueraded.
    let leaves = |address: &SocketAddr| host.is_local(packet.from) || !host.is_local(address.ip());
    let masqueraded: BTreeSet<SocketAddr> = answer
        .endpoints
        .iter()
        .filter(|one| one.masqueraded)
        .map(|one| SocketAddr::new(one.address, one.port))
        .filter(leaves)
        .collect();
    let wanted: BTreeSet<SocketAddr> = expected.masqueraded().into_iter().filter(leaves).collect();
    if masqueraded != wanted {
        return Some(format!("explain masquerades {masqueraded:?}, the vector {wanted:?}"));
    }
    let says = answer.decisions.iter().any(|decision| decision.code.is_masquerading());
    (says == masqueraded.is_empty() && !answer.endpoints.iter().any(|one| host.is_local(one.address)))
        .then(|| format!("no decision agrees with masquerading {masqueraded:?}: {:#?}", answer.decisions))
}

/// Every field that is named as a cause must exist with its value.
fn field_fault(answer: &Explanation, objects: &Objects<'_>) -> Option<String> {
    let needs_cause = answer.verdict != Fate::Pass;
    if needs_cause && answer.decision.causes.is_empty() {
        return Some(format!("the decision {:?} has no cause", answer.decision));
    }
    let decisions = answer.decisions.iter().chain(&answer.notes).chain([&answer.decision]);
    let of_decisions = decisions.flat_map(|decision| &decision.causes);
    let of_endpoints = answer.endpoints.iter().filter_map(|one| one.cause.as_ref());
    let of_unused = answer.unused.iter().map(|one| &one.cause);
    of_decisions.chain(of_endpoints).chain(of_unused).find_map(|cause| objects.fault(cause))
}

/// The decision must be the model's.
fn cause_fault(answer: &Explanation, model: &ReferenceModel, packet: &Packet) -> Option<String> {
    let wanted = model.deciding(packet);
    let of_service = answer.service.as_ref().map(|port| format!("{}/{}", port.namespace, port.name));
    let has = |code: Code| answer.decisions.iter().any(|decision| decision.code == code);
    let named = |service: &str| {
        answer
            .decision
            .causes
            .iter()
            .any(|cause| cause.kind != "Service" || format!("{}/{}", cause.namespace, cause.name) == service)
    };
    let field = |field: &str| answer.decision.causes.iter().any(|cause| cause.field == field);
    let (code, service, ok) = match &wanted {
        Deciding::Frontend { service, field: wanted, local_policy, choice } => {
            let policy = [Code::InternalPolicyLocal, Code::ExternalPolicyLocal].into_iter().any(has);
            let is_frontend = field(wanted) || is_node_port(answer, wanted);
            (Code::Frontend, service, policy == *local_policy && is_frontend && has(code_of(*choice)))
        }
        Deciding::SourceRanges { service } => (Code::SourceRangesDeny, service, field("spec.loadBalancerSourceRanges")),
        Deciding::LocalPolicy { service, field: wanted } => (Code::NoLocalEndpoint, service, field(wanted)),
        Deciding::NoEndpoint { service, is_listed } => {
            // The condition of an endpoint, or a field of a slice.
            let is_condition = |cause: &Cause| cause.field.ends_with("].conditions.ready") && cause.value == "false";
            let mut causes = answer.decision.causes.iter().filter(|cause| cause.kind == "EndpointSlice");
            (Code::NoEndpoint, service, causes.any(|cause| is_condition(cause) == *is_listed))
        }
        Deciding::UndefinedPort { service } => (Code::UndefinedPort, service, field("spec.clusterIPs")),
        // The address may be of a Service without rules; that its label or field exists is compared, too.
        Deciding::ServiceCidr if answer.decision.code.is_unserved() => {
            (answer.decision.code, &String::new(), field("spec.cidrs"))
        }
        Deciding::ServiceCidr => (Code::Unallocated, &String::new(), field("spec.cidrs")),
        Deciding::Nothing => {
            let code = answer.decision.code;
            let is_untouched = matches!(code, Code::NotAFrontend | Code::NotANodePortAddress) || code.is_unserved();
            return (!is_untouched).then(|| format!("nothing decides, explain says {:?}", answer.decision));
        }
    };
    let same_service = match code {
        Code::Unallocated => true,
        code if code.is_unserved() => true,
        Code::UndefinedPort => named(service),
        _ => of_service.as_ref() == Some(service),
    };
    (answer.decision.code != code || !same_service || !ok)
        .then(|| format!("the model holds {wanted:?} responsible, explain says {of_service:?} {:#?}", answer.decisions))
}

fn code_of(choice: Choice) -> Code {
    match choice {
        Choice::Ready => Code::Ready,
        Choice::HintOfNode => Code::HintOfNode,
        Choice::HintOfZone => Code::HintOfZone,
        Choice::Terminating => Code::Terminating,
    }
}

fn is_node_port(answer: &Explanation, wanted: &str) -> bool {
    wanted == "nodePort" && answer.decision.causes.iter().any(|cause| cause.field.ends_with("].nodePort"))
}

/// The vector's objects as they are now, and its configuration.
struct Objects<'a> {
    vector: &'a Vector,
    objects: BTreeMap<ObjectKey, Value>,
    /// Every earlier form of Nodes: what a Node loses stays in use.
    earlier_nodes: Vec<(ObjectKey, Value)>,
}

impl<'a> Objects<'a> {
    fn new(vector: &'a Vector) -> Self {
        let mut objects = Self { vector, objects: BTreeMap::new(), earlier_nodes: Vec::new() };
        objects.apply(&vector.objects);
        objects
    }

    fn apply(&mut self, manifests: &[Value]) {
        for (key, manifest) in manifests.iter().filter_map(|one| Some((ObjectKey::of(one)?, one.clone()))) {
            let previous = self.objects.insert(key.clone(), manifest);
            self.earlier_nodes.extend(previous.filter(|_| key.kind == "Node").map(|node| (key, node)));
        }
    }

    fn step(&mut self, step: &Step) {
        for gone in &step.delete {
            // The last known Node stays in use.
            if gone.kind != "Node" {
                self.objects.retain(|key, _| {
                    (&key.kind, &key.namespace, &key.name) != (&gone.kind, &gone.namespace, &gone.name)
                });
            }
        }
        self.apply(&step.apply);
    }

    /// Why a cause does not agree with the objects.
    fn fault(&self, cause: &Cause) -> Option<String> {
        let config = Value::Object(self.vector.config.clone());
        let object = match cause.kind.as_str() {
            "KubeProxyConfiguration" => &config,
            // The absence of any slice is the cause.
            "EndpointSlice" if cause.name.is_empty() => return self.slice_of(cause),
            kind => {
                let key =
                    ObjectKey { kind: kind.to_owned(), namespace: cause.namespace.clone(), name: cause.name.clone() };
                match self.objects.get(&key) {
                    Some(object) => object,
                    // The vector's node exists without an object of its own.
                    None if kind == "Node" => return None,
                    None => return Some(format!("{cause}: there is no such object")),
                }
            }
        };
        let found = self.values(object, cause);
        let agree = |values: &[Value]| values.iter().any(|value| agrees(value, &cause.value));
        let holds = agree(&found) || (found.is_empty() && is_default(cause)) || {
            let earlier =
                self.earlier_nodes.iter().filter(|(key, _)| (&key.kind, &key.name) == (&cause.kind, &cause.name));
            earlier.map(|(_, node)| self.values(node, cause)).any(|values| agree(&values))
        };
        (!holds).then(|| format!("{cause}: the object has {found:?}"))
    }

    fn slice_of(&self, cause: &Cause) -> Option<String> {
        let label = "/metadata/labels/kubernetes.io~1service-name";
        let headless = "/metadata/labels/service.kubernetes.io~1headless";
        let slice = self.objects.iter().find(|(key, slice)| {
            key.kind == "EndpointSlice"
                && key.namespace == cause.namespace
                && slice.pointer(headless).is_none()
                && slice.pointer(label).and_then(Value::as_str) == Some(&cause.value)
        });
        slice.map(|(key, _)| format!("{cause}: {key} is one"))
    }

    /// The values under a path; of a list all entries, because a cause names the
    /// entry that matters.
    fn values(&self, object: &Value, cause: &Cause) -> Vec<Value> {
        let mut current = object;
        let mut rest = cause.field.as_str();
        while !rest.is_empty() {
            let next = if let Some(inner) = rest.strip_prefix('[') {
                let Some((key, behind)) = inner.split_once(']') else { return Vec::new() };
                rest = behind.strip_prefix('.').unwrap_or(behind);
                match key.parse::<usize>() {
                    Ok(index) if current.is_array() => current.get(index),
                    _ => current.get(key),
                }
            } else {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let (key, behind) = rest.split_at(end);
                rest = behind.strip_prefix('.').unwrap_or(behind);
                // The API server fills in the plural of it.
                if key == "clusterIPs" && current.get(key).is_none() {
                    current.get("clusterIP")
                } else {
                    current.get(key)
                }
            };
            let Some(next) = next.filter(|value| !value.is_null()) else { return Vec::new() };
            current = next;
        }
        match current {
            Value::Array(list) if !list.is_empty() => list.clone(),
            other => vec![other.clone()],
        }
    }
}

/// Returns whether a value of an object is the one that a cause names.
fn agrees(value: &Value, named: &str) -> bool {
    if let Some(predicate) = named.strip_prefix('(') {
        return match predicate.strip_prefix("not ") {
            Some(other) => value.as_str() != Some(other.trim_end_matches(')')),
            None => true,
        };
    }
    let text = match value {
        // The keywords of `nodePortAddresses` stand for ranges.
        Value::String(text) if text == "all" => "0.0.0.0/0".to_owned(),
        Value::String(text) if text == "localhost" => "127.0.0.0/8".to_owned(),
        Value::String(text) => text.clone(),
        // Of an object, the part that is a name or an address.
        Value::Object(fields) => {
            let part = ["name", "ip", "address"].into_iter().find_map(|key| fields.get(key)?.as_str());
            part.unwrap_or_default().to_owned()
        }
        Value::Array(list) if list.is_empty() => "[]".to_owned(),
        other => other.to_string(),
    };
    // A merged or printed form, or one entry of several.
    text == named
        || same_address(&text, named)
        || named.split(',').any(|part| part == text)
        || text.split(',').any(|part| part.trim() == named)
        || text.parse::<ipnet::IpNet>().is_ok_and(|range| {
            named
                .split(',')
                .filter_map(|part| part.parse::<ipnet::IpNet>().ok())
                .any(|merged| merged.contains(&range.trunc()))
        })
}

fn same_address(text: &str, named: &str) -> bool {
    let address = |text: &str| crate::model::address::parse(text);
    address(text).is_some() && address(text) == address(named)
}

/// The values of fields that may be absent.
fn is_default(cause: &Cause) -> bool {
    let field = cause.field.as_str();
    let value = cause.value.as_str();
    match field {
        "spec.externalTrafficPolicy" | "spec.internalTrafficPolicy" => value == "Cluster",
        "nodePortAddresses" => value == "primary",
        "clusterCIDR" | "spec.podCIDRs" | "status.addresses" => value.is_empty() || value.starts_with('('),
        "endpoints" | "ports" => value == "[]",
        "metadata.creationTimestamp" => value == "unknown",
        _ if field.ends_with("conditions.ready") || field.ends_with("conditions.serving") => value == "true",
        _ if field.ends_with("].name") => value.is_empty(),
        _ if field.ends_with("].protocol") => value == "TCP",
        _ if field.ends_with("nodeName") => value.starts_with('('),
        _ if field.starts_with("metadata.labels[topology") => value.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;
    use crate::{own_dir, repository_dir, schema};

    /// Every packet whose explanation `change` falsifies must be reported.
    fn notices(is_changed: impl Fn(&Explanation) -> bool, change: impl Fn(&mut Explanation)) {
        let mut total = 0;
        for vector in [repository_dir(), own_dir()].iter().flat_map(|dir| schema::load_dir(dir).unwrap()) {
            let changed = std::cell::Cell::new(0);
            let wrong = run_with(&vector, |mut explanation| {
                if is_changed(&explanation) {
                    changed.set(changed.get() + 1);
                    change(&mut explanation);
                }
                explanation
            });
            let reported: BTreeSet<(usize, usize)> = wrong.unwrap().iter().map(|one| (one.phase, one.index)).collect();
            assert_eq!(reported.len(), changed.get(), "{}", vector.name);
            total += changed.get();
        }
        assert!(total > 5, "only {total} explanations were falsified");
    }

    #[test]
    fn a_wrong_verdict_is_noticed() {
        notices(
            |_| true,
            |answer| answer.verdict = if answer.verdict == Fate::Drop { Fate::Reject } else { Fate::Drop },
        );
    }

    #[test]
    fn a_wrong_decision_is_noticed() {
        notices(
            |_| true,
            |answer| {
                answer.decision.code =
                    if answer.decision.code == Code::Frontend { Code::NoEndpoint } else { Code::Frontend };
            },
        );
    }

    #[test]
    fn a_field_of_another_object_is_noticed() {
        notices(
            |answer| answer.verdict != Fate::Pass,
            |answer| answer.decision.causes.iter_mut().for_each(|cause| cause.name.push_str("-other")),
        );
    }

    #[test]
    fn a_wrong_value_is_noticed() {
        notices(
            // That there is no slice of another Service is right, too.
            |answer| answer.decision.causes.iter().any(|cause| cause.kind != "EndpointSlice" || !cause.name.is_empty()),
            |answer| answer.decision.causes.iter_mut().for_each(|cause| cause.value = "192.0.2.254".to_owned()),
        );
    }

    #[test]
    fn another_reason_for_the_choice_of_endpoints_is_noticed() {
        let choices = [Code::Ready, Code::HintOfNode, Code::HintOfZone, Code::Terminating];
        notices(
            |answer| answer.verdict == Fate::Dnat,
            |answer| {
                for decision in answer.decisions.iter_mut().filter(|decision| choices.contains(&decision.code)) {
                    decision.code = if decision.code == Code::Ready { Code::HintOfZone } else { Code::Ready };
                }
            },
        );
    }

    #[test]
    fn another_condition_of_an_endpoint_is_noticed() {
        notices(
            |answer| answer.decision.causes.iter().any(|cause| cause.field.ends_with("conditions.ready")),
            |answer| answer.decision.causes.iter_mut().for_each(|cause| cause.field = "addressType".to_owned()),
        );
    }

    #[test]
    fn a_missing_masquerade_is_noticed() {
        notices(
            // Whether an endpoint at an address of the node itself is masqueraded shows nowhere.
            |answer| {
                answer.endpoints.iter().all(|one| !one.local)
                    && answer.decisions.iter().any(|decision| decision.code == Code::MasqueradeNotFromPod)
            },
            |answer| answer.decisions.retain(|decision| !decision.code.is_masquerading()),
        );
    }
}
