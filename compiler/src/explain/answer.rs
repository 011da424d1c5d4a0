//! The answers, as they go out in JSON. `docs/explain.md` describes the schema;
//! [`VERSION`] grows when a field changes its meaning or goes away. New fields
//! and new codes may come at any time.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::Protocol;
use crate::select::{Unused, Used};

/// The version of the schema.
pub const VERSION: u32 = 1;

/// Maximum number of endpoints, unused endpoints, slices or notes in one answer.
/// The totals are always complete.
pub const MAX_LISTED: usize = 1000;

/// The object and the field that caused a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// `Service`, `EndpointSlice`, `Node`, `ServiceCIDR` or
    /// `KubeProxyConfiguration`.
    pub kind: String,
    /// The namespace; empty for objects without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The name; empty for the configuration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The path of the field.
    pub field: String,
    /// Its value; of a list the entry that matters.
    pub value: String,
}

impl fmt::Display for Cause {
    /// `Service shop/cart spec.externalTrafficPolicy=Local`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.name.is_empty() {
            f.write_str(" ")?;
            if !self.namespace.is_empty() {
                write!(f, "{}/", self.namespace)?;
            }
            f.write_str(&self.name)?;
        }
        write!(f, " {}={}", self.field, self.value)
    }
}

/// The kind of a decision, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// The destination is a frontend or NodePort of a Service.
    Frontend,
    /// The destination is no frontend: the packet is not touched.
    NotAFrontend,
    /// The port is a NodePort, but this address serves none.
    NotANodePortAddress,
    /// The destination is a cluster IP, and its Service has no such port.
    UndefinedPort,
    /// The destination is in a service range, and no Service has it.
    Unallocated,
    /// The source ranges let the client through.
    SourceRangesAllow,
    /// The source ranges exclude the client.
    SourceRangesDeny,
    /// `internalTrafficPolicy: Local`: only endpoints of this node.
    InternalPolicyLocal,
    /// `externalTrafficPolicy: Local`: only endpoints of this node.
    ExternalPolicyLocal,
    /// `externalTrafficPolicy: Local`, but the client is a local pod, so all
    /// endpoints of the cluster serve it.
    ExternalPolicyLocalPod,
    /// The same for a client on the node itself.
    ExternalPolicyLocalNode,
    /// Ready endpoints serve.
    Ready,
    /// Only endpoints with a hint of this node serve.
    HintOfNode,
    /// Only endpoints with a hint of this node's zone serve.
    HintOfZone,
    /// No endpoint is ready; those that still serve while they terminate do.
    Terminating,
    /// No endpoint can serve: the packet is refused.
    NoEndpoint,
    /// No endpoint of this node can serve, others could: the packet is dropped.
    NoLocalEndpoint,
    /// Clients stay with their endpoint.
    Affinity,
    /// `masqueradeAll` is set.
    MasqueradeAll,
    /// The client is no local pod: it gets an address of this node as source.
    MasqueradeNotFromPod,
    /// The endpoint is the client itself.
    MasqueradeHairpin,
    /// External traffic to endpoints anywhere in the cluster is masqueraded.
    MasqueradeExternal,
    /// The node's own traffic with `externalTrafficPolicy: Local`.
    MasqueradeFromNode,
    /// The endpoint sees the client's address.
    SourceKept,
    /// Another Service wants this frontend, or has it.
    Contested,
    /// The Service belongs to another proxy.
    OtherProxy,
    /// The Service is headless.
    Headless,
    /// The Service is an `ExternalName`.
    ExternalName,
    /// The Service has no usable cluster IP of this family.
    NoClusterIp,
    /// The Service asks for too many elements.
    TooLarge,
    /// The kernel refused the Service.
    Quarantined,
    /// The Service object does not exist.
    NoService,
    /// A field cannot be used.
    BadField,
    /// A change of the Service is known and not programmed yet.
    Pending,
    /// No EndpointSlice names the Service.
    NoSlice,
    /// A slice of another address family.
    OtherFamily,
    /// A slice without a port of this name and protocol.
    OtherPort,
    /// A slice without endpoints.
    EmptySlice,
}

impl Code {
    /// Returns whether it is a reason for a Service to have no rules at all.
    pub fn is_unserved(self) -> bool {
        matches!(self, Self::OtherProxy | Self::Headless | Self::ExternalName | Self::NoClusterIp)
    }

    /// Returns whether it is a reason for an endpoint to see an address of this
    /// node.
    pub fn is_masquerading(self) -> bool {
        matches!(
            self,
            Self::MasqueradeAll
                | Self::MasqueradeNotFromPod
                | Self::MasqueradeHairpin
                | Self::MasqueradeExternal
                | Self::MasqueradeFromNode
        )
    }
}

/// One decision, with its causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Its kind.
    pub code: Code,
    /// One sentence for people.
    pub text: String,
    /// The fields that caused it, the most important first.
    pub causes: Vec<Cause>,
}

