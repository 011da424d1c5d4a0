//! Services that change without a pause, at random, while clients connect: no connection fails, none goes untranslated, and
//! none reaches an endpoint that its frontend never had.
//!
//! A minute in the test command; `STRESS_SECONDS=3600 cargo test -p netlink-tests --test traffic stress::` for an hour, and
//! `STRESS_SEED=N` for another sequence of changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_lab::{Probe, ProbeResult, Transport};
use vmap_proxy_testbed::cluster::{CLIENT, Cluster, NODE, POD, REMOTE, at, ip, node_object, proxy_config};
use vmap_proxy_testbed::manifests::{ServiceManifest, service, slice};
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::random::Random;
use vmap_proxy_testbed::shop::{many_pods, on_pod_port};

/// The length, unless `STRESS_SECONDS` is another one.
const SECONDS: u64 = 60;

/// The wait of one connection: below a second, so that a lost SYN is noticed.
const TIMEOUT: Duration = Duration::from_millis(950);

/// Pods of each group of Services.
const PODS: usize = 16;

/// Counts of endpoints: those with a chain of their own, and the edges of shared ones.
const COUNTS: [usize; 7] = [1, 2, 3, 4, 7, 8, 16];

/// The addresses of the Service that always exists, of the one that changes its type, and those that Services which come
/// and go take from each other.
const STEADY: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
const BALANCED: [&str; 2] = ["203.0.113.10", "2001:db8:3::10"];
const RETYPED: [&str; 2] = ["10.96.0.11", "fd00:10:96::11"];
const SHARED: [[&str; 2]; 3] =
    [["10.96.0.21", "fd00:10:96::21"], ["10.96.0.22", "fd00:10:96::22"], ["10.96.0.23", "fd00:10:96::23"]];

/// Services that come and go.
const TRANSIENT: [&str; 5] = ["shop/one", "shop/two", "shop/three", "shop/four", "shop/five"];

/// Everything random.
struct Changes {
    random: Random,
    pods: [Vec<String>; 2],
}

impl Changes {
    /// Endpoints of a group for a Service: as many as there may be, one of this node among them.
    fn slices(&mut self, name: &str, group: usize) -> [Value; 2] {
        let count = self.random.pick(&COUNTS);
        let (first, start) = (group * PODS, self.random.below(PODS));
        // Every other pod is on this node, beginning with the first of each group.
        let numbers: BTreeSet<usize> = (0..count.saturating_sub(1))
            .map(|number| first + (start + number) % PODS)
            .chain([first + 2 * self.random.below(PODS / 2)])
            .collect();
        [0, 1].map(|family: usize| {
            let pods = numbers.iter().map(|number| self.pods[family][*number].as_str());
            on_pod_port(slice(name, &family.to_string())).endpoints(pods).build()
        })
    }

    /// A Service at an address of each family, with what never concerns its cluster IP changed at random.
    fn varied(&mut self, name: &str, addresses: [&str; 2]) -> ServiceManifest {
        let mut service = addresses.into_iter().fold(service(name), ServiceManifest::cluster_ip);
        service = service.port(Tcp, 80).port(Udp, 80);
        if self.random.one_in(2) {
            service = service.affinity(self.random.pick(&[1, 600, 10_800]));
        }
        if self.random.one_in(3) {
            service = service.internal_local();
        }
        service
    }

    /// The Service that keeps its addresses and its NodePort.
    fn steady(&mut self) -> Value {
        let mut service =
            BALANCED.into_iter().fold(self.varied("shop/steady", STEADY), ServiceManifest::load_balancer_ip);
        service = service.every_node_port(30080);
        if self.random.one_in(2) {
            service = service.external_local();
        }
        if self.random.one_in(3) {
            service = service.source_range("198.51.100.0/24").source_range("2001:db8:2::/64");
        }
        if self.random.one_in(3) {
            service = service.port(Tcp, 1_000 + self.random.below(4) as i64).named("more");
        }
        service.build()
    }

    /// The Service that keeps its cluster IPs alone.
    fn retyped(&mut self) -> Value {
        let service = self.varied("shop/retyped", RETYPED);
        match self.random.below(4) {
            0 => service,
            1 => service.every_node_port(30090 + self.random.below(3) as i64),
            2 => service.load_balancer_ip("203.0.113.11"),
            _ => service.external_ip("203.0.113.12"),
        }
        .build()
    }

    /// One to three changes, programmed together.
    fn next(&mut self, transient: &mut BTreeSet<&'static str>) -> (Vec<String>, Vec<Value>) {
        let (mut delete, mut apply) = (Vec::new(), Vec::new());
        for _ in 0..=self.random.below(3) {
            match self.random.below(8) {
                0 | 1 => apply.extend(self.slices("shop/steady", 0)),
                2 => apply.extend(self.slices("shop/retyped", 1)),
                3 => apply.push(self.steady()),
                4 => apply.push(self.retyped()),
                _ => {
                    let name = self.random.pick(&TRANSIENT);
                    if transient.remove(name) {
                        delete.push(format!("Service {name}"));
                    } else {
                        transient.insert(name);
                        let addresses = self.random.pick(&SHARED);
                        let service = self.varied(name, addresses);
                        apply.push(service.every_node_port(31_000 + self.random.below(2) as i64).build());
                        apply.extend(self.slices(name, 2));
                    }
                }
            }
        }
        // The last of several changes of one object counts.
        delete.retain(|object| {
            !apply.iter().any(|one| object.ends_with(one["metadata"]["name"].as_str().unwrap_or("?")))
        });
        (delete, apply)
    }
}

