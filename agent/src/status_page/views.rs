//! The answers to the page's questions, as JSON.

use std::net::IpAddr;

use axum::http::StatusCode;
use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::explain::answer::{Detail, FrontendAnswer, PortAnswer, ServiceAnswer};
use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::ruleset::element::Key;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::target::{FrontendKey, NodePortKey, Target};

use crate::commands::asked::{AskError, Asked};
use crate::commands::explain::{self, Destination, Explained, PlaceError};
use crate::netlink::{Kernel, NetlinkError};
use crate::query::lines::{Summary, frontend_text};
use crate::query::protocol::{Question, ServicesAnswer, StatusAnswer};

/// Services in one answer.
const ROWS: usize = 50;

/// Frontends of a Service that a line of the list names.
const NAMED_FRONTENDS: usize = 3;

/// Frontends of a Service whose connections are read.
const COUNTED_FRONTENDS: usize = 256;

/// Longest field of a question: names and addresses are shorter.
const LONGEST_FIELD: usize = 600;

/// The reason why there is no answer.
#[derive(Debug, Error)]
pub(super) enum ViewError {
    /// A field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field is too long.
    #[error("{0} is longer than {LONGEST_FIELD} bytes")]
    TooLong(&'static str),
    /// Source or destination can't be understood.
    #[error(transparent)]
    Place(PlaceError),
    /// The sync thread does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The answer did not come in time.
    #[error("the agent did not answer in time: it has a large sync to do; ask again")]
    Busy,
    /// The answer could not be written.
    #[error("the answer could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<PlaceError> for ViewError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Ask(error) => Self::Ask(error),
            error => Self::Place(error),
        }
    }
}

impl ViewError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Missing(_) | Self::TooLong(_) | Self::Place(_) => StatusCode::BAD_REQUEST,
            Self::Ask(_) | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Json(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The fields of a question, from the query of its URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(super) fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The value of a field; `None` if it is absent or blank.
    fn get(&self, name: &'static str) -> Result<Option<&str>, ViewError> {
        let value = self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.trim());
        match value.filter(|value| !value.is_empty()) {
            Some(value) if value.len() > LONGEST_FIELD => Err(ViewError::TooLong(name)),
            value => Ok(value),
        }
    }

    fn required(&self, name: &'static str) -> Result<&str, ViewError> {
        self.get(name)?.ok_or(ViewError::Missing(name))
    }
}

/// `/page/status`: the sync thread's part of what `vmap-proxy status -o json`
/// prints.
pub(super) fn status(asked: &mut Asked, _: &Fields) -> Result<StatusAnswer, ViewError> {
    Ok(asked.status()?)
}

/// A page of the list of Services.
#[derive(Debug, Serialize)]
pub(super) struct Rows {
    services: Vec<Row>,
    /// Where the next page begins (`after`); absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A line of the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// The first of its frontends.
    frontends: Vec<String>,
    frontend_count: usize,
    endpoint_count: usize,
    state: String,
    serves: bool,
}

/// `/page/services?search=…&after=…`: [`ROWS`] Services at most. The search is for
/// a part of `namespace/name`, or for an address of a Service.
pub(super) fn services(asked: &mut Asked, fields: &Fields) -> Result<Rows, ViewError> {
    let search = fields.get("search")?.map(str::to_owned);
    if let Some(address) = search.as_deref().and_then(|search| search.parse::<IpAddr>().ok()) {
        let services = match asked.find_address(address)? {
            Some(name) => vec![row(&asked.service(&name)?)],
            None => Vec::new(),
        };
        return Ok(Rows { services, next: None });
    }
    let mut rows = Rows { services: Vec::new(), next: fields.get("after")?.map(str::to_owned) };
    loop {
        let limit = Some(ROWS - rows.services.len());
        let question = Question::Services {
            namespace: None,
            detail: Detail::Frontends,
            matching: search.clone(),
            limit,
            after: rows.next.take(),
        };
        let ServicesAnswer { services, last } = asked.services(question)?;
        rows.services.extend(services.iter().map(row));
        rows.next = last;
        if rows.next.is_none() || rows.services.len() >= ROWS {
            return Ok(rows);
        }
    }
}

fn row(service: &ServiceAnswer) -> Row {
    let summary = Summary::of(service);
    let frontends = service.ports.iter().flat_map(|port| &port.frontends);
    Row {
        name: format!("{}/{}", service.namespace, service.name),
        frontends: frontends.take(NAMED_FRONTENDS).map(frontend_text).collect(),
        frontend_count: summary.frontends,
        endpoint_count: summary.endpoints,
        state: summary.state,
        serves: summary.serves,
    }
}

/// A Service.
#[derive(Debug, Serialize)]
pub(super) struct ServiceView {
    /// What `vmap-proxy explain --to svc:NAME -o json` prints.
    service: ServiceAnswer,
    /// The connections of each frontend since its element was made, port by port;
    /// `null` where the kernel has no counter.
    connections: Vec<Option<u64>>,
}

/// `/page/service?name=…`
pub(super) fn service(asked: &mut Asked, fields: &Fields) -> Result<ServiceView, ViewError> {
    let service = asked.service(fields.required("name")?)?;
    let frontends = service.ports.iter().flat_map(|port| port.frontends.iter().map(move |one| (port, one)));
    let targets: Vec<_> = frontends.take(COUNTED_FRONTENDS).map(|(port, one)| target(port, one)).collect();
    // Without a table, or without permission, there are no counters.
    let connections = connections(&targets).unwrap_or_else(|error| {
        tracing::debug!("no counters for the status page: {error}");
        Vec::new()
    });
    Ok(ServiceView { service, connections })
}

/// A frontend as the kernel knows it, with its family; a NodePort has the family of
/// the port's other frontends.
fn target(port: &PortAnswer, frontend: &FrontendAnswer) -> Option<(Family, Target)> {
    let FrontendAnswer { protocol, port: number, .. } = *frontend;
    Some(match frontend.address {
        Some(address) => (Family::of(address), Target::Frontend(FrontendKey { address, protocol, port: number })),
        None => {
            let address = port.frontends.iter().find_map(|frontend| frontend.address)?;
            (Family::of(address), Target::NodePort(NodePortKey { protocol, port: number }))
        }
    })
}

fn connections(targets: &[Option<(Family, Target)>]) -> Result<Vec<Option<u64>>, NetlinkError> {
    let mut kernel = Kernel::open()?;
    let counted = targets.iter().map(|target| {
        let Some((family, target)) = *target else { return Ok(None) };
        let element = kernel.read_element(family, Map::Frontends(target.domain()), &Key::Target(target))?;
        Ok(element.and_then(|state| state.counter).map(|counter| counter.packets))
    });
    counted.collect()
}

/// `/page/explain?from=…&to=…`: what `vmap-proxy explain` answers, without a look at
/// the kernel.
pub(super) fn explain(asked: &mut Asked, fields: &Fields) -> Result<Explained, ViewError> {
    let to = Destination::parse(fields.required("to")?)?;
    Ok(explain::ask(asked, fields.get("from")?, &to, None)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn fields_are_decoded_and_bounded() {
        let fields = Fields::parse("to=svc%3Ashop%2Fcart+&from=&other=1&to=second");
        assert_eq!(fields.required("to").unwrap(), "svc:shop/cart");
        assert_eq!(fields.get("from").unwrap(), None);
        assert!(matches!(fields.required("from"), Err(ViewError::Missing("from"))));
        let long = format!("to={}", "x".repeat(LONGEST_FIELD + 1));
        assert!(matches!(Fields::parse(&long).get("to"), Err(ViewError::TooLong("to"))));
    }
}
