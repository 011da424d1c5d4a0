//! An API server that misbehaves at random, in every way that the double knows, while objects change: in the end the
//! agent knows what the server has, has not asked faster than its pauses allow, has written no line twice in a minute,
//! and has not grown.
//!
//! Some hundred faults in the test command; `API_FAULTS=5000 cargo test -p netlink-tests --test api random_faults::` for
//! more, and `API_FAULT_SEED=N` for another sequence.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;
use vmap_proxy_agent::source::kubernetes::{Encoding, Timing};
use vmap_proxy_testbed::apiserver::{ApiServer, Fault, Lists, Resource};
use vmap_proxy_testbed::random::Random;

use crate::kubernetes_source::follower::{
    Follower, all_watched, node, options, requests_for, server_with_one_of_each, service, slice,
};

/// The number of faults, unless `API_FAULTS` is another one.
const FAULTS: usize = 300;

/// The number of faults between two times of calm, and in the life of an agent.
const FAULTS_OF_STORM: usize = 10;
const FAULTS_OF_AGENT: usize = 100;

/// Services there may be.
const SERVICES: usize = 20;

/// Longest time for everything to be known once the server behaves.
const CALM: Duration = Duration::from_secs(60);

/// How much more memory this process, in which the server's history grows, may have in the end, for each fault.
const MEMORY_OF_FAULT: usize = 100 << 10;
const MEMORY: usize = 64 << 20;

/// Long enough to be told from the machine's own slowness, short enough for many faults.
fn timing() -> Timing {
    Timing {
        shortest_retry: Duration::from_millis(20),
        longest_retry: Duration::from_millis(200),
        short_watch: Duration::from_millis(20),
        idle: Duration::from_secs(1),
        list_idle: Duration::from_millis(300),
        ..Timing::default()
    }
}

/// Lines of the log, as the agent writes them.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

/// The server, and what it has by now.
struct Chaos {
    random: Random,
    server: ApiServer,
    services: BTreeMap<String, String>,
    slices: BTreeSet<String>,
    counts: BTreeMap<String, u32>,
}

impl Chaos {
    /// Something changes.
    fn change(&mut self) {
        let number = self.random.below(SERVICES);
        let name = format!("s-{number}");
        match self.random.below(5) {
            0 => {
                self.server.delete(Resource::Services, "shop", &name);
                self.services.remove(&name);
            }
            1 => {
                self.server.delete(Resource::EndpointSlices, "shop", &format!("{name}-a"));
                self.slices.remove(&format!("{name}-a"));
            }
            2 => {
                let slice_name = format!("{name}-a");
                self.server.apply(slice(&slice_name, &name, 1 + self.random.below(4)));
                self.slices.insert(slice_name);
            }
            _ => {
                let address = format!("10.0.{number}.{}", 1 + self.random.below(250));
                self.server.apply(service(&name, &address));
                self.services.insert(name, address);
            }
        }
    }

    /// The server misbehaves in one way, which most of them last until it is [calm](Self::calm).
    async fn fault(&mut self) {
        let resource = self.random.pick(&Resource::ALL);
        let lasting = |fault| (Some(fault), "");
        let (fault, kind) = match self.random.below(24) {
            0 => lasting(Fault::EndsAfterEvent),
            1 => lasting(Fault::ExpiresAfterEvent),
            2 => lasting(Fault::EndlessPages),
            3 => lasting(Fault::EmptyPages),
            4 => lasting(Fault::Busy(u32::MAX)),
            5 => lasting(Fault::OtherKind),
            6 => lasting(Fault::WrongMagic),
            7 => lasting(Fault::TruncatedFrame),
            8 => lasting(Fault::JsonAsProtobuf),
            9 => lasting(Fault::ProtobufAsJson),
            10 => (None, self.refused(resource)),
            11 => (None, self.storm_of_500()),
            12 => (None, self.restart().await),
            13..=17 => (None, self.sent(resource)),
            _ => (None, self.ended(resource)),
        };
        let kind = match fault {
            None => kind.to_owned(),
            Some(fault) => {
                // Lists in pages meet other faults than streaming ones.
                self.change_lists();
                let expires = self.random.one_in(2);
                self.server.set_fault(resource, Some(fault));
                if expires {
                    self.server.expire_watches(resource)
                } else {
                    self.server.break_watches(resource)
                }
                format!("{fault:?}")
            }
        };
        *self.counts.entry(kind).or_default() += 1;
    }

