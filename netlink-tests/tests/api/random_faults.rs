//! An API server that misbehaves at random, in every way that the double knows, while objects change: in the end the agent
//! knows what the server has, has not asked faster than its pauses allow, and has written few lines.
//!
//! Some seconds in the test command; `API_FAULTS=5000 cargo test -p netlink-tests --test api random_faults::` for longer, and
//! `API_FAULT_SEED=N` for another sequence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;
use vmap_proxy_agent::source::kubernetes::Timing;
use vmap_proxy_testbed::apiserver::{ApiServer, Fault, Resource};
use vmap_proxy_testbed::random::Random;

use crate::kubernetes_source::follower::{
    Follower, all_watched, options, requests_for, server_with_one_of_each, service, slice,
};

/// The number of faults, unless `API_FAULTS` is another one.
const FAULTS: usize = 150;

/// Services there may be.
const SERVICES: usize = 20;

/// Longest time for everything to be known once the server behaves.
const CALM: Duration = Duration::from_secs(60);

/// Long enough to be told from the machine's own slowness, short enough for many faults.
fn timing() -> Timing {
    Timing {
        shortest_retry: Duration::from_millis(20),
        longest_retry: Duration::from_millis(200),
        short_watch: Duration::from_millis(20),
        idle: Duration::from_secs(5),
        list_idle: Duration::from_millis(500),
        ..Timing::default()
    }
}

/// Everything random, and what the server has by now.
struct Chaos {
    random: Random,
    server: ApiServer,
    services: BTreeMap<String, String>,
    slices: BTreeSet<String>,
    counts: BTreeMap<&'static str, u32>,
}

impl Chaos {
    fn resource(&mut self) -> Resource {
        self.random.pick(&Resource::ALL)
    }

    /// Something changes.
    fn change(&mut self) {
        let number = self.random.below(SERVICES);
        let name = format!("s-{number}");
        match self.random.below(4) {
            0 => {
                self.server.delete(Resource::Services, "shop", &name);
                self.services.remove(&name);
            }
            1 => {
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

    /// The server misbehaves in one way.
    async fn fault(&mut self) {
        let resource = self.resource();
        let choice = self.random.below(20);
        let server = &mut self.server;
        let kind = match choice {
            0 => {
                server.set_fault(resource, Some(Fault::EndsAfterEvent));
                "watches end behind an event"
            }
            1 => {
                server.set_fault(resource, Some(Fault::ExpiresAfterEvent));
                "410 behind an event"
            }
            2 => {
                server.set_streaming_lists(false);
                server.set_fault(resource, Some(Fault::EndlessPages));
                server.expire_watches(resource);
                "pages without end"
            }
            3 => {
                server.set_streaming_lists(false);
                server.set_fault(resource, Some(Fault::EmptyPages));
                server.expire_watches(resource);
                "empty pages without end"
            }
            4 => {
                server.set_fault(resource, Some(Fault::Busy(u32::MAX)));
                server.break_watches(resource);
                // It would ask again after a minute; meanwhile it must stay in order.
                server.set_fault(resource, None);
                "Retry-After of years"
            }
            5 => {
                server.refuse(resource, 500, "internal error");
                server.break_watches(resource);
                "500"
            }
            6 => {
                server.refuse(resource, 401, "Unauthorized");
                server.break_watches(resource);
                "401"
            }
            7 => {
                server.refuse(resource, 403, "forbidden");
                server.expire_watches(resource);
                "403"
            }
            8 => {
                server.set_slow(Some((1, Duration::from_millis(50))));
                server.expire_watches(resource);
                "a byte at a time"
            }
            9 => {
                let garbage: Vec<u8> = (0..self.random.below(300)).map(|_| self.random.number() as u8).collect();
                server.send_raw(resource, garbage);
                "garbage"
            }
            10 => {
                let stranger = json!({"type": "ADDED", "object": {"kind": "Secret", "apiVersion": "v1",
                    "metadata": {"name": "s-1", "namespace": "shop", "resourceVersion": "7"}}});
                server.send_raw(resource, format!("{stranger}\n"));
                "an object of another kind"
            }
            11 => {
                let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1",
                    "metadata": {"resourceVersion": "1"}}});
                server.send_raw(resource, format!("{bookmark}\n"));
                server.end_watches(resource);
                "a resourceVersion that goes back"
            }
            12 => {
                server.compact();
                server.end_watches(resource);
                "a history that is gone"
            }
            13 => {
                server.break_next(resource, self.random.below(400));
                server.expire_watches(resource);
                "an answer that breaks off"
            }
            14 => {
                server.expire_next_page(resource);
                server.set_streaming_lists(false);
                server.expire_watches(resource);
                "a token that expires"
            }
            15 => {
                server.set_forgets_bookmark(true);
                server.expire_watches(resource);
                "a list without its end"
            }
            16 => {
                server.set_fault(resource, Some(Fault::WrongMagic));
                server.expire_watches(resource);
                "protobuf that is none"
            }
            17 => {
                server.set_fault(resource, Some(Fault::TruncatedFrame));
                server.expire_watches(resource);
                "objects that are cut off"
            }
            18 => {
                server.pause();
                server.resume().await.unwrap();
                "a restart"
            }
            _ => {
                server.break_watches(resource);
                "a watch that breaks off"
            }
        };
        *self.counts.entry(kind).or_default() += 1;
    }

