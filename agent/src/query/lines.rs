//! Lists of the state, line by line.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::net::SocketAddr;

use vmap_proxy_compiler::explain::answer::{Cause, FrontendAnswer, FrontendState, PortAnswer, ServiceAnswer};
use vmap_proxy_compiler::words::count;

use super::protocol::List;
use crate::lists::some_of;
use crate::logging::escape::escaped;

/// A text of lines with cells: tabs between the cells, everything [`escaped`]. A
/// list has half a million lines, so there is no string for each cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lines(String);

impl Lines {
    /// Begins with the headings of a list.
    pub(crate) fn with_headings(list: List, is_wide: bool) -> Self {
        let headings: &[&str] = match list {
            List::Services => &["NAMESPACE", "NAME", "FRONTENDS", "ENDPOINTS", "STATE"],
            List::Frontends => &["NAMESPACE", "NAME", "FRONTEND", "STATE", "CLUSTER", "LOCAL"],
            List::Endpoints => &["NAMESPACE", "NAME", "PORT", "ENDPOINT", "STATE"],
        };
        let mut text = headings.join("\t");
        text.push_str(if is_wide { "\tFIELD\n" } else { "\n" });
        Self(text)
    }

    /// The text.
    pub(crate) fn into_text(self) -> String {
        self.0
    }

    /// Adds a page of lines.
    pub(crate) fn push_page(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// Adds the lines of one Service to a list.
    pub(crate) fn push(&mut self, list: List, service: &ServiceAnswer, is_wide: bool) {
        match list {
            List::Services => self.push_service(service, is_wide),
            List::Frontends => {
                for frontend in service.ports.iter().flat_map(|port| &port.frontends) {
                    self.push_frontend(service, frontend, is_wide);
                }
            }
            List::Endpoints => service.ports.iter().for_each(|port| self.push_endpoints(service, port, is_wide)),
        }
    }

    /// Begins a line.
    fn begin(&mut self, service: &ServiceAnswer) {
        self.0.push_str(&escaped(&service.namespace));
        self.cell(&service.name);
    }

    fn cell(&mut self, text: &str) {
        self.0.push('\t');
        self.0.push_str(&escaped(text));
    }

    /// A cell whose text has nothing to escape.
    fn plain(&mut self, value: impl Display) {
        let _ = write!(self.0, "\t{value}");
    }

    fn end(&mut self, cause: Option<&Cause>) {
        if let Some(cause) = cause {
            self.cell(&cause.to_string());
        }
        self.0.push('\n');
    }

    fn push_service(&mut self, service: &ServiceAnswer, is_wide: bool) {
        let Summary { frontends, endpoints, state, .. } = Summary::of(service);
        self.begin(service);
        self.plain(frontends);
        self.plain(endpoints);
        self.plain(state);
        self.end(service.reasons.iter().flat_map(|reason| &reason.causes).next().filter(|_| is_wide));
    }

    fn push_frontend(&mut self, service: &ServiceAnswer, frontend: &FrontendAnswer, is_wide: bool) {
        self.begin(service);
        self.plain(frontend_text(frontend));
        self.plain(state_text(frontend));
        self.plain(frontend.cluster_endpoints);
        match frontend.local_endpoints {
            Some(number) => self.plain(number),
            None => self.plain('-'),
        }
        self.end(Some(&frontend.cause).filter(|_| is_wide));
    }

    fn push_endpoints(&mut self, service: &ServiceAnswer, port: &PortAnswer, is_wide: bool) {
        let mut push = |address: SocketAddr, state: &str, cause: Option<&Cause>| {
            self.begin(service);
            self.plain(format_args!("{}/{}", port.port.port, port.port.protocol));
            self.plain(address);
            self.cell(state);
            self.end(cause.filter(|_| is_wide));
        };
        for one in &port.endpoints {
            let state = if one.local { "serves, on this node" } else { "serves" };
            push(SocketAddr::new(one.address, one.port), state, one.cause.as_ref());
        }
        for one in &port.unused {
            push(SocketAddr::new(one.address, one.port), &one.text, Some(&one.cause));
        }
    }
}

/// Source ranges of a frontend that are printed.
const NAMED_RANGES: usize = 3;

/// The state of a frontend in words.
pub(crate) fn state_text(frontend: &FrontendAnswer) -> Cow<'static, str> {
    let ranges = || some_of(&frontend.source_ranges, NAMED_RANGES);
    let is_limited = !frontend.source_ranges.is_empty();
    Cow::Borrowed(match frontend.state {
        FrontendState::Serves if is_limited => return format!("serves only {}", ranges()).into(),
        FrontendState::ServesLocalClients if is_limited => {
            return format!("serves local clients only, and of them only {}", ranges()).into();
        }
        FrontendState::Serves => "serves",
        FrontendState::ServesLocalClients => "serves local clients only",
        FrontendState::Rejects => "refuses: no endpoint",
        FrontendState::Drops => "drops: no endpoint on this node",
        FrontendState::Denied => "belongs to another Service",
        FrontendState::NotProgrammed => "not programmed",
    })
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
            (true, 0) => serving(frontends()),
            (true, without) => format!("{without} of {} not served", count(frontends().count(), "frontend")),
        };
        Self {
            frontends: frontends().count(),
            endpoints: service.ports.iter().map(|port| port.endpoint_count).sum(),
            serves: service.programmed && without == 0,
            state,
        }
    }
}

/// A Service whose frontends all serve, some of them only some clients.
fn serving<'a>(frontends: impl Iterator<Item = &'a FrontendAnswer> + Clone) -> String {
    let all = count(frontends.clone().count(), "frontend");
    let ranges = frontends.clone().filter(|frontend| !frontend.source_ranges.is_empty()).count();
    let local = frontends.filter(|frontend| frontend.state == FrontendState::ServesLocalClients).count();
    let limits = [(local, "only local clients"), (ranges, "only source ranges")];
    let limits = limits.into_iter().filter(|(number, _)| *number > 0);
    limits.fold("serves".to_owned(), |text, (number, what)| format!("{text}, {number} of {all} {what}"))
}

/// `10.96.0.10:80/TCP` or `node port 30080/TCP`.
pub(crate) fn frontend_text(frontend: &FrontendAnswer) -> String {
    let place = match frontend.address {
        Some(address) => SocketAddr::new(address, frontend.port).to_string(),
        None => format!("node port {}", frontend.port),
    };
    format!("{place}/{}", frontend.protocol)
}
