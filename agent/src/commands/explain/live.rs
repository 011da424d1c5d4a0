//! The kernel's part of an answer on a running node.

use std::net::IpAddr;

use serde::Serialize;
use vmap_proxy_compiler::explain::answer::{Explanation, Question, VERSION};
use vmap_proxy_compiler::model::{Family, NodeInfo, ProxyConfig};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::ruleset::skeleton::SkeletonConfig;

use super::Error;
use super::next;
use super::others::{self, OtherChain};
use crate::netlink::{Kernel, default_addresses, local_addresses};
use crate::process;
use crate::query::answer::first_packet;
use crate::query::kernel::{self, KernelAnswer};
use crate::query::protocol::{NodeAnswer, RulesOf};

/// An answer with the next step for its reader.
#[derive(Debug, Serialize)]
pub(super) struct WithNext<'a, T> {
    #[serde(flatten)]
    pub(super) answer: &'a T,
    /// Absent if nothing needs to be done, or nothing is known that would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

/// The answer of an agent and of the kernel.
#[derive(Debug, Serialize)]
pub(super) struct Live<'a> {
    #[serde(flatten)]
    pub(super) agent: WithNext<'a, Explanation>,
    pub(super) kernel: &'a KernelAnswer,
    /// Base chains outside of the table of Services on the packet's way.
    #[serde(rename = "otherChains", skip_serializing_if = "Option::is_none")]
    pub(super) other_chains: Option<Vec<OtherChain>>,
}

/// The answer of the kernel alone.
#[derive(Debug, Serialize)]
pub(super) struct KernelAlone<'a> {
    pub(super) version: u32,
    pub(super) packet: &'a Question,
    pub(super) kernel: &'a KernelAnswer,
    /// Base chains outside of the table of Services on the packet's way.
    #[serde(rename = "otherChains", skip_serializing_if = "Option::is_none")]
    pub(super) other_chains: Option<Vec<OtherChain>>,
    /// Absent if nothing needs to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

impl<'a> KernelAlone<'a> {
    pub(super) fn new(packet: &'a Question, kernel: &'a KernelAnswer) -> Self {
        let (other_chains, next) = (others::on_the_usual_way(packet), next::of_kernel(kernel));
        Self { version: VERSION, packet, kernel, other_chains, next }
    }
}

/// Reads what the kernel does with the packet.
pub(super) fn read(node: &NodeAnswer, packet: &Question) -> Result<KernelAnswer, Error> {
    let family = Family::of(packet.destination);
    let rules = node.rules.iter().find(|rules| rules.family == family).ok_or(Error::NoRules)?;
    let mut kernel = Kernel::open()?;
    Ok(kernel::read(
        &mut kernel,
        &SkeletonConfig::from(rules),
        &first_packet(packet),
        node.interface_addresses.clone(),
    )?)
}

/// The node as the machine itself shows it, where no agent answers.
pub(super) fn node_without_agent(proxy: &ProxyConfig) -> Result<NodeAnswer, Error> {
    let runtime = process::event_loop().map_err(Error::Runtime)?;
    let (interface_addresses, addresses): (Vec<IpAddr>, Vec<IpAddr>) =
        runtime.block_on(async { Ok::<_, Error>((local_addresses().await?, default_addresses().await?)) })?;
    let info = NodeInfo {
        addresses: addresses.clone(),
        interface_addresses: interface_addresses.clone(),
        ..NodeInfo::default()
    };
    let planner = Planner::new(proxy.clone(), &info);
    let rules = Family::ALL.iter().map(|family| RulesOf::from(&planner.skeleton(&info, *family))).collect();
    Ok(NodeAnswer { name: proxy.node_name.clone(), addresses, interface_addresses, pod_cidrs: Vec::new(), rules })
}
