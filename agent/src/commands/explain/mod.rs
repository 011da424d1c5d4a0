//! `vmap-proxy explain`: where a packet goes, and why; or why a Service is not
//! served.

mod live;
mod next;
mod others;
mod place;
mod text;

use std::io;
use std::process::ExitCode;

use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::explain::answer::{Explanation, Fate, ServiceAnswer};
use vmap_proxy_compiler::model::ProxyConfig;

use super::asked::{AskError, Asked};
use crate::cli::{ExplainOptions, ReportFormat, StateSource, WRONG_USAGE};
use crate::netlink::NetlinkError;
use crate::terminal::{print, rendered};
use live::{KernelAlone, Live, WithNext};
pub(crate) use place::{Destination, PlaceError, node_address, outside, usual_interface};

/// The packet is dropped or refused, or the Service is not served.
const NOT_SERVED: u8 = 3;
/// The packet meets no frontend, and goes where it was sent to.
const NOT_A_FRONTEND: u8 = 4;
/// The kernel differs from the agent.
const KERNEL_DIFFERS: u8 = 5;

/// The reason why there is no explanation.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The question can't be understood.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The kernel can't be read.
    #[error("the kernel's elements can't be read: {0}")]
    Kernel(#[from] NetlinkError),
    /// The agent's answer lacks the rules of a family.
    #[error("the agent's answer lacks the rules of this address family")]
    NoRules,
    /// The addresses of this machine can't be read.
    #[error("the addresses of this machine can't be read: {0}")]
    Runtime(#[source] io::Error),
    /// The answer could not be printed.
    #[error("the answer could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The answer could not be written as JSON.
    #[error("the answer could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Explains a packet, or with no source a Service. A question that no answer
/// could fit ends with the status of wrong usage.
///
/// # Errors
/// If there is no answer.
pub fn explain(options: ExplainOptions) -> Result<ExitCode, Error> {
    match answer(options) {
        Err(Error::Place(error)) if error.is_wrong_usage() => {
            eprintln!("Error: {error}");
            Ok(ExitCode::from(WRONG_USAGE))
        }
        answered => answered,
    }
}

fn answer(options: ExplainOptions) -> Result<ExitCode, Error> {
    let destination = Destination::parse(&options.to)?;
    let (is_live, proxy) = match &options.source {
        StateSource::Files { .. } => (false, None),
        StateSource::Node { proxy, .. } => (true, Some(proxy.clone())),
    };
    let mut asked = match (Asked::open(options.source), proxy) {
        (Err(AskError::Client(error)), Some(proxy)) if error.is_no_agent() && options.from.is_some() => {
            let from = options.from.as_deref().unwrap_or_default();
            eprintln!("{error}; the kernel alone answers");
            return kernel_alone(&proxy, from, &destination, options.interface.as_deref(), options.output);
        }
        (asked, _) => asked?,
    };
    match ask(&mut asked, options.from.as_deref(), &destination, options.interface.as_deref())? {
        Explained::Packet(answer) => packet(&mut asked, &answer, is_live, options.output),
        Explained::Service(answer) => service(&answer, options.output),
    }
}

/// The answer to `--from` and `--to`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Explained {
    /// The fate of a packet.
    Packet(Box<Explanation>),
    /// A Service: there is no source, or the Service has no address.
    Service(Box<ServiceAnswer>),
}

/// Explains a packet, or with no source a Service.
///
/// # Errors
/// If source and destination fit no packet, or there is no answer.
pub(crate) fn ask(
    asked: &mut Asked,
    from: Option<&str>,
    to: &Destination,
    interface: Option<&str>,
) -> Result<Explained, PlaceError> {
    let about = match to {
        Destination::Service { name, .. } => Some(name.clone()),
        _ => None,
    };
    let packet = match from {
        Some(from) => place::packet(asked, from, to, interface)?,
        None => None,
    };
    match (packet, about) {
        (Some(packet), about) => Ok(Explained::Packet(Box::new(asked.packet(&packet, about)?))),
        (None, Some(name)) => Ok(Explained::Service(Box::new(asked.service(&name)?))),
        (None, None) => Err(PlaceError::NoSource),
    }
}

fn packet(asked: &mut Asked, answer: &Explanation, is_live: bool, output: ReportFormat) -> Result<ExitCode, Error> {
    let mut agent = WithNext { answer, next: next::of_packet(answer) };
    if !is_live {
        print(&rendered(output, &agent, |agent, paint| text::packet(agent, "", paint))?)?;
        return Ok(status_of(answer.verdict));
    }
    let mut kernel = live::read(&asked.node()?, &answer.packet)?;
    kernel.compare(answer);
    let other_chains = others::on_the_way(answer);
    let doubt = others::doubt(other_chains.as_deref().unwrap_or_default());
    if !doubt.is_empty() {
        agent.next = agent.next.or_else(|| next::of_doubt(answer));
    }
    let live = Live { agent, kernel: &kernel, other_chains };
    let text = |live: &Live<'_>, paint| {
        text::packet(&live.agent, &doubt, paint)
            + &text::kernel(live.kernel, true, paint)
            + &others::text(live.other_chains.as_deref().unwrap_or_default(), paint)
    };
    print(&rendered(output, &live, text)?)?;
    Ok(if kernel.differences.is_empty() { status_of(answer.verdict) } else { ExitCode::from(KERNEL_DIFFERS) })
}

/// An answer without an agent: from the elements that the kernel has.
fn kernel_alone(
    proxy: &ProxyConfig,
    from: &str,
    destination: &Destination,
    interface: Option<&str>,
    output: ReportFormat,
) -> Result<ExitCode, Error> {
    let node = live::node_without_agent(proxy)?;
    let packet = place::packet_without_agent(&node, from, destination, interface)?;
    let kernel = live::read(&node, &packet)?;
    let text = |alone: &KernelAlone<'_>, paint| {
        let others = alone.other_chains.as_deref().unwrap_or_default();
        text::kernel_alone(alone, &others::doubt(others), paint) + &others::text(others, paint)
    };
    print(&rendered(output, &KernelAlone::new(&packet, &kernel), text)?)?;
    Ok(status_of(kernel.verdict))
}

fn status_of(verdict: Fate) -> ExitCode {
    match verdict {
        Fate::Dnat => ExitCode::SUCCESS,
        Fate::Drop | Fate::Reject | Fate::Inconsistent => ExitCode::from(NOT_SERVED),
        Fate::Pass => ExitCode::from(NOT_A_FRONTEND),
    }
}

fn service(answer: &ServiceAnswer, output: ReportFormat) -> Result<ExitCode, Error> {
    let with_next = WithNext { answer, next: next::of_service(answer) };
    print(&rendered(output, &with_next, text::service)?)?;
    Ok(if is_served(answer) { ExitCode::SUCCESS } else { ExitCode::from(NOT_SERVED) })
}

/// Returns whether every frontend of the Service serves at least some clients.
fn is_served(answer: &ServiceAnswer) -> bool {
    let mut frontends = answer.ports.iter().flat_map(|port| &port.frontends);
    answer.programmed && frontends.all(|frontend| frontend.state.serves())
}
