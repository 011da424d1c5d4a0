//! `vmap-proxy version`: the versions of this program and of the running agent.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::ruleset::LAYOUT;

use super::asked::{AskError, Asked};
use crate::cli::VersionOptions;
use crate::query::protocol;
use crate::terminal::{Paint, print, rendered};
use crate::version::{GIT_VERSION, KUBERNETES_MAJOR, KUBERNETES_MINOR, PLATFORM};

/// The agent is of another version.
const ANOTHER: u8 = 3;

/// The versions could not be printed.
#[derive(Debug, Error)]
pub enum Error {
    /// Standard output can't be written.
    #[error("the versions could not be printed: {0}")]
    Print(#[from] io::Error),
    /// They could not be written as JSON.
    #[error("the versions could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What the JSON form has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    version: u32,
    /// The version of this program.
    program: &'static str,
    /// Its version in the form of Kubernetes' components.
    git_version: &'static str,
    /// The Kubernetes whose kube-proxy is matched.
    kubernetes: String,
    platform: &'static str,
    /// The layout of the tables: a table of another one is replaced at the
    /// start.
    layout: &'static str,
    /// The version of the questions over the socket.
    protocol: u32,
    /// The version of the running agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    /// The reason why the agent's version is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_agent: Option<String>,
}

/// Prints the versions.
///
/// # Errors
/// If they can't be printed. That no agent answers is none.
pub fn version(options: &VersionOptions) -> Result<ExitCode, Error> {
    let agent = Asked::agent(&options.socket).and_then(|mut asked| asked.status());
    let (agent, no_agent) = match agent {
        Ok(status) => (Some(status.program), None),
        Err(AskError::Client(error)) if error.is_no_agent() => {
            (None, Some(format!("no agent answers at {}", options.socket.display())))
        }
        Err(error) => (None, Some(error.to_string())),
    };
    let is_another = agent.as_ref().is_some_and(|agent| agent != env!("CARGO_PKG_VERSION"));
    let versions = Versions {
        version: 1,
        program: env!("CARGO_PKG_VERSION"),
        git_version: GIT_VERSION,
        kubernetes: format!("{KUBERNETES_MAJOR}.{KUBERNETES_MINOR}"),
        platform: PLATFORM,
        layout: LAYOUT,
        protocol: protocol::VERSION,
        agent,
        no_agent,
    };
    print(&rendered(options.output, &versions, text)?)?;
    Ok(if is_another { ExitCode::from(ANOTHER) } else { ExitCode::SUCCESS })
}

fn text(versions: &Versions, paint: Paint) -> String {
    let Versions { program, kubernetes, platform, layout, protocol, agent, no_agent, .. } = versions;
    let mut text = format!("{}\n", paint.heading(&format!("vmap-proxy {program}")));
    let _ = writeln!(text, "Replaces   kube-proxy of Kubernetes {kubernetes}");
    let _ = writeln!(text, "Platform   {platform}");
    let _ = writeln!(text, "Tables     {layout}");
    let _ = writeln!(text, "Questions  version {protocol}");
    let running = match (agent, no_agent) {
        (Some(agent), _) if agent == program => paint.good(&format!("{agent}, the same")),
        (Some(agent), _) => paint.warning(&format!("{agent}, another one: some answers may differ")),
        (None, Some(why)) => paint.faint(why),
        (None, None) => String::new(),
    };
    let _ = writeln!(text, "Agent      {running}");
    text
}
