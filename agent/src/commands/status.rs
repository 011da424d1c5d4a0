//! `vmap-proxy status`: the state of the agent on one screen.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::ruleset::element::Key;
use vmap_proxy_compiler::words::count;

use super::asked::{AskError, Asked};
use super::read_back::{ReadBackError, read_back};
use crate::cli::{ReportFormat, StatusOptions};
use crate::metrics::ServiceConnections;
use crate::metrics::counters::{self, COUNTING, Connections};
use crate::netlink::Kernel;
use crate::query::protocol::{ContestedLine, JournalEntry, SILENCE, StatusAnswer};
use crate::terminal::{Paint, columns, print, rendered};

/// Not everything is programmed.
const NOT_IN_STEP: u8 = 3;

/// Time between two questions while it waits.
const PAUSE: Duration = Duration::from_millis(200);

/// Services up to which the busiest are always shown: the counters of more take
/// the kernel too long.
const FEW_SERVICES: usize = 10_000;

/// Busiest Services that are shown.
const BUSIEST: usize = 5;

/// Objects of one kind that are named on the screen.
const NAMED: usize = 5;

/// The reason why there is no status.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The status could not be printed.
    #[error("the status could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The status could not be written as JSON.
    #[error("the status could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The answer of the agent, and what the kernel has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: u32,
    #[serde(flatten)]
    agent: StatusAnswer,
    #[serde(skip_serializing_if = "Option::is_none")]
    conntrack: Option<Use>,
    /// The service ports with most connections, from the counters in the
    /// kernel; absent in a large cluster without `--busiest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    busiest: Option<Vec<Busy>>,
}

/// The use of conntrack.
#[derive(Debug, Clone, Copy, Serialize)]
struct Use {
    used: u64,
    /// 0: no limit.
    most: u64,
}

#[derive(Debug, Serialize)]
struct Busy {
    namespace: String,
    name: String,
    port: String,
    connections: u64,
}

/// Prints the status; waits before that until everything is programmed, if asked
/// to, or prints it again and again.
///
/// # Errors
/// If no agent answers.
pub fn status(options: &StatusOptions) -> Result<ExitCode, Error> {
    if let Some(seconds) = options.watch {
        return watch(options, Duration::from_secs(seconds));
    }
    let deadline = options.wait.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        let answer = Asked::agent(&options.socket).and_then(|mut asked| asked.status());
        let is_over = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        match answer {
            Ok(status) if is_over || is_in_step(&status) => break status,
            Err(error) if is_over => return Err(error.into()),
            // There is no event of another process to wait for.
            _ => sleep(PAUSE),
        }
    };
    let is_in_step = is_in_step(&status);
    print(&rendered(options.output, &Status::read(status, options), text)?)?;
    Ok(if is_in_step { ExitCode::SUCCESS } else { ExitCode::from(NOT_IN_STEP) })
}

/// Refreshes the screen until the reader is gone or the process is ended. Into
/// a pipe each status goes behind the one before, as JSON in one line each.
fn watch(options: &StatusOptions, pause: Duration) -> Result<ExitCode, Error> {
    loop {
        let answer = Asked::agent(&options.socket).and_then(|mut asked| asked.status());
        let shown = match (answer, options.output) {
            (Ok(answer), ReportFormat::Json) => serde_json::to_string(&Status::read(answer, options))? + "\n",
            (Ok(answer), ReportFormat::Text) => text(&Status::read(answer, options), Paint::of_terminal()) + "\n",
            // It may be starting again.
            (Err(error), _) => format!("{}\n", Paint::of_terminal().bad(&error.to_string())),
        };
        let mut out = io::stdout().lock();
        // To the first line, and nothing below the text.
        let clear = if out.is_terminal() { "\u{1b}[H\u{1b}[J" } else { "" };
        let written = out.write_all(format!("{clear}{shown}").as_bytes()).and_then(|()| out.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            other => other?,
        }
        drop(out);
        sleep(pause);
    }
}

/// How far the kernel is in step with the objects.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is no complete list yet.
    NoList,
    /// The last sync failed.
    Failed,
    /// A change waits.
    Waits,
    /// Services were refused by the kernel, or are too large: this many.
    LeftOut(usize),
    /// All is programmed, but the API server has been silent about a resource for
    /// so long.
    Silent(Duration),
    /// All is programmed.
    Complete,
}

impl Step {
    fn of(status: &StatusAnswer) -> Self {
        let left_out = status.quarantined.len() + status.too_large;
        let silence = status.longest_silent().map(|(_, received)| age(received));
        match silence.filter(|silence| *silence > SILENCE) {
            _ if !status.ready => Self::NoList,
            _ if status.failure().is_some() => Self::Failed,
            _ if status.pending => Self::Waits,
            _ if left_out > 0 => Self::LeftOut(left_out),
            Some(silence) => Self::Silent(silence),
            None => Self::Complete,
        }
    }