/// The fate of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It goes to one of the endpoints.
    Dnat,
    /// It is discarded without an answer.
    Drop,
    /// It is answered with port unreachable.
    Reject,
    /// It goes where it was sent to, untouched.
    Pass,
    /// It depends on chance: the rule set is damaged.
    Inconsistent,
}

/// The packet of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// The source address.
    pub source: IpAddr,
    /// The destination that the sender chose.
    pub destination: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
    /// The interface on which it arrives; absent: this node sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// The service port that a packet is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortName {
    /// The namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The name of the port; may be empty.
    pub port_name: String,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// The port of the Service.
    pub port: u16,
}

/// An endpoint that the packet may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointUse {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The chance of a new client is one in this number. (Of lists with more
    /// than 3 endpoints the chances differ by at most 1/256.)
    pub one_in: usize,
    /// Whether it sees an address of this node as the source.
    pub masqueraded: bool,
    /// Whether it is on this node.
    pub local: bool,
    /// Why it serves; absent for an endpoint that no slice lists any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
    /// The condition that lets it serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

/// An endpoint that a slice lists, and that the packet cannot reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointLeftOut {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Why it does not serve.
    pub unused: Unused,
    /// One sentence for people.
    pub text: String,
    /// The field that excludes it.
    pub cause: Cause,
}

/// One rule that matched, with the element that it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The netfilter hook.
    pub hook: String,
    /// The chain.
    pub chain: String,
    /// The rule in nft syntax.
    pub rule: String,
    /// The set or map in which an element was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// The element in nft syntax. Of a rule that draws a slot: one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
}

/// The answer to one packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// [`VERSION`]
    pub version: u32,
    /// The node that the answer is for.
    pub node: String,
    /// The question.
    pub packet: Question,
    /// The fate of the packet.
    pub verdict: Fate,
    /// The service port that it is for, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<PortName>,
    /// The decision that led to the verdict.
    pub decision: Decision,
    /// All decisions, in the order in which the packet met them.
    pub decisions: Vec<Decision>,
    /// The endpoints that it may reach, at most [`MAX_LISTED`], sorted.
    pub endpoints: Vec<EndpointUse>,
    /// The number of endpoints that it may reach.
    pub endpoint_count: usize,
    /// Endpoints that do not serve it, at most [`MAX_LISTED`], sorted.
    pub unused: Vec<EndpointLeftOut>,
    /// The number of endpoints that do not serve it.
    pub unused_count: usize,
    /// For how many seconds clients stay with their endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// The rules and elements that it meets.
    pub path: Vec<Step>,
    /// Further facts that may explain an unexpected verdict.
    pub notes: Vec<Decision>,
}

/// The state of one frontend or NodePort of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendState {
    /// Clients reach endpoints.
    Serves,
    /// Some clients reach endpoints; others are dropped, because this node has none.
    ServesLocalClients,
    /// Clients are refused: no endpoint at all.
    Rejects,
    /// Clients are dropped: no endpoint on this node.
    Drops,
    /// Another Service has it.
    Denied,
    /// Nothing of the Service is programmed.
    NotProgrammed,
}

impl FrontendState {
    /// Returns whether at least some clients reach endpoints.
    pub fn serves(self) -> bool {
        matches!(self, Self::Serves | Self::ServesLocalClients)
    }
}

/// One frontend or NodePort of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendAnswer {
    /// The address; absent for a NodePort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, or the NodePort.
    pub port: u16,
    /// Its state.
    pub state: FrontendState,
    /// Number of endpoints for clients that may reach any in the cluster.
    pub cluster_endpoints: usize,
    /// Number of endpoints for clients that must stay on this node; absent if no
    /// policy asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_endpoints: Option<usize>,
    /// The only clients that it serves (`spec.loadBalancerSourceRanges`); empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<IpNet>,
    /// The field that makes it a frontend.
    pub cause: Cause,
}

/// One port of a Service in one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortAnswer {
    /// The port.
    pub port: PortName,
    /// Its frontends.
    pub frontends: Vec<FrontendAnswer>,
    /// The endpoints that serve the list of the cluster.
    pub endpoints: Vec<EndpointUse>,
    /// The number of them.
    pub endpoint_count: usize,
    /// Those that do not.
    pub unused: Vec<EndpointLeftOut>,
    /// The number of them.
    pub unused_count: usize,
    /// Slices that have no part in it, and other facts.
    pub notes: Vec<Decision>,
}

/// How much of a Service an answer has: a list of many has no use for all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detail {
    /// Everything.
    #[default]
    All,
    /// The endpoints without the fields that let them serve, and no notes.
    Endpoints,
    /// No endpoints but the number of those that serve, and no notes.
    Frontends,
}

/// The answer to a question about a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAnswer {
    /// [`VERSION`]
    pub version: u32,
    /// The node that the answer is for.
    pub node: String,
    /// The namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether anything of it is programmed.
    pub programmed: bool,
    /// Why it is not programmed, or not all of it.
    pub reasons: Vec<Decision>,
    /// Its ports, IPv4 first.
    pub ports: Vec<PortAnswer>,
}
