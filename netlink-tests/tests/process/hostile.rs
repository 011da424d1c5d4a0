//! Other programs that flush, change, add to, take over or fight for our tables, at any time: when they have stopped,
//! everything is as it should be, no Service is held to blame, and `/healthz` did not call it well meanwhile.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmap_proxy_agent::netlink::{Kernel, OwnTable};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::NetNs;
use vmap_proxy_lab::Transport::Tcp;
use vmap_proxy_lab::http::{self, Reply};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::{node_object, proxy_config};
use vmap_proxy_testbed::generation::Commits;
use vmap_proxy_testbed::holdings::{Holdings, await_holdings};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{service, service_cidr, slice};
use vmap_proxy_testbed::nft::load_nft;
use vmap_proxy_testbed::nft::nft;
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::random::Random;
use vmap_proxy_testbed::skip::skipped;

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// Longest wait for a debug build on a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// Services of both families with one to three endpoints; some have affinity, source ranges or a NodePort.
pub(crate) fn services(count: u32) -> Vec<Value> {
    let mut objects = vec![node_object(), service_cidr("kubernetes", &["10.96.0.0/12", "fd00:10:96::/108"])];
    for number in 0..count {
        let name = format!("shop/web-{number}");
        let (high, low) = (number >> 8, number & 0xff);
        let mut web = service(&name).cluster_ip(&format!("10.96.{high}.{low}")).port(Tcp, 80);
        web = match number % 40 {
            3 => web.affinity(600),
            4 => web.node_port(i64::from(number % 30_000 + 1)),
            5 => web.load_balancer_ip(&format!("203.{high}.{low}.1")).source_range("198.51.100.0/24"),
            6 => web.cluster_ip(&format!("fd00:10:96::{number:x}")),
            _ => web,
        };
        objects.push(web.build());
        let pods: Vec<String> = (0..=number % 3).map(|pod| format!("10.244.{}.{}", 1 + pod, low)).collect();
        objects.push(slice(&name, "4").port(Tcp, 8080).endpoints(pods.iter().map(String::as_str)).build());
        if number % 40 == 6 {
            objects.push(slice(&name, "6").port(Tcp, 8080).endpoint(&format!("fd00:10:244::{number:x}")).build());
        }
    }
    objects
}

/// Returns the content of a separate namespace with these objects.
pub(crate) fn expected(objects: &[Value]) -> [Holdings; 2] {
    let namespace = namespace();
    let (_proxy, report) = Proxy::start(&namespace, proxy_config(), objects);
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    Holdings::read(&namespace)
}

pub(crate) fn namespace() -> NetNs {
    let namespace = NetNs::new("node").unwrap();
    let up = namespace.run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status()).unwrap().unwrap();
    assert!(up.success());
    namespace
}

/// A node with an agent on it, and what its kernel should hold.
pub(crate) struct Node {
    pub(crate) namespace: NetNs,
    pub(crate) manifests: ManifestDirectory,
    pub(crate) agent: AgentProcess,
    pub(crate) expected: [Holdings; 2],
}

impl Node {
    /// Waits for the agent's first sync.
    pub(crate) fn start(count: u32) -> Self {
        let mut node = Self::launch(count);
        node.agent.wait_for(&["programmed "]);
        node
    }

    fn launch(count: u32) -> Self {
        let objects = services(count);
        let (namespace, manifests) = (namespace(), ManifestDirectory::new());
        manifests.write_objects("services.json", &objects);
        let expected = expected(&objects);
        let agent = AgentProcess::launch(PROGRAM, &namespace, &manifests, &[]);
        Self { namespace, manifests, agent, expected }
    }