    fn text(&self, paint: Paint) -> String {
        match self {
            Self::NoList => paint.bad("waits for the first complete list"),
            Self::Failed => paint.bad("the last sync failed"),
            Self::Waits => paint.warning("a change waits to be programmed"),
            Self::LeftOut(number) => paint.bad(&format!("everything is programmed but Services named below: {number}")),
            Self::Silent(silence) => paint.warning(&format!(
                "everything that is known is programmed; the API server has been silent for {}",
                duration(*silence)
            )),
            Self::Complete => paint.good("everything is programmed"),
        }
    }
}

fn is_in_step(status: &StatusAnswer) -> bool {
    matches!(Step::of(status), Step::Silent(_) | Step::Complete)
}

impl Status {
    fn read(agent: StatusAnswer, options: &StatusOptions) -> Self {
        let busiest = match agent.services <= FEW_SERVICES {
            true => listed(),
            // To list very many elements takes the kernel longer than to look each of them up.
            false => options.busiest.then(|| looked_up(&options.socket)).flatten(),
        };
        Self { version: 1, agent, conntrack: Use::read(), busiest: busiest.map(self::busiest) }
    }
}

/// The counters as the kernel lists them; `None` without permission.
fn listed() -> Option<Vec<ServiceConnections>> {
    Some(counters::read(&mut Kernel::open().ok()?).to_vec())
}

/// The counters of the elements that the agent names; `None` without permission.
fn looked_up(socket: &Path) -> Option<Vec<ServiceConnections>> {
    let mut asked = Asked::agent(socket).ok()?;
    let connections = Mutex::new(Connections::default());
    let read = read_back::<ReadBackError>(&mut asked, &COUNTING, |kernel, group| {
        let Some((map, wanted)) = group.read() else { return Ok(()) };
        let keys: Vec<Key> = wanted.iter().map(|(_, element)| element.key).collect();
        let (found, _) = kernel.look_up(group.family, map, &keys)?;
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = found.into_iter().filter_map(|state| Some((state.element, state.counter?)));
        counted.for_each(|(element, counter)| connections.add(element, counter));
        Ok(())
    });
    read.inspect_err(|error| tracing::debug!("no counters: {error}")).ok()?;
    Some(connections.into_inner().unwrap_or_else(PoisonError::into_inner).finish())
}

impl Use {
    /// In this network namespace.
    fn read() -> Option<Self> {
        let number = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
            text.trim().parse::<u64>().ok()
        };
        Some(Self { used: number("nf_conntrack_count")?, most: number("nf_conntrack_max")? })
    }
}

/// The service ports with most connections.
fn busiest(mut all: Vec<ServiceConnections>) -> Vec<Busy> {
    all.sort_by_key(|service| std::cmp::Reverse(service.connections));
    let busy = |ServiceConnections { namespace, service, port, connections }| Busy {
        namespace,
        name: service,
        port,
        connections,
    };
    all.into_iter().take(BUSIEST).map(busy).collect()
}

fn text(status: &Status, paint: Paint) -> String {
    let agent = &status.agent;
    let mut text = String::new();
    let _ = writeln!(text, "{}", paint.heading(&format!("vmap-proxy {} on node {}", agent.program, agent.node)));
    let _ = writeln!(text, "State      {}", Step::of(agent).text(paint));
    let _ = writeln!(text, "Up         {}", duration(age(agent.started)));
    let _ = writeln!(text, "Source     {}", source(agent, paint));
    let _ = writeln!(text, "Services   {}, endpoints {}", agent.services, agent.endpoints);
    let _ = writeln!(text, "Digest     {}", agent.digest);
    if let Some(conntrack) = &status.conntrack {
        let _ = writeln!(text, "Conntrack  {}", conntrack_text(conntrack, paint));
    }
    if agent.too_large > 0 {
        let _ = writeln!(
            text,
            "Too large  {}",
            paint.bad(&format!("{}, not programmed", count(agent.too_large, "Service")))
        );
    }
    if !agent.quarantined.is_empty() {
        let _ = writeln!(text, "Refused    {}", paint.bad(&named(&agent.quarantined)));
    }
    let contested = agent.contested.iter();
    let line = |one: &ContestedLine| {
        format!("{} lacks {}, which {} has: it {}", one.service, one.frontend, one.holder, one.why())
    };
    let contested: Vec<String> = contested.map(line).collect();
    for line in contested.iter().take(NAMED) {
        let _ = writeln!(text, "Contested  {}", paint.warning(line));
    }
    if let Some(more) = contested.len().checked_sub(NAMED).filter(|more| *more > 0) {
        let _ = writeln!(text, "Contested  and {more} more (-o json)");
    }
    push_syncs(&mut text, "Last syncs", agent.syncs.iter());
    push_syncs(&mut text, "Last comparisons with the kernel", agent.repairs.iter().take(NAMED));
    if let Some(busiest) = status.busiest.as_ref().filter(|busiest| !busiest.is_empty()) {
        let _ = writeln!(text, "\nBusiest Services, by connections since their element was made");
        let row =
            |one: &Busy| vec![format!("{}/{}:{}", one.namespace, one.name, one.port), one.connections.to_string()];
        text.push_str(&columns("  ", &busiest.iter().map(row).collect::<Vec<_>>()));
    }
    text
}