    /// The server behaves again.
    fn calm(&mut self) {
        for resource in Resource::ALL {
            self.server.set_fault(resource, None);
            self.server.allow(resource);
        }
        self.server.set_slow(None);
        self.server.set_streaming_lists(true);
        self.server.set_forgets_bookmark(false);
    }

    /// The objects that the agent should know, by name.
    fn knows(&self, follower: &Follower) -> bool {
        let services = (0..SERVICES).map(|number| format!("s-{number}"));
        let mut services = services.map(|name| (follower.cluster_ip(&name), self.services.get(&name).cloned()));
        services.all(|(known, wanted)| known == wanted) && self.slices.iter().all(|name| follower.has(name))
    }
}

#[tokio::test]
async fn after_any_faults_the_agent_knows_what_the_server_has() {
    let wanted = std::env::var("API_FAULTS").ok().and_then(|faults| faults.parse().ok()).unwrap_or(FAULTS);
    let random = Random::seeded_by("API_FAULT_SEED", 1);
    let server = server_with_one_of_each().await;
    let mut options = options(&server);
    options.timing = timing();
    let mut follower = Follower::with(options).await;
    follower.synced().await;
    let mut chaos =
        Chaos { random, server, services: BTreeMap::new(), slices: BTreeSet::new(), counts: BTreeMap::new() };
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for faults in 1..=wanted {
        chaos.fault().await;
        for _ in 0..chaos.random.below(4) {
            chaos.change();
        }
        // What the agent makes of it comes in this time or later.
        let pause = Duration::from_millis(chaos.random.below(60) as u64);
        let _ = timeout(pause, follower.until(|_| false)).await;
        if faults % 10 == 0 {
            chaos.calm();
            let calm = Instant::now();
            let known = timeout(CALM, async {
                while !chaos.knows(&follower) {
                    // Events come one by one; a batch may be the last.
                    let _ = timeout(Duration::from_millis(100), follower.step()).await;
                }
            });
            let context = || format!("after {faults} faults, {:?}: {:#?}", chaos.counts, follower_tail(&follower));
            assert!(known.await.is_ok(), "{}", context());
            slowest = slowest.max(calm.elapsed());
        }
    }
    let took = begun.elapsed();
    all_watched(&chaos.server).await;
    let lines: Vec<&String> =
        follower.log.iter().filter(|line| !line.starts_with("list") && *line != "synced").collect();
    let mut most = 0;
    for resource in Resource::ALL {
        let asked = requests_for(&chaos.server, resource).len();
        // The shortest pause lies between two attempts, each of which may ask for a handful of pages.
        let allowed = 50 + 6 * (took.as_millis() / timing().shortest_retry.as_millis()) as usize;
        assert!(asked < allowed, "{resource}: {asked} requests in {took:?}");
        most = most.max(asked);
    }
    eprintln!(
        "{wanted} faults in {took:?}: at most {most} requests for one resource, {} lines, everything known at the latest \
         {slowest:?} after the server behaved again: {:#?}",
        lines.len(),
        chaos.counts
    );
    // Four resources, a dozen causes, one line a minute for each, and one when it is over.
    let allowed = 100 * (1 + took.as_secs() as usize / 60);
    assert!(lines.len() < allowed, "{} lines: {lines:#?}", lines.len());
}

fn follower_tail(follower: &Follower) -> &[String] {
    &follower.log[follower.log.len().saturating_sub(20)..]
}