    #[track_caller]
    pub(crate) fn nft(&self, text: &str) {
        load_nft(&self.namespace, text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    /// By somebody who does not care whether the tables are there.
    fn try_nft(&self, text: &str) {
        let _ = load_nft(&self.namespace, text);
    }

    fn ask(&self, port: u16, path: &str) -> Option<Reply> {
        let address = ([127, 0, 0, 1], port).into();
        self.namespace.run(|| http::get_blocking(address, path)).unwrap().ok()
    }

    pub(crate) fn health(&self, path: &str) -> Reply {
        self.ask(10256, path).unwrap_or_else(|| panic!("{path} is not answered"))
    }

    #[track_caller]
    pub(crate) fn await_health(&self, what: &str, is_wanted: impl Fn(&Reply) -> bool) -> Reply {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.health("/healthz");
            if is_wanted(&reply) {
                return reply;
            }
            assert!(Instant::now() < deadline, "{what}: {reply:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.ask(10249, "/metrics").unwrap().body;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Everything is there again, nobody was blamed, and the proxy calls itself well.
    #[track_caller]
    pub(crate) fn ends_well(self, context: &str) {
        let took = await_holdings(&self.namespace, &self.expected, &context);
        eprintln!("{context}: whole again after {took:?}");
        let reply = self.await_health(context, |reply| reply.status == 200 && !reply.body.contains("reason"));
        assert!(reply.body.contains("\"healthy\":true"), "{reply:?}");
        let blamed: Vec<String> = self.agent.log().into_iter().filter(|line| line.contains("quarantined")).collect();
        assert!(blamed.is_empty(), "{context}: {blamed:#?}");
        assert_eq!(self.metric("vmap_proxy_quarantined_services "), 0.0);
        self.agent.stop();
    }
}

/// Acts like the restart of a firewall, with every pause in between, so that the second flush meets each phase of the
/// repair.
#[test]
fn two_flushes_in_a_row_cost_no_service() {
    let node = Node::start(3_000);
    for pause in [0, 10, 25, 50, 75, 100, 150, 200, 300, 500] {
        node.nft("flush ruleset");
        std::thread::sleep(Duration::from_millis(pause));
        node.nft("flush ruleset");
        let took = await_holdings(&node.namespace, &node.expected, &format!("flushed twice, {pause} ms apart"));
        eprintln!("{pause} ms apart: whole again after {took:?}");
    }
    assert!(node.metric("vmap_proxy_drift_repairs_total ") >= 10.0);
    node.ends_well("flushed twice");
}

/// Slow: many first syncs, each disturbed at another moment.
#[test]
fn what_others_do_during_the_first_sync_is_repaired() {
    for damage in ["flush map ip vmap-proxy endpoints", "flush ruleset", "flush chain ip vmap-proxy services"] {
        let node = Node::launch(5_000);
        let deadline = Instant::now() + PATIENCE;
        // As soon as the first sync has got somewhere.
        let is_under_way = || {
            let count = node.namespace.run(|| nft(&["list", "map", "ip", "vmap-proxy", "endpoints"], "")).unwrap();
            count.is_ok_and(|text| text.matches("10.244.").count() > 500)
        };
        while !is_under_way() {
            assert!(Instant::now() < deadline, "{:#?}", node.agent.log());
        }
        node.try_nft(damage);
        node.ends_well(&format!("{damage} during the first sync"));
    }
}

/// Attributes of tables, chains and sets, and things of every kind that our tables may hold and should not.
const DISTORTIONS: [(&str, &str); 12] = [
    ("flags", "add table ip vmap-proxy { flags dormant; }"),
    ("flags", "add table ip6 vmap-proxy { flags dormant; }"),
    ("policy", "add chain ip vmap-proxy filter-input { type filter hook input priority 0; policy drop; }"),
    (
        "chain",
        "add chain ip vmap-proxy evil { type filter hook input priority 0; policy drop; }; \
         add chain ip vmap-proxy jumped; add rule ip vmap-proxy evil jump jumped; add rule ip vmap-proxy jumped drop",
    ),
    (
        "chain",
        "add chain ip vmap-proxy sink; add rule ip vmap-proxy services goto sink; add rule ip vmap-proxy sink drop",
    ),
    (
        "set",
        "add set ip vmap-proxy mine { type ipv4_addr; }; add element ip vmap-proxy mine { 192.0.2.1 }; \
         add rule ip vmap-proxy services ip saddr @mine drop",
    ),
    (
        "set",
        "add chain ip vmap-proxy end; add map ip vmap-proxy ways { type ipv4_addr : verdict; \
         elements = { 192.0.2.1 : goto end }; }; add rule ip vmap-proxy services ip saddr vmap @ways",
    ),
    ("object", "add counter ip vmap-proxy seen; add rule ip vmap-proxy services counter name seen"),
    ("object", "add quota ip6 vmap-proxy few { over 1 bytes; }"),
    (
        "element",
        "add chain ip vmap-proxy away; add element ip vmap-proxy services { 10.96.200.1 . tcp . 80 : goto away }; \
         add element ip vmap-proxy nodeports { udp . 9 : accept }",
    ),
    ("element", "add element ip vmap-proxy service-cidrs { 10.200.0.1-10.200.0.6, 10.201.0.0-10.201.3.17 }"),
    ("element", "add element ip vmap-proxy source-ranges { 203.0.113.20 . tcp . 80 . 198.51.100.7 . 198.51.101.9 }"),
];

#[test]
fn what_is_not_ours_is_taken_out_while_the_agent_runs() {
    let node = Node::start(100);
    for (kind, text) in DISTORTIONS {
        let name = format!("vmap_proxy_foreign_removed_total{{kind=\"{kind}\"}} ");
        let before = node.metric(&name);
        node.nft(text);
        await_holdings(&node.namespace, &node.expected, &text);
        let deadline = Instant::now() + PATIENCE;
        while node.metric(&name) <= before {
            assert!(Instant::now() < deadline, "{text}: not counted as {kind}");
        }
    }
    let log = node.agent.log();
    assert!(log.iter().any(|line| line.contains("not ours") && line.contains("process ") && line.contains("(nft)")));
    assert!(log.iter().any(|line| line.contains("base chain \"evil\"")), "{log:#?}");
    node.ends_well("distorted");
}

#[test]
fn what_is_not_ours_is_taken_out_at_the_start() {
    let objects = services(100);
    let expected = expected(&objects);
    for list_at_most in [u32::MAX, 10] {
        for (kind, text) in DISTORTIONS {
            let namespace = namespace();
            drop(Proxy::start(&namespace, proxy_config(), &objects));
            load_nft(&namespace, text).unwrap();
            let (proxy, report) = Proxy::start_listing(list_at_most, &namespace, proxy_config(), &objects);
            let mut cleaned = report.cleaned;
            cleaned.extend(proxy.settle().cleaned);
            let kinds: Vec<&str> = cleaned.iter().map(|cleaned| cleaned.kind).collect();
            assert!(kinds.contains(&kind), "{text}: {kinds:?}");
            for (now, expected) in Holdings::read(&namespace).iter().zip(&expected) {
                assert_eq!(now.differences(expected), [] as [String; 0], "{text}, at most {list_at_most} listed");
            }
        }
    }
}

/// The kernel can't take such a change back, so the whole table is replaced.
#[test]
fn a_table_with_a_changed_set_is_replaced_and_counted() {
    let declaration =
        "affinity { type ipv4_addr . classid : ipv4_addr . inet_service; size 65536; flags dynamic,timeout;";
    let elsewhere = namespace();
    load_nft(&elsewhere, &format!("add table ip other; add map ip other {declaration} }}")).unwrap();
    load_nft(&elsewhere, &format!("add map ip other {declaration} timeout 1h; }}")).unwrap();
    if !elsewhere.run(|| nft(&["list", "table", "ip", "other"], "")).unwrap().unwrap().contains("timeout 1h") {
        return skipped("the kernel does not change the timeout of a set (before Linux 6.5)");
    }
    let node = Node::start(100);
    node.nft(&format!("add map ip vmap-proxy {declaration} timeout 1h; }}"));
    let removed = "vmap_proxy_foreign_removed_total{kind=\"table\"} ";
    let deadline = Instant::now() + PATIENCE;
    while node.metric(removed) < 1.0 {
        assert!(Instant::now() < deadline, "{:#?}", node.agent.log());
    }
    let log = node.agent.log();
    assert!(
        log.iter().any(|line| line.contains("not ours") && line.contains("map affinity") && line.contains("(nft)"))
    );
    node.ends_well("a changed set");
}

/// Later changes of a Service are programmed, whatever another program had put in their place.
#[test]
fn foreign_elements_are_in_nobodys_way() {
    let objects = services(50);
    let namespace = namespace();
    let (proxy, _) = Proxy::start(&namespace, proxy_config(), &objects);
    let text = "add chain ip vmap-proxy away; add element ip vmap-proxy services { 10.96.250.1 . tcp . 80 : goto away }; \
                add element ip vmap-proxy endpoints { 10.96.250.1 . tcp . 80 . 0 : 192.0.2.1 . 1 }; \
                add element ip vmap-proxy service-cidrs { 10.200.0.1-10.200.0.6 }";
    load_nft(&namespace, text).unwrap();
    let late = [
        service("shop/late").cluster_ip("10.96.250.1").port(Tcp, 80).build(),
        slice("shop/late", "4").port(Tcp, 8080).endpoint("10.244.1.5").build(),
        service_cidr("more", &["10.200.0.0/16"]),
    ];
    let report = proxy.apply(&late);
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    let all: Vec<Value> = objects.into_iter().chain(late).collect();
    for (now, expected) in Holdings::read(&namespace).iter().zip(&expected(&all)) {
        assert_eq!(now.differences(expected), [] as [String; 0]);
    }
}

/// User and system time of a process, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// Sets a flag when it goes, also by a failed assertion: who waits for it must not wait for ever.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Undoes whatever is there as fast as it can, until `done`.
fn fight(namespace: &NetNs, done: &AtomicBool) -> usize {
    let fight = || {
        let mut kernel = Kernel::open().unwrap();
        let mut count = 0;
        while !done.load(Ordering::Acquire) {
            for family in Family::ALL {
                count += usize::from(kernel.delete_table(OwnTable::Main, family).unwrap_or(false));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        count
    };
    namespace.run(fight).unwrap()
}

#[test]
fn a_fight_costs_little_is_told_honestly_and_ends_well() {
    const LENGTH: Duration = Duration::from_secs(15);
    let node = Node::start(300);
    // Health is updated just after the line of the first sync.
    node.await_health("the first sync", |reply| reply.status == 200);
    let pid = node.agent.id();
    let (lines, cpu) = (node.agent.log().len(), cpu_seconds(pid));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| fight(&node.namespace, &done));
        let end = SetAtEnd(&done);
        let begun = Instant::now();
        let reply = node.await_health("a fight", |reply| reply.status == 503);
        assert!(reply.body.contains("vmap-proxy") && reply.body.contains("reason"), "{reply:?}");
        while begun.elapsed() < LENGTH {
            std::thread::sleep(Duration::from_millis(200));
            assert_eq!(node.health("/healthz").status, 503, "it is not over");
        }
        drop(end);
        let undone = attacker.join().unwrap();
        assert!(undone > 20, "{undone}");
    });
    let (lines, cpu) = (node.agent.log().len() - lines, cpu_seconds(pid) - cpu);
    eprintln!("{lines} lines, {cpu} s of CPU in {LENGTH:?}");
    assert!(lines < 30, "{:#?}", node.agent.log());
    assert!(cpu < LENGTH.as_secs_f64() / 2.0, "{cpu} s");
    node.ends_well("a fight");
}

/// Flushes, deletions and additions by others, while Services change, from before the first sync on.
#[test]
fn after_any_sequence_of_foreign_changes_everything_is_as_it_should_be() {
    let rounds = std::env::var("HOSTILE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(4_u64);
    for round in 1..=rounds {
        let mut numbers = Random::new(round);
        let mut random = |bound: u64| numbers.number() % bound;
        let mut node = Node::launch(500);
        let mut objects = services(500);
        for _ in 0..40 {
            let (number, low) = (random(500), random(250));
            let text = match random(12) {
                0 | 1 => "flush ruleset".to_owned(),
                2 => "delete table ip vmap-proxy".to_owned(),
                3 => "flush table ip vmap-proxy".to_owned(),
                4 => "flush map ip vmap-proxy endpoints; flush map ip vmap-proxy services".to_owned(),
                5 => format!("delete element ip vmap-proxy services {{ 10.96.0.{low} . tcp . 80 }}"),
                6 => format!("add element ip vmap-proxy cluster-ips {{ 10.97.{}.{low} }}", number % 250),
                7 => DISTORTIONS[usize::try_from(random(DISTORTIONS.len() as u64)).unwrap()].1.to_owned(),
                8 => "flush ruleset; add table ip vmap-proxy; add chain ip vmap-proxy services".to_owned(),
                9 => "add table ip other; delete table ip other".to_owned(),
                _ => {
                    let (name, pod) = (format!("shop/web-{number}"), format!("10.244.{}.{low}", 1 + random(3)));
                    let changed = slice(&name, "4").port(Tcp, 8080).endpoint(&pod).build();
                    let is_same = |object: &Value| {
                        object["kind"] == "EndpointSlice" && object["metadata"]["name"] == changed["metadata"]["name"]
                    };
                    let place = objects.iter().position(is_same).unwrap();
                    objects[place] = changed;
                    node.manifests.write_objects("services.json", &objects);
                    continue;
                }
            };
            node.try_nft(&text);
            std::thread::sleep(Duration::from_millis(random(120)));
        }
        node.expected = expected(&objects);
        node.ends_well(&format!("round {round}"));
    }
}

/// The kernel's work on a large cluster holds up nobody who asks whether the agent lives, nor its end.
#[test]
fn a_long_first_sync_answers_and_ends_at_once() {
    // How long is long depends on the machine.
    assert!([6_000, 24_000, 60_000].into_iter().any(ends_a_first_sync_of), "too few Services for this machine");
}

/// Returns whether the first sync was still under way when the agent was to end.
fn ends_a_first_sync_of(count: u32) -> bool {
    let (namespace, manifests) = (namespace(), ManifestDirectory::new());
    manifests.write_objects("services.json", &services(count));
    let commits = namespace.run(Commits::follow).unwrap().unwrap();
    let agent = AgentProcess::launch(PROGRAM, &namespace, &manifests, &[]);
    let address = ([127, 0, 0, 1], 10256).into();
    let ask = || namespace.run(|| http::get_blocking(address, "/livez")).unwrap();
    commits.wait(PATIENCE).unwrap();
    let (mut asked, mut longest) = (0, Duration::ZERO);
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(ask().unwrap().status, 200);
        longest = longest.max(begun.elapsed());
        asked += 1;
    }
    let is_done = agent.log().iter().any(|line| line.contains("programmed "));
    eprintln!("{asked} answers during the first sync of {count}, the slowest after {longest:?}; done: {is_done}");
    let begun = Instant::now();
    agent.stop();
    eprintln!("ended after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20));
    // Committed changes stay.
    let tables = namespace.run(|| nft(&["list", "tables"], "")).unwrap().unwrap();
    assert!(tables.contains("vmap-proxy"), "{tables}");
    !is_done
}
