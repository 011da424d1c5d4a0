//! `vmap-proxy doctor`: examines this node. The checks are in
//! [`crate::doctor`].

use std::io;
use std::path::Path;
use std::process::ExitCode;

use thiserror::Error;

use super::asked::{AskError, Asked};
use crate::cli::{DoctorOptions, ReportFormat};
use crate::doctor::facts::{Agent, AgentFact, Facts};
use crate::doctor::{examine, exit_status, json, text};
use crate::terminal::{Paint, print};

/// The reason why nothing was examined.
#[derive(Debug, Error)]
pub enum Error {
    /// No event loop could be made for the questions to the kernel.
    #[error("the node can't be examined: {0}; is there memory, and a free file descriptor?")]
    Runtime(#[source] io::Error),
    /// The findings could not be printed.
    #[error("the findings could not be printed: {0}")]
    Print(#[source] io::Error),
}

/// Examines this node and prints the findings. Changes nothing.
///
/// # Errors
/// If nothing can be examined or printed. Findings are no errors: the status
/// has their severity, see [`exit_status`].
pub fn doctor(options: DoctorOptions) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    // An agent is not needed: the node can be examined before there is one.
    let agent = match agent(&options.socket) {
        Ok(agent) => AgentFact::Answers(Box::new(agent)),
        Err(AskError::Client(error)) if error.is_no_agent() => AgentFact::None(options.socket.clone()),
        Err(error) => AgentFact::Silent(error.to_string()),
    };
    let facts = runtime.block_on(Facts::read(options.cluster_cidrs, options.flow_table));
    let findings = examine(&Facts { agent, ..facts });
    let report = match options.output {
        ReportFormat::Text => text(&findings, Paint::of_terminal()),
        ReportFormat::Json => json(&findings),
    };
    print(&report).map_err(Error::Print)?;
    Ok(ExitCode::from(exit_status(&findings)))
}

fn agent(socket: &Path) -> Result<Agent, AskError> {
    let mut asked = Asked::agent(socket)?;
    let status = asked.status()?;
    // An agent of an earlier version may not know this question.
    let without_endpoints = asked.without_endpoints().map_err(|error| error.to_string());
    Ok(Agent { status, without_endpoints })
}