/// A way to a frontend, and the group of the pods that may answer. `must`: it always has an endpoint.
struct Way {
    probe: Probe,
    group: usize,
    must: bool,
}

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    let mut add = |from: &str, to: SocketAddr, transport: Transport, group: usize| {
        let probe = Probe { source: ip(from), target: to, transport, timeout: TIMEOUT };
        ways.push(Way { probe, group, must: group < 2 });
    };
    for family in 0..2 {
        for transport in [Tcp, Udp] {
            add(POD[family], at(STEADY[family], 80), transport, 0);
            add(CLIENT[family], at(NODE[family], 30080), transport, 0);
            add(CLIENT[family], at(BALANCED[family], 80), transport, 0);
            add(NODE[family], at(RETYPED[family], 80), transport, 1);
        }
        add(NODE[family], at(STEADY[family], 80), Tcp, 0);
        add(REMOTE[family][3], at(STEADY[family], 80), Udp, 0);
        add(POD[family], at(RETYPED[family], 80), Tcp, 1);
        for addresses in SHARED {
            add(POD[family], at(addresses[family], 80), Tcp, 2);
        }
        add(CLIENT[family], at(NODE[family], 31_000), Tcp, 2);
    }
    ways
}

/// The outcomes of connections.
#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    /// To frontends that came and went: answered or not.
    answered_in_between: usize,
    failed: Vec<String>,
}

impl Counts {
    fn note(&mut self, way: &Way, result: ProbeResult, pods: &[BTreeSet<IpAddr>]) {
        self.connections += 1;
        let what = || format!("{:?}: {result}", way.probe);
        match result {
            ProbeResult::Answered { by, .. } if pods[way.group].contains(&by.ip()) => {
                self.answered_in_between += usize::from(!way.must);
            }
            ProbeResult::Answered { .. } => self.failed.push(format!("by an endpoint of another frontend: {}", what())),
            // Refused, or untranslated: nobody has the addresses of Services.
            _ if way.must => self.failed.push(what()),
            _ => {}
        }
    }
}

#[test]
fn no_connection_is_lost_under_random_changes() {
    let seconds = std::env::var("STRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(SECONDS);
    let random = Random::seeded_by("STRESS_SEED", 1);
    let cluster = Cluster::new();
    let pods = many_pods(&cluster, 3 * PODS);
    let groups: Vec<BTreeSet<IpAddr>> = (0..3)
        .map(|group| pods.iter().flat_map(|pods| &pods[group * PODS..][..PODS]).map(|pod| ip(pod)).collect())
        .collect();
    let mut changes = Changes { random, pods };
    let mut objects = vec![node_object(), changes.steady(), changes.retyped()];
    objects.extend(changes.slices("shop/steady", 0));
    objects.extend(changes.slices("shop/retyped", 1));
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);

    let (end, done) = (Instant::now() + Duration::from_secs(seconds), AtomicBool::new(false));
    let (mut count, ways) = (0_u64, ways());
    let counts = std::thread::scope(|scope| {
        let connect = |must: bool| {
            let ways: Vec<&Way> = ways.iter().filter(|way| way.must == must).collect();
            let probes: Vec<Probe> = ways.iter().map(|way| way.probe).collect();
            let mut counts = Counts::default();
            while !done.load(Ordering::Acquire) {
                let results = cluster.lab().probe_all(&probes).unwrap_or_else(|error| panic!("{error}"));
                ways.iter().zip(results).for_each(|(way, result)| counts.note(way, result, &groups));
            }
            counts
        };
        // What may go unanswered waits for it, and must not hold up the others.
        let clients = [true, false].map(|must| scope.spawn(move || connect(must)));
        let mut transient = BTreeSet::new();
        while Instant::now() < end && clients.iter().all(|client| !client.is_finished()) {
            let (delete, apply) = changes.next(&mut transient);
            let delete: Vec<&str> = delete.iter().map(String::as_str).collect();
            // Stale flows stay: a datagram whose pod leaves before it answers would lose its answer with its flow.
            let report = proxy.program_all(&delete, &apply);
            assert!(report.refused.is_empty(), "{report:?}");
            count += 1;
            if count % 100 == 0 {
                proxy.assert_nothing_differs();
            }
        }
        done.store(true, Ordering::Release);
        clients.map(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let [steady, in_between] = counts;
    let connections = steady.connections + in_between.connections;
    let answered_in_between = in_between.answered_in_between;
    let failed = [steady.failed, in_between.failed].concat();
    eprintln!(
        "{count} changes and {connections} connections in {seconds} s, {answered_in_between} of them to Services that \
         came and went: {} lost",
        failed.len()
    );
    assert!(failed.is_empty(), "{:#?}", &failed[..failed.len().min(20)]);
    assert!(count > seconds && connections > 100 && answered_in_between > 0);
}
