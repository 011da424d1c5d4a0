//! The format of a vector file, and a loader that takes nothing for granted.
//!
//! A vector that is misread tests nothing, so every key has to be known and
//! every value has to make sense; only the manifests under `objects` and
//! `apply` are taken as they are.

mod default;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// The reason why vectors could not be loaded.
#[derive(Debug, Error)]
pub enum VectorError {
    /// A file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is no YAML or JSON, has an unknown key, lacks one, or holds a
    /// value of the wrong type. The message names key and line.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        message: String,
    },
    /// A value that the format allows makes no sense.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The value, and the reason.
        what: String,
    },
    /// A folder holds no vector, so a run over it would prove nothing.
    #[error("{}: no vector here", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// One vector: a file. What the file leaves out is the default's (`schema/default.yaml`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "default::VectorFile", rename_all = "camelCase")]
pub struct Vector {
    /// The file name without its ending.
    pub name: String,
    /// The proven behaviour, in one line.
    pub why: String,
    /// The node that the proxy runs on.
    pub node: VectorNode,
    /// KubeProxyConfiguration fields that differ from the default.
    pub config: Map<String, Value>,
    /// Manifests that exist before the proxy starts.
    pub objects: Vec<Value>,
    /// Packets once the proxy has settled.
    pub packets: Vec<Probe>,
    /// Changes, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// The node that the proxy runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VectorNode {
    /// Its name.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`; empty: no such label.
    pub zone: String,
    /// Its primary addresses.
    pub ips: NodeIps,
    /// Further addresses on its interfaces; may be load balancer addresses.
    #[serde(default, rename = "extraIPs", skip_serializing_if = "Vec::is_empty")]
    pub extra_ips: Vec<IpAddr>,
    /// The ranges of its pods.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The bridge whose ports its pods are behind, and which shows what it
    /// forwards to the IP hooks (`bridge-nf-call-iptables`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

/// The primary addresses of a node; either may be absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeIps {
    /// The IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

/// One change of the cluster: first all of `delete`, then all of `apply`,
/// without waiting in between; then the packets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    /// Objects to delete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<ObjectRef>,
    /// Manifests to create or replace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apply: Vec<Value>,
    /// Packets once the proxy has settled.
    pub packets: Vec<Probe>,
}

/// Names an object to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ObjectRef {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for cluster-scoped kinds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A packet that opens a new connection, and what has to happen to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    /// The source address.
    pub from: Origin,
    /// The destination.
    pub to: Target,
    /// The expected fate.
    pub expect: Expect,
    /// Repeats from this address must all reach one endpoint, any of the set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    /// All packets of the phase with this label must reach endpoints of one
    /// pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_group: Option<String>,
}

/// The source of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Follows from the address; written down for the reader and checked.
    pub kind: OriginKind,
    /// The source address.
    pub ip: IpAddr,
    /// The interface it arrives on, where the detection mode looks at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
}

/// The relation of a source address to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OriginKind {
    /// In `node.podCIDRs`.
    LocalPod,
    /// A pod of another node.
    RemotePod,
    /// An address of the node, or loopback: sent by the node itself.
    Node,
    /// Anything else.
    External,
}

/// The destination of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Destination address.
    pub ip: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Transport protocol.
    pub proto: TransportProtocol,
}

/// Transport protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TransportProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// The expected fate of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The kind of outcome.
    pub verdict: Verdict,
    /// For `dnat`: each of these is seen over many connections, no other.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub endpoints: BTreeSet<SocketAddr>,
    /// For `dnat`: whether the source address is rewritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<bool>,
    /// Endpoints for which the source is rewritten although `masquerade` is
    /// false, because the endpoint is the sender itself.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hairpin: BTreeSet<SocketAddr>,
}

/// Kinds of outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Delivered to an endpoint.
    Dnat,
    /// No answer.
    Drop,
    /// ICMP or ICMPv6 port unreachable.
    Reject,
    /// The proxy does nothing.
    Pass,
}

impl Vector {
    /// The phases: the start, then each step; with the packets of each.
    pub fn phases(&self) -> impl Iterator<Item = (Option<&Step>, &[Probe])> {
        let start = std::iter::once((None, self.packets.as_slice()));
        start.chain(self.steps.iter().map(|step| (Some(step), step.packets.as_slice())))
    }
}

impl VectorNode {
    /// Returns whether an address is one of the node's own, loopback included.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses().contains(&ip)
    }

    /// Every address on the node's interfaces but loopback.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.primary_ips().chain(self.extra_ips.iter().copied()).collect()
    }

    /// The primary addresses, IPv4 first.
    pub fn primary_ips(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ips.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.ips.v6.map(IpAddr::V6))
    }
}

/// Loads every vector (`*.yaml`, `*.yml`, `*.json`) of a folder, by name.
///
/// # Errors
///
/// The first file that cannot be read or breaks the format; a folder without
/// vectors.
pub fn load_dir(path: &Path) -> Result<Vec<Vector>, VectorError> {
    let mut vectors = files(path)?.iter().map(|file| load_file(file)).collect::<Result<Vec<Vector>, _>>()?;
    vectors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twins) = vectors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let what = format!("two files hold the vector {:?}", twins[0].name);
        return Err(VectorError::Invalid { path: path.to_owned(), what });
    }
    Ok(vectors)
}

