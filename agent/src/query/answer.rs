//! Answers from the store and the planner.

use std::collections::BTreeMap;

use vmap_proxy_compiler::evaluate::{Host, Packet};
use vmap_proxy_compiler::explain::answer::Question as PacketQuestion;
use vmap_proxy_compiler::explain::{Detail, Known};
use vmap_proxy_compiler::model::Store;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::target::Target;

use super::elements;
use super::journal::Journal;
use super::lines::Lines;
use super::protocol::{
    AddressAnswer, Answer, ContestedLine, DigestsAnswer, LinesAnswer, List, NamesAnswer, NodeAnswer, PAGE, Place,
    PodAnswer, Question, RulesOf, ServiceDigest, ServicesAnswer, StatusAnswer,
};

/// Endpoints in one page of Services, at which a page ends early: a Service may
/// have thousands.
const PAGE_ENDPOINTS: usize = 4096;

/// Names that a search looks at for one page: to compare a name costs far less
/// than to describe its Service.
const SEARCHED: usize = 4096;

/// Services that a search for those without endpoints looks at for one page.
const SEARCHED_FOR_ENDPOINTS: usize = 2048;

/// Digests in one page.
const PAGE_DIGESTS: usize = 2048;

/// The state that a question is about.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// The objects.
    pub store: &'a Store,
    /// The programmed state.
    pub planner: &'a Planner,
    /// Whether everything has been programmed once.
    pub ready: bool,
    /// Whether a change waits to be programmed.
    pub pending: bool,
    /// The digest of the state.
    pub digest: u64,
    /// The last syncs.
    pub journal: &'a Journal,
}

/// Answers one question. The work depends on the Services that it is about, or on
/// [`PAGE`], and never on the number of all Services.
pub fn answer(state: &State<'_>, question: &Question) -> Answer {
    let store = state.store;
    let host = Host { local_addresses: store.node().interface_addresses.clone(), bridges: Vec::new() };
    let known = Known { store, planner: state.planner, host: &host };
    match question {
        Question::Node => Answer::Node(node(state)),
        Question::Packet { packet, about } => {
            let about = about.as_deref().map(service_name);
            Answer::Packet(Box::new(known.packet(&first_packet(packet), about.as_ref())))
        }
        Question::Service { name } => Answer::Service(Box::new(known.service(&service_name(name)))),
        Question::Destination { name, port, family } => {
            Answer::Destination(known.destination(&service_name(name), port.as_deref(), *family).map(place))
        }
        Question::FindAddress { address, after } => {
            let page = known.find_address(*address, after.as_deref().map(service_name).as_ref(), PAGE);
            let text = |name: ServiceName| name.to_string();
            Answer::Address(AddressAnswer { found: page.found.map(text), last: page.last.map(text) })
        }
        Question::FindPod { pod, family, after } => {
            let pod = service_name(pod);
            let after = after.as_deref().map(service_name);
            let page = known.find_pod((pod.namespace(), pod.name()), *family, after.as_ref(), SEARCHED);
            Answer::Pod(PodAnswer { address: page.address, last: page.last.map(|name| name.to_string()) })
        }
        Question::Services { namespace, detail, matching, limit, after } => {
            let wanted = Wanted {
                namespace: namespace.as_deref(),
                detail: *detail,
                matching: matching.as_deref(),
                limit: limit.unwrap_or(PAGE).clamp(1, PAGE),
            };
            Answer::Services(services(&known, &wanted, after.as_deref()))
        }
        Question::Lines { list, wide, namespace, after } => {
            let detail = match (list, wide) {
                (List::Endpoints, true) => Detail::All,
                (List::Endpoints, false) => Detail::Endpoints,
                (List::Services | List::Frontends, _) => Detail::Frontends,
            };
            let wanted = Wanted { namespace: namespace.as_deref(), detail, matching: None, limit: PAGE };
            let page = services(&known, &wanted, after.as_deref());
            let mut lines = Lines::default();
            page.services.iter().for_each(|service| lines.push(*list, service, *wide));
            Answer::Lines(LinesAnswer { text: lines.into_text(), last: page.last })
        }
        Question::Elements { maps, only, after } => {
            Answer::Elements(elements::page(state, maps, only.as_deref(), after.as_deref()))
        }
        Question::Status => Answer::Status(Box::new(status(state))),
        Question::Journal { before } => Answer::Journal(state.journal.page(*before)),
        Question::WithoutEndpoints { after } => Answer::Names(without_endpoints(state, after.as_deref())),
        Question::Digests { after } => Answer::Digests(digests(store, after.as_deref())),
    }
}

/// `namespace/name`; a name alone is in the namespace `default`.
pub fn service_name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap_or_else(|| ServiceName::new("default", text))
}

/// The packet of a question, as the evaluator wants it.
pub fn first_packet(question: &PacketQuestion) -> Packet {
    Packet {
        source: question.source,
        destination: question.destination,
        protocol: question.protocol,
        port: question.port,
        input_interface: question.interface.clone(),
    }
}

