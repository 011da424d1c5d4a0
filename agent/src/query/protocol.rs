//! The questions and answers, as one line of JSON each.
//!
//! A question is `{"version":1,"question":{"ask":"service","name":"shop/cart"}}`,
//! the reply `{"version":1,"answer":{"service":{…}}}` or
//! `{"version":1,"error":"…"}`. New questions and new fields may come at any time
//! and do not change the version.
//!
//! With `"stream":true` the pages behind the first come unasked, one line each.
//! All but the last have `"more":true`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vmap_proxy_compiler::explain::answer::{Detail, Explanation, Question as PacketQuestion, ServiceAnswer};
use vmap_proxy_compiler::model::{Family, Protocol};
use vmap_proxy_compiler::plan::claims::Reason;
use vmap_proxy_compiler::ruleset::skeleton::{LocalDetector, SkeletonConfig};

/// The version of the protocol.
pub const VERSION: u32 = 1;

/// Services that one question looks at, at most: a search or a list is asked page
/// by page, so that no question delays a sync.
pub const PAGE: usize = 256;

/// A question with its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// [`VERSION`]
    pub version: u32,
    /// The question.
    pub question: Question,
    /// Whether all pages are wanted, one after the other.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stream: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// One question. Services are named `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Question {
    /// The node, and the parameters of the rules.
    Node,
    /// The fate of a packet.
    Packet {
        /// The packet.
        packet: PacketQuestion,
        /// A Service that may have its destination.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        about: Option<String>,
    },
    /// A Service.
    Service {
        /// Its name.
        name: String,
    },
    /// The cluster IP and port of a Service.
    Destination {
        /// The Service.
        name: String,
        /// The name or number of a port; absent: the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<String>,
        /// The family; absent: IPv4 if the Service has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        family: Option<Family>,
    },
    /// The Service that has an address, among the next [`PAGE`] Services.
    FindAddress {
        /// The address.
        address: IpAddr,
        /// The `last` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// The address of a Pod that a slice refers to, among the slices of the next
    /// Services of its namespace.
    FindPod {
        /// `namespace/name`
        pod: String,
        /// The family of the address.
        family: Family,
        /// The `last` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// Services in the order of their names, with frontends and endpoints.
    Services {
        /// Only those of this namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// How much of each.
        #[serde(default)]
        detail: Detail,
        /// Only those whose `namespace/name` contains this text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        matching: Option<String>,
        /// At most this many; absent or more: [`PAGE`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// The `last` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// The lines of a list, of the next Services.
    Lines {
        /// The list.
        list: List,
        /// Whether the deciding field is added to each line.
        #[serde(default)]
        wide: bool,
        /// Only Services of this namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// The `last` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// The programmed elements of the next Services, and on the first page those
    /// of the node.
    Elements {
        /// Only those of these sets and maps; of all if it is empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        maps: Vec<String>,
        /// Only this Service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        only: Option<String>,
        /// The `last` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// The state of the agent.
    Status,
    /// The last syncs, the newest first.
    Journal {
        /// Only those before the one of this number: the `last` of the page
        /// before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<u64>,
    },
    /// The Services with rules of which a port has no endpoint, among the next.
    WithoutEndpoints {
        /// The `last` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// The digests of the next Services.
    Digests {
        /// The `last` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
}

/// A list of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum List {
    /// One line for each Service.
    Services,
    /// One line for each address and port, or NodePort.
    Frontends,
    /// One line for each endpoint of each port.
    Endpoints,
}

impl Question {
    /// The question for the page behind an answer; `None` if it is the last, or
    /// no page at all.
    pub fn behind(&self, answer: &Answer) -> Option<Question> {
        let last = match answer {
            Answer::Journal(page) => return Some(Question::Journal { before: Some(page.last?) }),
            Answer::Services(page) => &page.last,
            Answer::Lines(page) => &page.last,
            Answer::Elements(page) => &page.last,
            Answer::Digests(page) => &page.last,
            Answer::Names(page) => &page.last,
            Answer::Address(page) if page.found.is_none() => &page.last,
            Answer::Pod(page) if page.address.is_none() => &page.last,
            _ => return None,
        };
        let last = last.clone()?;
        let mut next = self.clone();
        match &mut next {
            Question::Services { after, .. }
            | Question::Lines { after, .. }
            | Question::Elements { after, .. }
            | Question::Digests { after }
            | Question::WithoutEndpoints { after }
            | Question::FindPod { after, .. }
            | Question::FindAddress { after, .. } => *after = Some(last),
            _ => return None,
        }
        Some(next)
    }
}

/// A reply: an answer, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`]
    pub version: u32,
    /// Whether the next page follows without another question.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// The reason for no answer, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Question::Node`].
    Node(NodeAnswer),
    /// To [`Question::Packet`].
    Packet(Box<Explanation>),
    /// To [`Question::Service`].
    Service(Box<ServiceAnswer>),
    /// To [`Question::Destination`]; `None` if the Service has none.
    Destination(Option<Place>),
    /// To [`Question::FindAddress`].
    Address(AddressAnswer),
    /// To [`Question::FindPod`].
    Pod(PodAnswer),
    /// To [`Question::Services`].
    Services(ServicesAnswer),
    /// To [`Question::Lines`].
    Lines(LinesAnswer),
    /// To [`Question::Elements`].
    Elements(ElementsAnswer),
    /// To [`Question::Status`].
    Status(Box<StatusAnswer>),
    /// To [`Question::Journal`].
    Journal(JournalAnswer),
    /// To [`Question::WithoutEndpoints`].
    Names(NamesAnswer),
    /// To [`Question::Digests`].
    Digests(DigestsAnswer),
}

/// An address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// The node, and the parameters of the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAnswer {
    /// Its name.
    pub name: String,
    /// The addresses of its Node object.
    pub addresses: Vec<IpAddr>,
    /// The addresses on its interfaces.
    pub interface_addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` of its Node object.
    pub pod_cidrs: Vec<IpNet>,
    /// The parameters of the rules of each family.
    pub rules: Vec<RulesOf>,
}

/// The parameters of the rules of one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesOf {
    /// The family.
    pub family: Family,
    /// How local pods are recognized; absent: not at all.
    pub detector: Option<Detector>,
    /// `nftables.masqueradeAll`
    pub masquerade_all: bool,
    /// Whether NodePorts are served on every local address.
    pub node_ports_on_all_addresses: bool,
}

/// How local pods are recognized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detector {
    /// By source address.
    Source(IpNet),
    /// By the name of the interface.
    Interface(String),
    /// By the prefix of that name.
    InterfacePrefix(String),
}

/// The result of a search for an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressAnswer {
    /// The Service that has it.
    pub found: Option<String>,
    /// Where the next page begins; absent at the end.
    pub last: Option<String>,
}

/// The result of a search for a Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAnswer {
    /// Its address.
    pub address: Option<IpAddr>,
    /// Where the next page begins; absent at the end.
    pub last: Option<String>,
}

/// One page of Services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesAnswer {
    /// The Services.
    pub services: Vec<ServiceAnswer>,
    /// Where the next page begins; absent at the end.
    pub last: Option<String>,
}

/// One page of the lines of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinesAnswer {
    /// The lines, with tabs between the cells. Control characters in names are
    /// escaped.
    pub text: String,
    /// Where the next page begins; absent at the end.
    pub last: Option<String>,
}

/// One page of programmed elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementsAnswer {
    /// The elements of each set and map.
    pub groups: Vec<ElementGroup>,
    /// Where the next page begins; absent at the end.
    pub last: Option<String>,
}

/// Programmed elements of one set or map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementGroup {
    /// The table.
    pub family: Family,
    /// The set or map.
    pub map: String,
    /// The Services that they belong to, or `node`, each with the number of its
    /// elements, in the order of the elements.
    pub owners: Vec<(String, usize)>,
    /// The elements as netlink attributes, in base64: the form that they are
    /// looked up in.
    pub elements: String,
}

/// The state of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusAnswer {
    /// The version of the program.
    pub program: String,
    /// The name of the node.
    pub node: String,
    /// Whether everything has been programmed once.
    pub ready: bool,
    /// Whether a change waits to be programmed.
    pub pending: bool,
    /// The number of Services with rules.
    pub services: usize,
    /// The number of endpoints in the slices.
    pub endpoints: usize,
    /// Services that the kernel refused, sorted, at most [`PAGE`].
    pub quarantined: Vec<String>,
    /// The number of Services that are too large, counted per family.
    pub too_large: usize,
    /// Frontends that a Service wants and another one has, at most [`PAGE`].
    pub contested: Vec<ContestedLine>,
    /// The digest of the state, in 16 hexadecimal digits: the same on every node
    /// that was told the same.
    pub digest: String,
    /// When the agent started, in milliseconds since 1970.
    pub started: u64,
    /// Where the objects come from.
    pub source: String,
    /// When the API server last sent anything about each resource, in
    /// milliseconds since 1970; empty without an API server.
    pub last_received: BTreeMap<String, u64>,
    /// The last syncs, the newest first, at most [`SYNCS`].
    pub syncs: Vec<JournalEntry>,
    /// The last syncs in which the kernel was read and compared, the newest
    /// first, at most [`SYNCS`].
    pub repairs: Vec<JournalEntry>,
}

impl StatusAnswer {
    /// The reason why the last sync failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.syncs.first()?.failure.as_deref()
    }

    /// The resource of which the API server has sent nothing for longest, and when
    /// it last did, in milliseconds since 1970; `None` without an API server.
    pub fn longest_silent(&self) -> Option<(&str, u64)> {
        let (resource, received) = self.last_received.iter().min_by_key(|(_, received)| **received)?;
        Some((resource, *received))
    }
}

/// The API server counts as silent after this time: it sends a bookmark about
/// each minute.
pub const SILENCE: Duration = Duration::from_secs(150);

/// Syncs in a [`StatusAnswer`], at most.
pub const SYNCS: usize = 10;

/// A frontend that two Services want.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContestedLine {
    /// The Service that does not get it.
    pub service: String,
    /// The frontend.
    pub frontend: String,
    /// The Service that has it.
    pub holder: String,
    /// Why that one has it; absent if the agent does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl ContestedLine {
    /// The predicate of a sentence about the Service that has the frontend.
    pub fn why(&self) -> String {
        self.reason.map_or_else(|| "comes first".to_owned(), |reason| reason.to_string())
    }
}

/// One page of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalAnswer {
    /// The syncs, the newest first.
    pub entries: Vec<JournalEntry>,
    /// Where the next page begins; absent at the end.
    pub last: Option<u64>,
}

/// One page of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesAnswer {
    /// The names, `namespace/name`.
    pub names: Vec<String>,
    /// Where the next page begins; absent at the end.
    pub last: Option<String>,
}

/// One page of digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestsAnswer {
    /// The Services with rules.
    pub services: Vec<ServiceDigest>,
    /// Where the next page begins; absent at the end.
    pub last: Option<String>,
}

/// The digest of one Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDigest {
    /// `namespace/name`
    pub name: String,
    /// 16 hexadecimal digits.
    pub digest: String,
}

/// One sync, as the journal keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalEntry {
    /// Its number since the agent started, from 1 on.
    pub number: u64,
    /// When it ended, in milliseconds since 1970.
    pub ended: u64,
    /// Its duration in microseconds.
    pub microseconds: u64,
    /// Added elements.
    pub added: usize,
    /// Removed elements.
    pub removed: usize,
    /// Operations on tables, chains, rules and maps.
    pub objects: usize,
    /// Commits.
    pub commits: usize,
    /// The longest time in microseconds for which a commit kept other writers
    /// of nftables waiting, at most.
    pub lock_hold_microseconds: u64,
    /// The objects that changed, the first of them.
    pub causes: Vec<JournalCause>,
    /// The number of all objects that changed.
    pub cause_count: usize,
    /// The Services whose elements changed, the first of them; `node` are the
    /// elements of the node itself.
    pub services: Vec<JournalService>,
    /// Whether there were more.
    pub more_services: bool,
    /// The addresses of frontends and endpoints in the changed elements, the
    /// first of them.
    pub addresses: Vec<IpAddr>,
    /// Whether there were more.
    pub more_addresses: bool,
    /// Whether the kernel was read and compared.
    pub repaired: bool,
    /// The process that changed our tables before, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub culprit: Option<String>,
    /// What was not ours and was removed or undone.
    pub cleaned: Vec<String>,
    /// The Services that the kernel refused, the first of them.
    pub refused: Vec<String>,
    /// The cause, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// An object that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalCause {
    /// `Service shop/cart`
    pub object: String,
    /// `applied` or `deleted`.
    pub change: String,
    /// `resourceVersion 1234`, or the file and line.
    pub origin: String,
}

/// The elements of one Service that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalService {
    /// `namespace/name`, or `node`.
    pub name: String,
    /// Added elements.
    pub added: usize,
    /// Removed elements.
    pub removed: usize,
}

impl From<&SkeletonConfig> for RulesOf {
    fn from(config: &SkeletonConfig) -> Self {
        let detector = config.detector.clone().map(|detector| match detector {
            LocalDetector::Source(range) => Detector::Source(range),
            LocalDetector::Interface(name) => Detector::Interface(name),
            LocalDetector::InterfacePrefix(prefix) => Detector::InterfacePrefix(prefix),
        });
        Self {
            family: config.family,
            detector,
            masquerade_all: config.masquerade_all,
            node_ports_on_all_addresses: config.nodeports_on_all_addresses,
        }
    }
}

impl From<&RulesOf> for SkeletonConfig {
    fn from(rules: &RulesOf) -> Self {
        let detector = rules.detector.clone().map(|detector| match detector {
            Detector::Source(range) => LocalDetector::Source(range),
            Detector::Interface(name) => LocalDetector::Interface(name),
            Detector::InterfacePrefix(prefix) => LocalDetector::InterfacePrefix(prefix),
        });
        Self {
            family: rules.family,
            detector,
            masquerade_all: rules.masquerade_all,
            nodeports_on_all_addresses: rules.node_ports_on_all_addresses,
        }
    }
}
