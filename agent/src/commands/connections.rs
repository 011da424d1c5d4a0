//! `vmap-proxy get connections`: the connections that the kernel tracks, by
//! Service and endpoint. It needs no agent: the comments of the kernel's
//! elements name the Services.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::target::FrontendKey;
use vmap_proxy_wire::conntrack::{Connection, TcpState};

use super::asked::{AskError, Asked};
use crate::cli::{ConnectionsOptions, GetFormat};
use crate::conntrack::{Conntrack, ConntrackError};
use crate::netlink::{NetlinkError, local_addresses};
use crate::process;
use crate::query::owners::{Owner, Owners};
use crate::terminal::{columns, print};

/// Open connections are left after the wait.
const STILL_OPEN: u8 = 3;

/// Shortest time between two looks at the kernel's table.
const PAUSE: Duration = Duration::from_millis(500);

/// The wait is at least this many times as long as a look, which walks the
/// kernel's whole table.
const REST: u32 = 10;

/// Connections in the JSON form, at most; the counts are of all.
const LISTED: usize = 10_000;

/// In the place of the state of a connection that a flow table has, as `conntrack -L` prints it.
const OFFLOADED: &str = "OFFLOAD";

/// The reason why there is no list.
#[derive(Debug, Error)]
pub enum Error {
    /// The tracked connections can't be read.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// The elements that name the Services can't be read.
    #[error("the kernel's elements can't be read: {0}")]
    Kernel(#[from] NetlinkError),
    /// The agent does not answer as it should.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// There is no such Service.
    #[error(
        "no Service {0} is programmed on this node; vmap-proxy explain --to svc:{0} has the reason where the agent answers"
    )]
    NoService(String),
    /// The addresses of this machine can't be read.
    #[error("the addresses of this machine can't be read: {0}")]
    Runtime(#[source] io::Error),
    /// The list could not be printed.
    #[error("the list could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The list could not be written as JSON.
    #[error("the list could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A connection with the Service that it goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// `None`: it was sent to the endpoint itself, or no Service has its
    /// frontend any more.
    #[serde(flatten)]
    owner: Owner,
    protocol: Protocol,
    client: SocketAddr,
    /// The destination that the client chose.
    destination: SocketAddr,
    endpoint: SocketAddr,
    /// Whether the endpoint sees another address than the client's.
    masqueraded: bool,
    /// Whether a flow table has it; then its state is unknown.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    offloaded: bool,
    /// The state, of TCP only.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    open: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

/// The connections of one service port to one endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Count {
    open: usize,
    closing: usize,
}

/// What the JSON form has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    version: u32,
    /// Connections that go on.
    open: usize,
    /// Connections of TCP that are closed or were reset, and expire.
    closing: usize,
    endpoints: Vec<EndpointCount<'a>>,
    connections: &'a [Line],
    connection_count: usize,
}

#[derive(Debug, Serialize)]
struct EndpointCount<'a> {
    #[serde(flatten)]
    owner: &'a Owner,
    endpoint: SocketAddr,
    protocol: Protocol,
    #[serde(flatten)]
    count: Count,
}

/// Prints the connections; waits before that until none is open, if asked to.
///
/// # Errors
/// If the kernel can't be read.
pub fn connections(options: &ConnectionsOptions) -> Result<ExitCode, Error> {
    let mut reader = Reader::open()?;
    if let (Some(namespace), Some(name)) = (&options.namespace, &options.name) {
        reader.find_service(options, namespace, name)?;
    }
    let deadline = options.wait.then(|| Instant::now() + Duration::from_secs(options.timeout));
    let lines = loop {
        let begun = Instant::now();
        let lines = reader.read(options)?;
        let is_over = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        if is_over || lines.iter().all(|line| !line.open) {
            break lines;
        }
        sleep(PAUSE.max(begun.elapsed() * REST));
    };
    let open = lines.iter().filter(|line| line.open).count();
    if lines.is_empty() && options.output != GetFormat::Json {
        // As kubectl: not an error, and not silent.
        eprintln!("no connection found");
    }
    if options.output != GetFormat::Json && lines.iter().any(|line| line.owner.is_cut()) {
        eprintln!(
            "a name that ends in dots and 8 digits is cut (comments of elements have 127 bytes); `vmap-proxy get services` has \
             it whole"
        );
    }
    print(&match options.output {
        GetFormat::Text => counted(&lines),
        GetFormat::Wide => listed(&lines),
        GetFormat::Json => json(&lines, open)?,
    })?;
    Ok(if options.wait && open > 0 { ExitCode::from(STILL_OPEN) } else { ExitCode::SUCCESS })
}