    fn refused(&mut self, resource: Resource) -> &'static str {
        let (code, kind) =
            self.random.pick(&[(401, "401: the token has expired"), (403, "403"), (503, "503"), (504, "504")]);
        self.server.refuse(resource, code, "refused by the test");
        if self.random.one_in(2) {
            self.server.expire_watches(resource)
        } else {
            self.server.break_watches(resource)
        }
        kind
    }

    fn storm_of_500(&mut self) -> &'static str {
        for resource in Resource::ALL {
            self.server.refuse(resource, 500, "internal error");
            self.server.break_watches(resource);
        }
        "500 for everything"
    }

    async fn restart(&mut self) -> &'static str {
        self.server.pause();
        self.server.resume().await.unwrap();
        "a restart"
    }

    /// The server sends what it should not, on running watches.
    fn sent(&mut self, resource: Resource) -> &'static str {
        match self.random.below(5) {
            0 => {
                let mut garbage: Vec<u8> = (0..self.random.below(300)).map(|_| self.random.number() as u8).collect();
                // In JSON, what is in the same line as an event takes the event with it.
                garbage.push(b'\n');
                self.server.send_raw(resource, garbage);
                "garbage"
            }
            1 => {
                self.server.send_raw(resource, [0, 0x80, 0, 0, b'\n']);
                "the beginning of an event of 8 MiB"
            }
            2 => {
                let number = self.random.below(SERVICES);
                let mut stranger =
                    if resource == Resource::Nodes { service("n1", "10.0.0.9") } else { node(&format!("s-{number}")) };
                stranger["metadata"]["namespace"] = json!("shop");
                self.server.send_object(resource, &stranger);
                "an object of another kind"
            }
            3 => {
                self.server.bookmark_at(resource, 1);
                self.server.end_watches(resource);
                "a resourceVersion that goes back"
            }
            _ => {
                self.server.set_slow(Some((1, Duration::from_millis(20))));
                self.server.expire_watches(resource);
                "a byte at a time"
            }
        }
    }

    /// The server is another one, which may be of another age. A source that began with pages from the cache stays
    /// with them.
    fn change_lists(&mut self) {
        let lists = if self.random.one_in(2) { Lists::Streaming } else { Lists::Pages };
        self.server.set_lists(lists);
    }

    /// A list or a watch ends before its time.
    fn ended(&mut self, resource: Resource) -> &'static str {
        self.change_lists();
        match self.random.below(5) {
            0 => {
                self.server.compact();
                self.server.end_watches(resource);
                "a history that is gone"
            }
            1 => {
                self.server.break_next(resource, self.random.below(400));
                self.server.expire_watches(resource);
                "an answer that breaks off"
            }
            2 => {
                self.server.expire_next_page(resource);
                self.server.expire_watches(resource);
                "a page that expires"
            }
            3 => {
                self.server.set_forgets_bookmark(true);
                self.server.expire_watches(resource);
                "a list without its end"
            }
            _ => {
                self.server.break_watches(resource);
                "a watch that breaks off"
            }
        }
    }

    /// The server behaves again.
    fn calm(&mut self) {
        for resource in Resource::ALL {
            self.server.set_fault(resource, None);
            self.server.allow(resource);
        }
        self.server.set_slow(None);
        self.server.set_forgets_bookmark(false);
    }

    /// Returns whether the agent has the Services and slices that the server has, and no others.
    fn is_known_to(&self, follower: &Follower) -> bool {
        let mut names = (0..SERVICES).map(|number| format!("s-{number}"));
        names.all(|name| {
            let slice = format!("{name}-a");
            follower.cluster_ip(&name) == self.services.get(&name).cloned()
                && follower.has(&slice) == self.slices.contains(&slice)
        }) && follower.cluster_ip("cart").as_deref() == Some("10.0.0.1")
    }

    /// An agent lives through this number of faults; returns the longest time that it needed to know everything.
    async fn agent(&mut self, encoding: Encoding, faults: usize, log: &Log) -> Duration {
        self.server.set_lists(self.random.pick(&Lists::ALL));
        let mut options = options(&self.server);
        (options.timing, options.encoding) = (timing(), encoding);
        let mut follower = Follower::with(options).await;
        follower.synced().await;
        let (begun, asked_before) = (Instant::now(), Resource::ALL.map(|resource| self.asked(resource)));
        let mut slowest = Duration::ZERO;
        for number in 1..=faults {
            self.fault().await;
            for _ in 0..self.random.below(4) {
                self.change();
            }
            // What the agent makes of it comes in this time or later.
            let time = Duration::from_millis(self.random.below(60) as u64);
            let _ = timeout(time, follower.until(|_| false)).await;
            if number % FAULTS_OF_STORM == 0 || number == faults {
                self.calm();
                let calm = Instant::now();
                let known = timeout(CALM, follower.until(|follower| self.is_known_to(follower))).await;
                assert!(known.is_ok(), "{:?}: {:#?}", self.counts, tail(&follower.log));
                slowest = slowest.max(calm.elapsed());
            }
        }
        let following = async { follower.until(|_| false).await };
        tokio::select! {
            () = all_watched(&self.server) => {}
            () = following => {}
        }
        self.assert_paced(asked_before, begun.elapsed(), faults);
        assert_told_once(&follower, &log.take(), begun.elapsed());
        slowest
    }

    fn asked(&self, resource: Resource) -> usize {
        requests_for(&self.server, resource).len()
    }

    /// The shortest pause lies between two attempts that fail, and an attempt is a handful of pages at most. A watch that
    /// ends without a failure, or the first 410, is followed by another one at once: each of these is a fault.
    fn assert_paced(&self, before: [usize; 4], took: Duration, faults: usize) {
        let attempts = took.as_millis() / timing().shortest_retry.as_millis();
        for (resource, before) in Resource::ALL.into_iter().zip(before) {
            let asked = self.asked(resource) - before;
            let allowed = 3 * faults + 2 * attempts as usize;
            assert!(asked < allowed, "{resource}: {asked} requests in {took:?}, {allowed} allowed");
            eprintln!("{resource}: {asked} requests in {took:?}");
        }
    }
}