fn place(target: Target) -> Place {
    match target {
        Target::Frontend(key) => Place { address: key.address, protocol: key.protocol, port: key.port },
        // The cluster IP is asked for, which is a frontend.
        Target::NodePort(key) => {
            Place { address: std::net::Ipv4Addr::UNSPECIFIED.into(), protocol: key.protocol, port: key.port }
        }
    }
}

fn node(state: &State<'_>) -> NodeAnswer {
    let node = state.store.node();
    NodeAnswer {
        name: state.planner.config().node_name.clone(),
        addresses: node.addresses.clone(),
        interface_addresses: node.interface_addresses.clone(),
        pod_cidrs: node.pod_cidrs.clone(),
        rules: Family::ALL.iter().map(|family| RulesOf::from(&state.planner.skeleton(node, *family))).collect(),
    }
}

/// The Services that a list is to have.
struct Wanted<'a> {
    namespace: Option<&'a str>,
    detail: Detail,
    matching: Option<&'a str>,
    limit: usize,
}

fn services(known: &Known<'_>, wanted: &Wanted<'_>, after: Option<&str>) -> ServicesAnswer {
    let after = match (after, wanted.namespace) {
        (Some(after), _) => Some(service_name(after)),
        // The empty name comes before all others.
        (None, Some(namespace)) => Some(ServiceName::new(namespace, "")),
        (None, None) => None,
    };
    let looked_at = if wanted.matching.is_some() { SEARCHED } else { PAGE };
    let mut page = ServicesAnswer { services: Vec::new(), last: None };
    let (mut last, mut endpoints) = (None, 0);
    for (seen, (name, entry)) in known.store.after(after.as_ref()).enumerate() {
        if wanted.namespace.is_some_and(|namespace| name.namespace() != namespace) {
            return page;
        }
        if seen == looked_at || page.services.len() == wanted.limit || endpoints >= PAGE_ENDPOINTS {
            page.last = last.map(ServiceName::to_string);
            return page;
        }
        last = Some(name);
        if entry.exists() && wanted.matching.is_none_or(|text| name.text().contains(text)) {
            let answer = known.service_in(name, wanted.detail);
            endpoints += answer.ports.iter().map(|port| port.endpoints.len() + port.unused.len()).sum::<usize>();
            page.services.push(answer);
        }
    }
    page
}

fn status(state: &State<'_>) -> StatusAnswer {
    let mut quarantined: Vec<String> = state.planner.quarantined().take(PAGE).map(ToString::to_string).collect();
    quarantined.sort_unstable();
    StatusAnswer {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        node: state.planner.config().node_name.clone(),
        ready: state.ready,
        pending: state.pending,
        services: state.store.service_count(),
        endpoints: state.store.endpoint_count(),
        quarantined,
        too_large: state.planner.too_large(),
        contested: contested(state.planner),
        digest: digest_text(state.digest),
        // The server knows these.
        started: 0,
        source: String::new(),
        last_received: BTreeMap::new(),
        syncs: state.journal.syncs(),
        repairs: state.journal.repairs(),
    }
}

/// A digest as it is printed.
pub fn digest_text(digest: u64) -> String {
    format!("{digest:016x}")
}

fn contested(planner: &Planner) -> Vec<ContestedLine> {
    let denied = Family::ALL.into_iter().flat_map(|family| planner.contested(family));
    let mut lines: Vec<ContestedLine> = denied
        .take(PAGE)
        .map(|denied| ContestedLine {
            service: denied.name.to_string(),
            frontend: denied.claim.to_string(),
            holder: denied.holder.to_string(),
            reason: Some(denied.reason),
        })
        .collect();
    lines.sort_unstable();
    // A NodePort is contested in both families.
    lines.dedup();
    lines
}

fn digests(store: &Store, after: Option<&str>) -> DigestsAnswer {
    let mut page = DigestsAnswer { services: Vec::new(), last: None };
    for (name, entry) in store.after(after.map(service_name).as_ref()) {
        if page.services.len() == PAGE_DIGESTS {
            page.last = page.services.last().map(|last| last.name.clone());
            return page;
        }
        if entry.service.values().any(Option::is_some) {
            page.services.push(ServiceDigest { name: name.to_string(), digest: digest_text(entry.digest()) });
        }
    }
    page
}

fn without_endpoints(state: &State<'_>, after: Option<&str>) -> NamesAnswer {
    let mut page = NamesAnswer { names: Vec::new(), last: None };
    let mut last = None;
    for (seen, (name, _)) in state.store.after(after.map(service_name).as_ref()).enumerate() {
        if seen == SEARCHED_FOR_ENDPOINTS {
            page.last = last.map(ServiceName::to_string);
            return page;
        }
        last = Some(name);
        let mut compiled = Family::ALL.into_iter().filter_map(|family| state.planner.compiled(name, family));
        if compiled.any(|compiled| compiled.ports.iter().any(|port| !port.any && port.cluster.is_empty())) {
            page.names.push(name.to_string());
        }
    }
    page
}