/// The files (`*.yaml`, `*.yml`, `*.json`) of a folder that hold a vector each.
///
/// # Errors
///
/// The folder cannot be read, or holds none.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, VectorError> {
    let read_error = |source| VectorError::Read { path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(read_error)? {
        let file = entry.map_err(read_error)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(VectorError::Empty { path: path.to_owned() });
    }
    files.sort();
    Ok(files)
}

/// Loads one vector.
///
/// # Errors
///
/// The file cannot be read or breaks the format.
pub fn load_file(path: &Path) -> Result<Vector, VectorError> {
    let text = fs::read_to_string(path).map_err(|source| VectorError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Reads one vector from the text of its file; `path` decides between YAML and
/// JSON, and the vector's name has to agree with it.
///
/// # Errors
///
/// The text breaks the format.
pub fn parse(path: &Path, text: &str) -> Result<Vector, VectorError> {
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    let parsed = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())
    } else {
        // Kubernetes names such as "no" or "on" are no booleans.
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
    };
    let vector: Vector = parsed.map_err(|message| VectorError::Format { path: path.to_owned(), message })?;
    match fault(path, &vector) {
        Some(what) => Err(VectorError::Invalid { path: path.to_owned(), what }),
        None => Ok(vector),
    }
}

/// The first thing in a vector that makes no sense.
fn fault(path: &Path, vector: &Vector) -> Option<String> {
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(&vector.name) {
        return Some(format!("name {:?} is not the name of the file", vector.name));
    }
    config_fault(&vector.config)
        .or_else(|| vector.objects.iter().find_map(manifest_fault))
        .or_else(|| vector.steps.iter().flat_map(|step| &step.apply).find_map(manifest_fault))
        .or_else(|| {
            vector.phases().enumerate().find_map(|(phase, (_, probes))| {
                probes.iter().enumerate().find_map(|(index, probe)| {
                    let fault = probe_fault(&vector.node, probe)?;
                    Some(format!("phase {phase}, packet {index}: {fault}"))
                })
            })
        })
}

/// The fields of KubeProxyConfiguration (`kubeproxy.config.k8s.io/v1alpha1`).
/// A field that no program reads would make a vector test the defaults.
const CONFIG_FIELDS: &[&str] = &[
    "apiVersion",
    "bindAddress",
    "bindAddressHardFail",
    "clientConnection",
    "clusterCIDR",
    "configSyncPeriod",
    "conntrack",
    "detectLocal",
    "detectLocalMode",
    "enableProfiling",
    "featureGates",
    "healthzBindAddress",
    "hostnameOverride",
    "iptables",
    "ipvs",
    "kind",
    "logging",
    "metricsBindAddress",
    "mode",
    "nftables",
    "nodePortAddresses",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel",
];

/// The fields of those sections that decide the fate of packets.
const CONFIG_SECTIONS: &[(&str, &[&str])] = &[
    ("nftables", &["masqueradeBit", "masqueradeAll", "syncPeriod", "minSyncPeriod"]),
    ("detectLocal", &["bridgeInterface", "interfaceNamePrefix"]),
];

fn config_fault(config: &Map<String, Value>) -> Option<String> {
    if let Some(key) = config.keys().find(|key| !CONFIG_FIELDS.contains(&key.as_str())) {
        return Some(format!("unknown key `config.{key}`"));
    }
    CONFIG_SECTIONS.iter().find_map(|(section, known)| {
        let fields = config.get(*section)?;
        let Some(fields) = fields.as_object() else {
            return Some(format!("`config.{section}` is no mapping"));
        };
        let key = fields.keys().find(|key| !known.contains(&key.as_str()))?;
        Some(format!("unknown key `config.{section}.{key}`"))
    })
}

fn manifest_fault(manifest: &Value) -> Option<String> {
    let missing = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).is_none();
    ["/apiVersion", "/kind", "/metadata/name"]
        .into_iter()
        .find(|pointer| missing(pointer))
        .map(|pointer| format!("a manifest without {pointer}: {manifest}"))
}

fn probe_fault(node: &VectorNode, probe: &Probe) -> Option<String> {
    let Origin { kind, ip, .. } = &probe.from;
    let own = node.has_address(*ip);
    let own_pod = !own && node.pod_cidrs.iter().any(|cidr| cidr.contains(ip));
    if own != (*kind == OriginKind::Node) || own_pod != (*kind == OriginKind::LocalPod) {
        return Some(format!("{ip} is not of kind {kind:?}"));
    }
    if ip.is_ipv4() != probe.to.ip.is_ipv4() {
        return Some(format!("{ip} and {} are of different families", probe.to.ip));
    }
    let expect = &probe.expect;
    let is_dnat = expect.verdict == Verdict::Dnat;
    if is_dnat && (expect.endpoints.is_empty() || expect.masquerade.is_none()) {
        return Some("verdict dnat needs `endpoints` and `masquerade`".to_owned());
    }
    if !is_dnat && (!expect.endpoints.is_empty() || expect.masquerade.is_some()) {
        return Some("`endpoints` and `masquerade` belong to verdict dnat".to_owned());
    }
    if !expect.hairpin.is_subset(&expect.endpoints) {
        return Some("`hairpin` names what is not in `endpoints`".to_owned());
    }
    None
}

#[cfg(test)]
mod tests;