/// The first of some names.
fn named(names: &[String]) -> String {
    let mut text = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(NAMED).filter(|more| *more > 0) {
        let _ = write!(text, " and {more} more (-o json)");
    }
    text
}

fn source(agent: &StatusAnswer, paint: Paint) -> String {
    // The resource that was silent for longest.
    let Some((resource, received)) = agent.longest_silent() else {
        return paint.heading(&agent.source);
    };
    let age = age(received);
    let line = format!("{}, last heard of {resource} {} ago", agent.source, duration(age));
    if age > SILENCE { paint.bad(&line) } else { paint.good(&line) }
}

fn conntrack_text(conntrack: &Use, paint: Paint) -> String {
    let Use { used, most } = conntrack;
    // 0 means no limit.
    match (used * 100).checked_div(*most) {
        None => format!("{}, no limit", count(*used, "connection")),
        Some(percent) => {
            let line = format!("{used} of {most} connections ({percent} %)");
            if percent < 70 { line } else { paint.bad(&line) }
        }
    }
}

fn push_syncs<'a>(text: &mut String, heading: &str, syncs: impl Iterator<Item = &'a JournalEntry>) {
    let rows: Vec<Vec<String>> = syncs.map(sync).collect();
    if !rows.is_empty() {
        let _ = writeln!(text, "\n{heading}");
        text.push_str(&columns("  ", &rows));
    }
}

fn sync(sync: &JournalEntry) -> Vec<String> {
    let kind = match (sync.repaired, &sync.culprit) {
        (false, _) => "changes".to_owned(),
        (true, None) => "compared with the kernel".to_owned(),
        (true, Some(who)) => format!("repaired, changed by {who}"),
    };
    let services = sync.services.iter().take(3).map(|service| service.name.as_str()).collect::<Vec<_>>().join(", ");
    let milliseconds = |microseconds: u64| Duration::from_micros(microseconds).as_secs_f64() * 1000.0;
    vec![
        format!("{} ago", duration(age(sync.ended))),
        format!("{:.1} ms", milliseconds(sync.microseconds)),
        format!("lock {:.1} ms", milliseconds(sync.lock_hold_microseconds)),
        format!("+{} -{} elements", sync.added, sync.removed),
        kind,
        sync.failure.as_ref().map_or(services, |failure| format!("failed: {failure}")),
    ]
}

/// The time since a moment in milliseconds since 1970.
fn age(moment: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(moment))
}

/// `7 s`, `3 min`, `5 h`, `2 d`
fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::plan::claims::Reason;

    use super::*;

    #[test]
    fn the_screen_names_what_is_wrong_with_names_escaped() {
        let agent = StatusAnswer {
            program: "0.1.0".to_owned(),
            node: "n1\u{1b}[2J".to_owned(),
            ready: true,
            pending: false,
            services: 2,
            endpoints: 3,
            quarantined: vec!["shop/\u{1b}[2J".to_owned()],
            too_large: 1,
            contested: vec![ContestedLine {
                service: "shop/b".to_owned(),
                frontend: "10.96.0.10 port 80/TCP".to_owned(),
                holder: "shop/a".to_owned(),
                reason: Some(Reason::Older),
            }],
            digest: "00ff".to_owned(),
            started: 0,
            source: "the API server https://192.0.2.1:6443".to_owned(),
            last_received: [("nodes".to_owned(), 0)].into(),
            syncs: Vec::new(),
            repairs: Vec::new(),
        };
        assert_eq!(Step::of(&agent), Step::LeftOut(2));
        let silent = StatusAnswer { quarantined: Vec::new(), too_large: 0, ..agent.clone() };
        assert!(matches!(Step::of(&silent), Step::Silent(_)) && is_in_step(&silent));
        let complete = StatusAnswer { last_received: [].into(), ..silent };
        assert_eq!(Step::of(&complete), Step::Complete);
        let failed = JournalEntry { failure: Some("no".to_owned()), ..JournalEntry::default() };
        let failed = StatusAnswer { syncs: vec![failed], ..complete };
        assert_eq!(Step::of(&failed), Step::Failed);
        let conntrack = Some(Use { used: 90, most: 100 });
        let text = text(&Status { version: 1, agent, conntrack, busiest: None }, Paint::plain());
        for line in [
            r"vmap-proxy 0.1.0 on node n1\u{1b}[2J",
            r"Refused    shop/\u{1b}[2J",
            "Contested  shop/b lacks 10.96.0.10 port 80/TCP, which shop/a has: it is older",
            "Conntrack  90 of 100 connections (90 %)",
            "Too large  1 Service, not programmed",
            "State      everything is programmed but Services named below: 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("last heard of nodes"), "{text}");
    }
}