/// Reads connections, and the Services that have their frontends.
struct Reader {
    conntrack: Conntrack,
    owners: Owners,
}

impl Reader {
    fn open() -> Result<Self, Error> {
        let runtime = process::event_loop().map_err(Error::Runtime)?;
        let own_addresses = runtime.block_on(local_addresses())?;
        Ok(Self { conntrack: Conntrack::open()?, owners: Owners::open(own_addresses)? })
    }

    /// Makes sure that the Service exists: the agent knows it, or else the kernel has a
    /// frontend of it.
    fn find_service(&mut self, options: &ConnectionsOptions, namespace: &str, name: &str) -> Result<(), Error> {
        let full_name = format!("{namespace}/{name}");
        match Asked::agent(&options.socket).and_then(|mut asked| asked.existing_service(&full_name)) {
            Ok(_) => Ok(()),
            Err(AskError::Client(error)) => {
                tracing::debug!("the kernel is asked for Service {full_name}: {error}");
                match self.owners.has(namespace, name)? {
                    true => Ok(()),
                    false => Err(Error::NoService(full_name)),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, options: &ConnectionsOptions) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        for family in crate::netlink::families() {
            let read = self.conntrack.list(family, |connection| line(connection, options))?;
            self.owners.find(family, read.iter().map(Line::frontend))?;
            lines.extend(read);
        }
        for line in &mut lines {
            line.owner = self.owners.of(&line.frontend()).cloned().unwrap_or_default();
        }
        lines.retain(|line| is_wanted(line, options));
        lines.sort_unstable_by(|one, other| {
            let key = |line: &Line| (line.owner.clone(), line.endpoint, line.protocol, line.client);
            key(one).cmp(&key(other))
        });
        Ok(lines)
    }
}

impl Line {
    /// The address and port that the client chose.
    fn frontend(&self) -> FrontendKey {
        FrontendKey { address: self.destination.ip(), protocol: self.protocol, port: self.destination.port() }
    }
}

/// A connection that may be wanted, without its Service.
fn line(connection: &Connection<'_>, options: &ConnectionsOptions) -> Option<Line> {
    let Connection { protocol, client, destination, endpoint, seen_client, translated, tcp, expires, .. } = *connection;
    let is_to_endpoint = match options.endpoint {
        Some((address, port)) => endpoint.ip() == address && port.is_none_or(|port| endpoint.port() == port),
        // Other connections are to no Service.
        None => translated,
    };
    let sum = |of: fn(&vmap_proxy_wire::conntrack::Direction) -> u64| {
        let directions = [connection.sent.as_ref(), connection.received.as_ref()];
        connection.sent.map(|_| directions.into_iter().flatten().map(of).sum())
    };
    is_to_endpoint.then(|| Line {
        owner: Owner::default(),
        protocol,
        client,
        destination,
        endpoint,
        masqueraded: seen_client != client,
        offloaded: connection.offloaded,
        state: tcp.map(TcpState::name),
        open: connection.is_open(),
        expires_seconds: expires,
        packets: sum(|direction| direction.packets),
        bytes: sum(|direction| direction.bytes),
    })
}

fn is_wanted(line: &Line, options: &ConnectionsOptions) -> bool {
    let has_owner = line.owner != Owner::default();
    match (&options.namespace, &options.name) {
        (Some(namespace), Some(name)) => line.owner.is(namespace, name),
        (Some(namespace), None) => line.owner.namespace == *namespace,
        (None, _) => has_owner || options.endpoint.is_some(),
    }
}

/// The connections by service port and endpoint.
fn counts(lines: &[Line]) -> BTreeMap<(&Owner, SocketAddr, Protocol), Count> {
    let mut counts: BTreeMap<_, Count> = BTreeMap::new();
    for line in lines {
        let count = counts.entry((&line.owner, line.endpoint, line.protocol)).or_default();
        *(if line.open { &mut count.open } else { &mut count.closing }) += 1;
    }
    counts
}

/// A cell that is not empty.
fn cell(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn counted(lines: &[Line]) -> String {
    let headings = ["NAMESPACE", "NAME", "PORT", "ENDPOINT", "OPEN", "CLOSING"];
    let rows = counts(lines).into_iter().map(|((owner, endpoint, protocol), count)| {
        let endpoint = format!("{endpoint}/{protocol}");
        let [open, closing] = [count.open, count.closing].map(|number| number.to_string());
        vec![cell(&owner.namespace), cell(&owner.name), cell(&owner.port), endpoint, open, closing]
    });
    columns("", &[headings.map(str::to_owned).to_vec()].into_iter().chain(rows).collect::<Vec<_>>())
}

fn listed(lines: &[Line]) -> String {
    let headings =
        ["NAMESPACE", "NAME", "PORT", "CLIENT", "DESTINATION", "ENDPOINT", "STATE", "SOURCE", "EXPIRES", "BYTES"];
    let rows = lines.iter().map(|line| {
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        vec![
            cell(&line.owner.namespace),
            cell(&line.owner.name),
            cell(&line.owner.port),
            line.client.to_string(),
            format!("{}/{}", line.destination, line.protocol),
            line.endpoint.to_string(),
            line.state.unwrap_or(if line.offloaded { OFFLOADED } else { "-" }).to_owned(),
            if line.masqueraded { "masqueraded" } else { "kept" }.to_owned(),
            line.expires_seconds.map_or("-".to_owned(), |seconds| format!("{seconds}s")),
            number(line.bytes),
        ]
    });
    columns("", &[headings.map(str::to_owned).to_vec()].into_iter().chain(rows).collect::<Vec<_>>())
}

fn json(lines: &[Line], open: usize) -> serde_json::Result<String> {
    let endpoints = counts(lines).into_iter();
    let endpoints = endpoints
        .map(|((owner, endpoint, protocol), count)| EndpointCount { owner, endpoint, protocol, count })
        .collect();
    serde_json::to_string_pretty(&Report {
        version: 1,
        open,
        closing: lines.len() - open,
        endpoints,
        connections: &lines[..lines.len().min(LISTED)],
        connection_count: lines.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(owner: &str, endpoint: &str, open: bool) -> Line {
        Line {
            owner: Owner::parse(owner),
            protocol: Protocol::Tcp,
            client: "10.244.1.7:4000".parse().unwrap(),
            destination: "10.96.0.10:80".parse().unwrap(),
            endpoint: endpoint.parse().unwrap(),
            masqueraded: false,
            offloaded: false,
            state: Some("ESTABLISHED"),
            open,
            expires_seconds: Some(3),
            packets: None,
            bytes: None,
        }
    }

    #[test]
    fn connections_are_counted_by_endpoint() {
        let lines = [
            line("shop/cart:http", "10.244.2.9:8080", true),
            line("shop/cart:http", "10.244.2.9:8080", false),
            line("shop/cart\u{1b}[2J:http", "10.244.2.9:8080", true),
        ];
        let text = counted(&lines);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["shop", "cart", "http", "10.244.2.9:8080/TCP", "1", "1"], "{text}");
        assert!(!text.contains('\u{1b}') && rows.len() == 3, "{text}");
        assert!(listed(&lines).contains("10.244.1.7:4000"));
        let offloaded = Line { state: None, offloaded: true, ..line("shop/cart:http", "10.244.2.9:8080", true) };
        assert!(listed(&[offloaded]).contains("OFFLOAD"));
        let value: serde_json::Value = serde_json::from_str(&json(&lines, 2).unwrap()).unwrap();
        assert_eq!((&value["open"], &value["endpoints"][0]["closing"]), (&2.into(), &1.into()), "{value}");
    }
}
