//! `vmap-proxy trace`: live trace events of the kernel, in terms of Services. A
//! side table marks the packets; the kernel deletes it when this process ends.

mod event;
mod filter;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use thiserror::Error;
use vmap_proxy_compiler::explain::answer::ServiceAnswer;
use vmap_proxy_compiler::words::count;
use vmap_proxy_wire::nf_tables::trace_event::TraceEvent;

use super::asked::{AskError, Asked};
use crate::cli::{ReportFormat, TraceOptions};
use crate::netlink::{NetlinkError, SideTables, SocketError, TraceEvents, local_addresses};
use crate::process;
use crate::query::owners::Owners;
use crate::terminal::Paint;
use event::Packets;
use filter::{MOST, Wanted};

/// No packet came.
const NOTHING: u8 = 3;

/// Time after the last packet for the rest of its events.
const REST: Duration = Duration::from_millis(300);

/// The reason why nothing is traced.
#[derive(Debug, Error)]
pub enum Error {
    /// The Service's frontends are the agent's.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// There is nothing to trace of the Service.
    #[error("Service {0} has no frontend on this node; vmap-proxy explain --to svc:{0} has the reason")]
    NoFrontend(String),
    /// The Service has too many frontends.
    #[error(
        "Service {name} has {count} addresses and ports, and {MOST} can be traced at once: give one with --address"
    )]
    TooMany {
        /// The Service.
        name: String,
        /// The number of its frontends.
        count: usize,
    },
    /// The side table could not be made.
    #[error("the kernel does not trace: {0}; the capability NET_ADMIN is needed, and nf_tables of Linux 5.13 or newer")]
    Trace(#[from] SocketError),
    /// The kernel can't be read.
    #[error("the kernel's elements can't be read: {0}")]
    Kernel(#[from] NetlinkError),
    /// The addresses of this machine can't be read.
    #[error("the addresses of this machine can't be read: {0}")]
    Runtime(#[source] io::Error),
    /// The events could not be printed.
    #[error("the events could not be printed: {0}")]
    Print(#[from] io::Error),
    /// An event could not be written as JSON.
    #[error("an event could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Traces packets until the time or their number is reached, or the process is
/// ended.
///
/// # Errors
/// If nothing can be traced.
pub fn trace(options: &TraceOptions) -> Result<ExitCode, Error> {
    let runtime = process::event_loop().map_err(Error::Runtime)?;
    let own = runtime.block_on(local_addresses())?;
    let wanted = wanted(options, &own)?;
    let side_table = format!("vmap-proxy-trace-{}", std::process::id());
    // First the listener, so that no event is missed.
    let mut events = TraceEvents::open()?;
    let mut tables = SideTables::open()?;
    tables.submit(&filter::requests(&side_table, &wanted, options.from, options.rate))?;
    eprintln!(
        "tracing new connections for {:?}, at most {}; at most {} in a second for each family",
        options.duration,
        count(options.count, "packet"),
        options.rate
    );
    let count = follow(options, &mut events, Packets::new(side_table, Owners::open(own)?))?;
    drop(tables);
    Ok(if count == 0 { ExitCode::from(NOTHING) } else { ExitCode::SUCCESS })
}

/// Prints the events; returns the number of packets.
fn follow(options: &TraceOptions, events: &mut TraceEvents, mut packets: Packets) -> Result<u64, Error> {
    let mut deadline = Instant::now() + options.duration;
    let paint = Paint::of_terminal();
    let mut is_last = false;
    loop {
        let mut lines = Vec::new();
        let mut failure = None;
        let received = events.next(deadline, |message| {
            let Some(event) = TraceEvent::decode(&message) else { return };
            match packets.lines(&event) {
                Ok(more) => lines.extend(more),
                Err(error) => failure = Some(error),
            }
        });
        match received {
            Ok(true) => {}
            Ok(false) => return Ok(packets.count()),
            Err(SocketError::AnswerLost) => eprintln!("some events were lost; a lower --rate helps"),
            Err(error) => return Err(error.into()),
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        let mut out = io::stdout().lock();
        for line in lines {
            let text = match options.output {
                ReportFormat::Text => line.text(paint),
                ReportFormat::Json => serde_json::to_string(&line)?,
            };
            match writeln!(out, "{text}") {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(packets.count()),
                other => other?,
            }
        }
        out.flush()?;
        if packets.count() >= options.count && !is_last {
            is_last = true;
            deadline = deadline.min(Instant::now() + REST);
        }
    }
}

/// The packets to trace.
fn wanted(options: &TraceOptions, own: &[IpAddr]) -> Result<BTreeSet<Wanted>, Error> {
    let mut wanted = BTreeSet::new();
    if let Some(name) = &options.service {
        let answer = Asked::agent(&options.socket)?.existing_service(name)?;
        wanted.extend(frontends(&answer, own));
        match wanted.len() {
            0 => return Err(Error::NoFrontend(name.clone())),
            count if count > MOST => return Err(Error::TooMany { name: name.clone(), count }),
            _ => {}
        }
    }
    wanted.extend(options.endpoint.map(|(address, port)| Wanted::Endpoint(address, port)));
    wanted.extend(options.address.map(Wanted::Address));
    Ok(wanted)
}

/// The frontends of a Service; NodePorts at every address of this node.
fn frontends(answer: &ServiceAnswer, own: &[IpAddr]) -> BTreeSet<Wanted> {
    let frontends = answer.ports.iter().flat_map(|port| &port.frontends);
    let mut wanted = BTreeSet::new();
    for frontend in frontends {
        match frontend.address {
            Some(address) => _ = wanted.insert(Wanted::Frontend(address, frontend.protocol, frontend.port)),
            None => wanted.extend(
                own.iter()
                    .filter(|address| !address.is_loopback())
                    .map(|address| Wanted::Frontend(*address, frontend.protocol, frontend.port)),
            ),
        }
    }
    wanted
}
