//! One Service: its frontends, its endpoints, and whatever of it is not
//! programmed.

use super::Known;
use super::answer::{Code, Decision, Detail, FrontendAnswer, FrontendState, PortAnswer, ServiceAnswer, VERSION};
use super::endpoints::{List, PortEndpoints};
use super::fields::{decision, is_internal, of_service, port_name};
use super::packet::denied;
use crate::limits::MAX_ELEMENTS;
use crate::model::objects::LABEL_SERVICE_PROXY_NAME;
use crate::model::types::{NotProxied, Service, ServiceName, ServicePort};
use crate::ruleset::Family;
use crate::ruleset::service::{Claim, CompiledPort, CompiledService, ServedFrontend, all_frontends};
use crate::ruleset::target::Target;

pub(super) fn explain(known: &Known<'_>, name: &ServiceName, detail: Detail) -> ServiceAnswer {
    let programmed = Family::ALL.into_iter().any(|family| known.planner.compiled(name, family).is_some());
    let mut answer = ServiceAnswer {
        version: VERSION,
        node: known.planner.config().node_name.clone(),
        namespace: name.namespace().to_owned(),
        name: name.name().to_owned(),
        programmed,
        reasons: faults(known, name, None),
        ports: Vec::new(),
    };
    let Some(entry) = known.store.get(name) else { return answer };
    for family in Family::ALL {
        // The programmed elements, or else those that would be programmed.
        let compiled = known.planner.compiled(name, family);
        let service = compiled.map(|compiled| &compiled.service).or(entry.service[family].as_ref());
        if let Some(service) = service {
            let mut ports: Vec<PortAnswer> = service.ports.iter().map(|port| of_port(name, port)).collect();
            add_frontends(known, name, service, compiled, &mut ports);
            for (position, (answer, port)) in ports.iter_mut().zip(&service.ports).enumerate() {
                let endpoints = compiled.and_then(|compiled| compiled.ports.get(position));
                match (detail, endpoints) {
                    (Detail::Frontends, Some(endpoints)) => answer.endpoint_count = endpoints.cluster.len(),
                    _ => add_endpoints(&PortEndpoints::of(known, (name, entry), port, family), detail, answer),
                }
            }
            answer.ports.extend(ports);
        }
    }
    answer
}

/// The faults of a Service: why it is not programmed, or not all of it. In
/// one family, or in both.
pub(super) fn faults(known: &Known<'_>, name: &ServiceName, family: Option<Family>) -> Vec<Decision> {
    let Some(entry) = known.store.get(name).filter(|entry| entry.exists()) else {
        let text = format!("there is no Service {name}");
        return vec![decision(Code::NoService, text, [])];
    };
    let mut faults: Vec<Decision> =
        entry.unserved().map(|unserved| not_proxied(name, &unserved.reason)).into_iter().collect();
    for family in Family::ALL.into_iter().filter(|one| family.is_none_or(|family| family == *one)) {
        if let Some(elements) = known.planner.too_many_elements(name, family) {
            let text = format!(
                "Service {name} is not programmed for {family}: its ports, addresses and endpoints may need {elements} \
                 elements, and the limit is {MAX_ELEMENTS}"
            );
            faults.push(decision(Code::TooLarge, text, [of_service(name, "spec.ports", "(too many)")]));
        }
        if let Some(compiled) = known.planner.compiled(name, family) {
            faults.extend(
                compiled
                    .denied
                    .iter()
                    .filter_map(|claim| denied(known, family, name, claim, known.planner.holder(family, claim)?)),
            );
        }
    }
    if known.planner.is_quarantined(name) {
        let text =
            format!("the kernel refused Service {name}; its earlier state stays until it changes or a retry succeeds");
        faults.push(decision(Code::Quarantined, text, []));
    }
    if known.store.is_dirty(name) {
        let text = format!("Service {name} changed, and the change is not programmed yet");
        faults.push(decision(Code::Pending, text, []));
    }
    faults.extend(entry.problems().map(|problem| {
        let cause = super::Cause {
            kind: problem.object.kind.to_string(),
            namespace: problem.object.namespace.clone(),
            name: problem.object.name.clone(),
            field: problem.field.clone(),
            value: "(unusable)".to_owned(),
        };
        decision(Code::BadField, problem.to_string(), [cause])
    }));
    faults
}