/// One line a minute for each cause, and one when it is over. Numbers are no part of a cause, nor is the count of lines
/// that were kept back.
fn assert_told_once(follower: &Follower, log: &[String], took: Duration) {
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    let (recoveries, log): (Vec<&String>, Vec<&String>) = log.iter().partition(|line| line.contains("followed again"));
    let degraded: Vec<_> = follower.log.iter().filter(|line| !line.starts_with("list") && *line != "synced").collect();
    assert!(recoveries.len() <= degraded.len(), "{recoveries:#?}");
    for line in degraded.into_iter().chain(log) {
        let end = line.find(" more time").and_then(|end| line[..end].rfind(" ("));
        let cause = &line[..end.unwrap_or(line.len())];
        *lines.entry(cause.chars().filter(|character| !character.is_numeric()).collect()).or_default() += 1;
    }
    let allowed = 1 + took.as_secs() as usize / 60;
    let too_many: Vec<_> = lines.iter().filter(|(_, count)| **count > allowed).collect();
    eprintln!("{} lines of {} causes, {} of recovery", lines.values().sum::<usize>(), lines.len(), recoveries.len());
    assert!(too_many.is_empty(), "more than {allowed} lines: {too_many:#?}");
}

fn tail(log: &[String]) -> &[String] {
    &log[log.len().saturating_sub(20)..]
}

/// The memory of this process now, in bytes.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

#[tokio::test]
async fn after_any_faults_the_agent_knows_what_the_server_has() {
    let wanted = std::env::var("API_FAULTS").ok().and_then(|faults| faults.parse().ok()).unwrap_or(FAULTS);
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let random = Random::seeded_by("API_FAULT_SEED", 1);
    let server = server_with_one_of_each().await;
    let mut chaos =
        Chaos { random, server, services: BTreeMap::new(), slices: BTreeSet::new(), counts: BTreeMap::new() };
    let (begun, memory_before) = (Instant::now(), memory());
    let (mut faults, mut slowest, mut encodings) =
        (0, Duration::ZERO, [Encoding::Protobuf, Encoding::Json].into_iter().cycle());
    while faults < wanted {
        let number = FAULTS_OF_AGENT.min(wanted - faults);
        slowest = slowest.max(chaos.agent(encodings.next().unwrap(), number, &log).await);
        faults += number;
    }
    let grown = memory().saturating_sub(memory_before);
    eprintln!(
        "{faults} faults in {:?}: everything known at the latest {slowest:?} after the server behaved again, {} MiB more: {:#?}",
        begun.elapsed(),
        grown >> 20,
        chaos.counts
    );
    assert!(grown < MEMORY + faults * MEMORY_OF_FAULT, "{grown} bytes more");
}
