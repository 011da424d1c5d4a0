//! `vmap-proxy explain`: where a packet goes, and why; or why a Service is not
//! served.

mod place;
mod text;

use std::io;
use std::process::ExitCode;

use thiserror::Error;
use vmap_proxy_compiler::explain::answer::{Explanation, Fate, FrontendState, Question, ServiceAnswer};

use super::asked::{AskError, Asked};
use super::paint::{Paint, print};
use crate::cli::{ExplainOptions, ReportFormat, StateSource};
use place::{Destination, PlaceError};

/// The packet is dropped or refused, or the Service is not served.
const NOT_SERVED: u8 = 3;
/// The packet meets no frontend, and goes where it was sent to.
const NOT_A_FRONTEND: u8 = 4;

/// The reason why there is no explanation.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The question can't be understood.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The answer could not be printed.
    #[error("the answer could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The answer could not be written as JSON.
    #[error("the answer could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Explains a packet, or with no source a Service.
///
/// # Errors
/// If the question can't be understood, or there is no answer.
pub fn explain(options: ExplainOptions) -> Result<ExitCode, Error> {
    let destination = Destination::parse(&options.to)?;
    let mut asked = match options.source {
        StateSource::Files { manifests, proxy } => Asked::files(manifests, *proxy)?,
    };
    let Some(from) = &options.from else {
        let Destination::Service { name, .. } = &destination else { return Err(PlaceError::NoSource.into()) };
        return service(&mut asked, name, options.output);
    };
    let Some(packet) = place::packet(&mut asked, from, &destination, options.interface.as_deref())? else {
        // A Service without an address: there is no packet to it.
        let Destination::Service { name, .. } = &destination else { return Err(PlaceError::NoSource.into()) };
        return service(&mut asked, name, options.output);
    };
    let about = match &destination {
        Destination::Service { name, .. } => Some(name.clone()),
        _ => None,
    };
    packet_answer(&mut asked, &packet, about, options.output)
}

fn packet_answer(
    asked: &mut Asked,
    packet: &Question,
    about: Option<String>,
    output: ReportFormat,
) -> Result<ExitCode, Error> {
    let answer = asked.packet(packet, about)?;
    match output {
        ReportFormat::Text => print(&text::packet(&answer, Paint::of_terminal()))?,
        ReportFormat::Json => print(&serde_json::to_string_pretty(&answer)?)?,
    }
    Ok(status_of(&answer))
}

fn status_of(answer: &Explanation) -> ExitCode {
    match answer.verdict {
        Fate::Dnat => ExitCode::SUCCESS,
        Fate::Drop | Fate::Reject | Fate::Inconsistent => ExitCode::from(NOT_SERVED),
        Fate::Pass => ExitCode::from(NOT_A_FRONTEND),
    }
}

fn service(asked: &mut Asked, name: &str, output: ReportFormat) -> Result<ExitCode, Error> {
    let answer = asked.service(name)?;
    match output {
        ReportFormat::Text => print(&text::service(&answer, Paint::of_terminal()))?,
        ReportFormat::Json => print(&serde_json::to_string_pretty(&answer)?)?,
    }
    Ok(if is_served(&answer) { ExitCode::SUCCESS } else { ExitCode::from(NOT_SERVED) })
}

/// Returns whether every frontend of the Service serves at least some clients.
fn is_served(answer: &ServiceAnswer) -> bool {
    let mut frontends = answer.ports.iter().flat_map(|port| &port.frontends);
    let serves = |state: FrontendState| matches!(state, FrontendState::Serves | FrontendState::ServesLocalClients);
    answer.programmed && frontends.all(|frontend| serves(frontend.state))
}
