//! `vmap-proxy get`: Services, frontends or endpoints as tables.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use thiserror::Error;
use vmap_proxy_compiler::explain::answer::{FrontendAnswer, PortAnswer, ServiceAnswer};

use super::asked::{AskError, Asked};
use crate::cli::{GetFormat, GetOptions, ListOf};
use crate::terminal::{columns, print};

/// The reason why there is no list.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// There is no such Service.
    #[error("there is no Service {0} here")]
    NoService(String),
    /// The list could not be printed.
    #[error("the list could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The list could not be written as JSON.
    #[error("the list could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints the list.
///
/// # Errors
/// If there is no answer, or no such Service.
pub fn get(options: GetOptions) -> Result<ExitCode, Error> {
    let mut asked = Asked::open(options.source)?;
    let mut services = Vec::new();
    match &options.name {
        Some(name) => {
            let name = format!("{}/{name}", options.namespace.as_deref().unwrap_or("default"));
            let answer = asked.service(&name)?;
            let is_missing = answer.ports.is_empty() && !answer.programmed && answer.reasons.iter().any(is_no_service);
            if is_missing {
                return Err(Error::NoService(name));
            }
            services.push(answer);
        }
        None => asked.each_service(options.namespace.as_deref(), |service| services.push(service))?,
    }
    match options.output {
        GetFormat::Json => print(&serde_json::to_string_pretty(&services)?)?,
        format => print(&table(options.listed, &services, format == GetFormat::Wide))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn is_no_service(reason: &vmap_proxy_compiler::explain::Decision) -> bool {
    reason.code == vmap_proxy_compiler::explain::Code::NoService
}

fn table(listed: ListOf, services: &[ServiceAnswer], is_wide: bool) -> String {
    let headings: &[&str] = match listed {
        ListOf::Services => &["NAMESPACE", "NAME", "FRONTENDS", "ENDPOINTS", "STATE"],
        ListOf::Frontends => &["NAMESPACE", "NAME", "FRONTEND", "STATE", "CLUSTER", "LOCAL"],
        ListOf::Endpoints => &["NAMESPACE", "NAME", "PORT", "ENDPOINT", "STATE"],
    };
    let mut rows: Vec<Vec<String>> = vec![headings.iter().map(|heading| (*heading).to_owned()).collect()];
    if is_wide {
        rows[0].push("FIELD".to_owned());
    }
    for service in services {
        let begin = || vec![service.namespace.clone(), service.name.clone()];
        match listed {
            ListOf::Services => rows.push([begin(), of_service(service, is_wide)].concat()),
            ListOf::Frontends => {
                let frontends = service.ports.iter().flat_map(|port| &port.frontends);
                rows.extend(frontends.map(|frontend| [begin(), of_frontend(frontend, is_wide)].concat()));
            }
            ListOf::Endpoints => {
                let endpoints = service.ports.iter().flat_map(|port| of_endpoints(port, is_wide));
                rows.extend(endpoints.map(|endpoint| [begin(), endpoint].concat()));
            }
        }
    }
    columns("", &rows)
}

/// A Service in one line.
pub(crate) struct Summary {
    /// The number of its frontends and NodePorts.
    pub(crate) frontends: usize,
    /// The number of endpoints that serve, summed over its ports.
    pub(crate) endpoints: usize,
    /// Whether every frontend serves.
    pub(crate) serves: bool,
    /// The same in words.
    pub(crate) state: String,
}

impl Summary {
    /// Counts.
    pub(crate) fn of(service: &ServiceAnswer) -> Self {
        let frontends = || service.ports.iter().flat_map(|port| &port.frontends);
        let without = frontends().filter(|frontend| !frontend.state.serves()).count();
        let state = match (service.programmed, without) {
            (false, _) => "not programmed".to_owned(),
            (true, 0) => "serves".to_owned(),
            (true, without) => format!("{without} of {} frontends do not serve", frontends().count()),
        };
        Self {
            frontends: frontends().count(),
            endpoints: service.ports.iter().map(|port| port.endpoint_count).sum(),
            serves: service.programmed && without == 0,
            state,
        }
    }
}

fn of_service(service: &ServiceAnswer, is_wide: bool) -> Vec<String> {
    let Summary { frontends, endpoints, state, .. } = Summary::of(service);
    let mut row = vec![frontends.to_string(), endpoints.to_string(), state];
    if is_wide {
        let cause = service.reasons.iter().flat_map(|reason| &reason.causes).next();
        row.push(cause.map(ToString::to_string).unwrap_or_default());
    }
    row
}

/// `10.96.0.10:80/TCP` or `node port 30080/TCP`.
pub(crate) fn frontend_text(frontend: &FrontendAnswer) -> String {
    let place = match frontend.address {
        Some(address) => SocketAddr::new(address, frontend.port).to_string(),
        None => format!("node port {}", frontend.port),
    };
    format!("{place}/{}", frontend.protocol)
}

fn of_frontend(frontend: &FrontendAnswer, is_wide: bool) -> Vec<String> {
    let mut row = vec![
        frontend_text(frontend),
        super::explain::state_text(frontend.state).to_owned(),
        frontend.cluster_endpoints.to_string(),
        frontend.local_endpoints.map_or("-".to_owned(), |number| number.to_string()),
    ];
    if is_wide {
        row.push(frontend.cause.to_string());
    }
    row
}

fn of_endpoints(port: &PortAnswer, is_wide: bool) -> Vec<Vec<String>> {
    let name = format!("{}/{}", port.port.port, port.port.protocol);
    let used = port.endpoints.iter().map(|one| {
        let place = if one.local { "serves, on this node" } else { "serves" };
        let field = one.cause.as_ref().map(ToString::to_string).unwrap_or_default();
        (SocketAddr::new(one.address, one.port), place.to_owned(), field)
    });
    let unused =
        port.unused.iter().map(|one| (SocketAddr::new(one.address, one.port), one.text.clone(), one.cause.to_string()));
    used.chain(unused)
        .map(|(address, state, field)| {
            let mut row = vec![name.clone(), address.to_string(), state];
            if is_wide {
                row.push(field);
            }
            row
        })
        .collect()
}