/// Why a Service has no rules in any family.
pub(super) fn not_proxied(name: &ServiceName, reason: &NotProxied) -> Decision {
    let label = || format!("metadata.labels[{LABEL_SERVICE_PROXY_NAME}]");
    match reason {
        NotProxied::OtherProxy(proxy) => decision(
            Code::OtherProxy,
            format!("a label gives Service {name} to the proxy {proxy:?}, so nothing of it is programmed"),
            [of_service(name, label(), proxy)],
        ),
        NotProxied::Headless => decision(
            Code::Headless,
            format!("Service {name} is headless: clients get the addresses of its pods from DNS, and no rule is made"),
            [of_service(name, "spec.clusterIP", "None")],
        ),
        NotProxied::ExternalName => decision(
            Code::ExternalName,
            format!("Service {name} is only a name for DNS, and no rule is made"),
            [of_service(name, "spec.type", "ExternalName")],
        ),
        NotProxied::NoClusterIp => decision(
            Code::NoClusterIp,
            format!("Service {name} has no usable cluster IP, so nothing of it is programmed"),
            [of_service(name, "spec.clusterIP", "(unusable)")],
        ),
    }
}

/// A port without frontends and endpoints.
fn of_port(name: &ServiceName, port: &ServicePort) -> PortAnswer {
    PortAnswer {
        port: port_name(name, port),
        frontends: Vec::new(),
        endpoints: Vec::new(),
        endpoint_count: 0,
        unused: Vec::new(),
        unused_count: 0,
        notes: Vec::new(),
    }
}

fn add_frontends(
    known: &Known<'_>,
    name: &ServiceName,
    service: &Service,
    compiled: Option<&CompiledService>,
    ports: &mut [PortAnswer],
) {
    for served in all_frontends(service) {
        let Some(port) = ports.get_mut(served.position) else { continue };
        port.frontends.extend(frontend(known, name, service, compiled, served));
    }
}

fn add_endpoints(endpoints: &PortEndpoints<'_>, detail: Detail, answer: &mut PortAnswer) {
    let served = endpoints.served(List::Cluster);
    answer.endpoint_count = served.len();
    if detail == Detail::Frontends {
        return;
    }
    answer.endpoints = endpoints.uses(List::Cluster, &served, detail == Detail::All);
    (answer.unused, answer.unused_count) = endpoints.unused(List::Cluster);
    if detail == Detail::All {
        answer.notes = endpoints.slices();
    }
}

fn frontend(
    known: &Known<'_>,
    name: &ServiceName,
    service: &Service,
    compiled: Option<&CompiledService>,
    served: ServedFrontend,
) -> Option<FrontendAnswer> {
    let port = service.ports.get(served.position)?;
    let endpoints = compiled.and_then(|compiled| compiled.ports.get(served.position));
    let (address, number) = match served.target {
        Target::Frontend(key) => (Some(key.address), key.port),
        Target::NodePort(key) => (None, key.port),
    };
    Some(FrontendAnswer {
        address,
        protocol: port.protocol,
        port: number,
        state: compiled.zip(endpoints).map_or(FrontendState::NotProgrammed, |(compiled, endpoints)| {
            state(compiled, endpoints, served, is_internal(service, served.target))
        }),
        cluster_endpoints: endpoints.map_or(0, |endpoints| endpoints.cluster.len()),
        local_endpoints: endpoints.filter(|_| served.is_local).map(|endpoints| endpoints.local.len()),
        source_ranges: address
            .filter(|one| service.load_balancer_ips.contains(one))
            .map_or_else(Vec::new, |_| service.source_ranges.to_vec()),
        cause: known.of_frontend(name, service, port, served.target).into_iter().next()?,
    })
}

fn state(
    compiled: &CompiledService,
    endpoints: &CompiledPort,
    served: ServedFrontend,
    is_internal: bool,
) -> FrontendState {
    let claims = [Claim::Serve(served.target), Claim::NoEndpoint(served.target)];
    if claims.iter().any(|claim| compiled.is_denied(claim)) {
        return FrontendState::Denied;
    }
    let main = if served.is_local { &endpoints.local } else { &endpoints.cluster };
    if !main.is_empty() {
        FrontendState::Serves
    } else if !served.is_local || !endpoints.any {
        FrontendState::Rejects
    } else if is_internal || endpoints.cluster.is_empty() {
        FrontendState::Drops
    } else {
        FrontendState::ServesLocalClients
    }
}
