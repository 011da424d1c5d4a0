//! A first sync that begins while slices still arrive, and whatever may come between.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmap_proxy_agent::source::{Event, ObjectChange, Origin};
use vmap_proxy_agent::sync::report::SyncReport;
use vmap_proxy_compiler::model::Change;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::plan::Operation;
use vmap_proxy_conformance::schema::ObjectRef;
use vmap_proxy_conformance::under_test;
use vmap_proxy_lab::{NetNs, Transport};
use vmap_proxy_testbed::cluster::{POD_PORT, node_object, proxy_config};
use vmap_proxy_testbed::generation::Commits;
use vmap_proxy_testbed::holdings::Holdings;
use vmap_proxy_testbed::manifests::{service, service_cidr, slice};
use vmap_proxy_testbed::nft::{load_nft, nft_in};
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::skip::skipped;
use vmap_proxy_testbed::syncer_thread::SyncerThread;

use crate::sync::many_services;

const NOTHING: [String; 0] = [];

/// Enough for several plans.
const SERVICES: u32 = 600;

/// An agent whose source lists.
struct Lister {
    syncer: SyncerThread,
    namespace: NetNs,
    /// What has been sent.
    objects: Vec<Value>,
}

fn is_slice(object: &Value) -> bool {
    object["kind"] == "EndpointSlice"
}

/// The order of an API server.
fn listed(objects: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut objects: Vec<Value> = objects.into_iter().collect();
    objects.sort_by_key(|object| object["metadata"]["name"].as_str().unwrap().to_owned());
    objects
}

impl Lister {
    fn start(namespace: NetNs) -> Self {
        let syncer = SyncerThread::start(&namespace, proxy_config()).unwrap();
        let lister = Self { syncer, namespace, objects: Vec::new() };
        for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
            lister.take(Event::ListStarted(kind));
        }
        lister
    }

    /// One with all Services and most slices, of which some are filled in.
    fn filling(objects: &[Value]) -> Self {
        let mut lister = Self::start(NetNs::new("node").unwrap());
        lister.send_services(objects);
        lister.send_slices(objects, 0..1000);
        lister.await_elements();
        lister
    }

    fn take(&self, event: Event) {
        self.syncer.with(move |syncer| syncer.take(event)).unwrap();
    }

    fn changes(&self, changes: &[Change]) {
        let read = |change: &Change| ObjectChange::read(change, &proxy_config().node_name, Origin::ApiServer).0;
        self.take(Event::Changes(changes.iter().map(read).collect()));
    }

    /// Objects come as the source sends them: several at once.
    fn send(&mut self, objects: impl IntoIterator<Item = Value>) {
        let objects: Vec<Value> = objects.into_iter().collect();
        for some in objects.chunks(50) {
            self.changes(&under_test::changes(&[], some).unwrap());
        }
        self.objects.extend(objects);
    }

    /// The node and the Services, completely.
    fn send_services(&mut self, objects: &[Value]) {
        self.send([node_object()]);
        self.take(Event::ListCompleted(Kind::Node));
        self.send(listed(objects.iter().filter(|object| !is_slice(object)).cloned()));
        self.take(Event::ListCompleted(Kind::Service));
    }

    /// The first slices: some Services have all theirs, and others none.
    fn send_slices(&mut self, objects: &[Value], part: std::ops::Range<usize>) {
        self.send(listed(objects.iter().filter(|object| is_slice(object)).cloned())[part].to_vec());
    }

    fn complete(&self) -> SyncReport {
        self.take(Event::ListCompleted(Kind::EndpointSlice));
        self.take(Event::Synced);
        self.syncer.with(|syncer| syncer.sync().unwrap()).unwrap()
    }

    /// Returns the number of elements of a map in the kernel.
    fn count(&self, map: &str) -> usize {
        let Ok(text) = nft_in(&self.namespace, &["-j", "list", "map", "ip", "vmap-proxy", map], "") else { return 0 };
        let listing: Value = serde_json::from_str(&text).unwrap();
        let maps = listing["nftables"].as_array().unwrap().iter().filter_map(|object| object["map"]["elem"].as_array());
        maps.map(Vec::len).sum()
    }

    /// Waits until the committer has filled in something.
    fn await_elements(&self) {
        let begun = Instant::now();
        let commits = self.namespace.run(Commits::follow).unwrap().unwrap();
        while self.count("endpoints") == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is filled in while slices arrive");
            commits.wait(Duration::from_secs(1)).unwrap();
        }
    }

    fn base_rules(&self) -> usize {
        let text = nft_in(&self.namespace, &["-j", "list", "table", "ip", "vmap-proxy"], "").unwrap();
        let listing: Value = serde_json::from_str(&text).unwrap();
        let of = |kind: &'static str| listing["nftables"].as_array().unwrap().iter().filter_map(move |o| o.get(kind));
        let bases: BTreeSet<&str> = of("chain")
            .filter(|chain| chain.get("hook").is_some())
            .filter_map(|chain| chain["name"].as_str())
            .collect();
        assert!(!bases.is_empty());
        of("rule").filter(|rule| rule["chain"].as_str().is_some_and(|chain| bases.contains(chain))).count()
    }

    /// The kernel holds what an agent programs that heard of everything at once.
    fn assert_like_a_fresh_start(&self, end: &[Value]) {
        let other = NetNs::new("fresh").unwrap();
        let (_proxy, _) = Proxy::start(&other, proxy_config(), end);
        for (mut ours, mut theirs) in Holdings::read(&self.namespace).into_iter().zip(Holdings::read(&other)) {
            ours.forget_unused_chains();
            theirs.forget_unused_chains();
            assert_eq!(ours.differences(&theirs), NOTHING);
        }
    }
}

fn objects() -> Vec<Value> {
    let mut objects = many_services(SERVICES);
    // Without endpoints, and without a slice.
    objects.push(service("shop/alone").cluster_ip("10.97.0.1").port(Transport::Tcp, 80).build());
    objects
}

#[test]
fn tables_fill_while_slices_arrive_and_work_when_all_are_there() {
    let objects = objects();
    let mut lister = Lister::start(NetNs::new("node").unwrap());
    // Some slices come before the last Service.
    lister.send_slices(&objects, 0..400);
    assert_eq!(lister.count("endpoints"), 0);
    lister.send_services(&objects);
    lister.send_slices(&objects, 400..1000);
    lister.await_elements();
    assert_eq!(lister.base_rules(), 0, "no packet may meet a part of the Services");
    lister.send_slices(&objects, 1000..2 * SERVICES as usize);
    let report = lister.complete();
    assert!(report.refused.is_empty() && report.changed.is_empty(), "{report:?}");
    assert!(lister.base_rules() > 0);
    let end = lister.objects.clone();
    lister.assert_like_a_fresh_start(&end);

    // Later changes are changes like any other, and a restart finds everything.
    lister.send([slice("shop/alone", "1").port(Transport::Tcp, POD_PORT.into()).endpoint("10.244.1.10").build()]);
    let report = lister.syncer.with(|syncer| syncer.sync().unwrap()).unwrap();
    assert_eq!((report.changed.len(), report.repaired), (1, false), "{report:?}");
    let Lister { syncer, namespace, objects: end } = lister;
    drop(syncer);
    let (_proxy, report) = Proxy::start(&namespace, proxy_config(), &end);
    assert!(report.is_empty(), "{report:?}");
}

/// Only one socket may change such tables.
#[test]
fn tables_with_an_owner_fill_as_well() {
    let objects = objects();
    let mut lister = Lister::start(NetNs::new("node").unwrap());
    let knows = lister.syncer.with(|syncer| {
        let knows = syncer.kernel().knows_flush_proof_tables().unwrap();
        syncer.kernel().make_flush_proof(knows);
        knows
    });
    if !knows.unwrap() {
        return skipped("this kernel does not know the flags owner and persist");
    }
    lister.send_services(&objects);
    lister.send_slices(&objects, 0..1000);
    lister.await_elements();
    let filled = lister.count("endpoints");
    lister.send_slices(&objects, 1000..2 * SERVICES as usize);
    assert!(lister.complete().refused.is_empty());
    assert!(lister.base_rules() > 0 && lister.count("endpoints") > filled);
    lister.send([slice("shop/alone", "1").port(Transport::Tcp, POD_PORT.into()).endpoint("10.244.1.10").build()]);
    assert_eq!(lister.syncer.with(|syncer| syncer.sync().unwrap().changed.len()).unwrap(), 1);
}

#[test]
fn what_changes_during_the_list_is_programmed_as_it_is_in_the_end() {
    let objects = objects();
    let mut lister = Lister::filling(&objects);
    // Services that were filled in go and change, the node gets service ranges, and the list begins again.
    let [kind, namespace, name] = ["Service", "shop", "web-10"].map(str::to_owned);
    let gone = ObjectRef { kind, namespace, name };
    let changed = service("shop/web-100").cluster_ip("10.97.0.9").port(Transport::Tcp, 81).build();
    let range = service_cidr("kubernetes", &["10.96.0.0/12"]);
    lister.changes(&under_test::changes(&[gone], &[]).unwrap());
    lister.send([changed, range]);
    lister.take(Event::ListStarted(Kind::EndpointSlice));
    let all = 2 * SERVICES as usize;
    // A slice of a filled Service is not listed again.
    lister.send_slices(&objects, 3..all);
    assert_eq!(lister.base_rules(), 0);
    lister.complete();
    let kept = listed(objects.iter().filter(|object| is_slice(object)).cloned()).split_off(3);
    let services = lister.objects.iter().filter(|object| !is_slice(object) && object["metadata"]["name"] != "web-10");
    let end: Vec<Value> = services.cloned().chain(kept).collect();
    lister.assert_like_a_fresh_start(&end);
}

#[test]
fn a_refusal_during_the_list_costs_one_service() {
    let objects = objects();
    let mut lister = Lister::start(NetNs::new("node").unwrap());
    let refuse = |operation: &Operation| operation.owner.as_deref() == Some("shop/web-507");
    lister.syncer.with(move |syncer| syncer.kernel().refuse_when(Some(refuse))).unwrap();
    lister.send_services(&objects);
    lister.send_slices(&objects, 0..2 * SERVICES as usize);
    let report = lister.complete();
    let refused: BTreeSet<_> = report.refused.iter().map(|refused| refused.owner.as_deref()).collect();
    assert_eq!(refused, BTreeSet::from([Some("shop/web-507")]));
    let end: Vec<Value> = lister.objects.iter().filter(|o| !o.to_string().contains("web-507\"")).cloned().collect();
    lister.assert_like_a_fresh_start(&end);
}

#[test]
fn changes_of_others_during_the_list_are_put_right() {
    for damage in ["add table ip other", "flush map ip vmap-proxy endpoints", "flush ruleset"] {
        let objects = objects();
        let mut lister = Lister::filling(&objects);
        load_nft(&lister.namespace, damage).unwrap();
        lister.send_slices(&objects, 1000..2 * SERVICES as usize);
        lister.complete();
        let end = lister.objects.clone();
        lister.assert_like_a_fresh_start(&end);
    }
}

#[test]
fn an_agent_that_ends_during_the_list_leaves_work_for_the_next() {
    let objects = objects();
    let lister = Lister::filling(&objects);
    let Lister { syncer, namespace, .. } = lister;
    drop(syncer);
    // The next finds tables, and fills nothing in before it has heard of everything.
    let mut next = Lister::start(namespace);
    next.send_services(&objects);
    let before = Holdings::read(&next.namespace);
    next.send_slices(&objects, 0..2 * SERVICES as usize);
    assert!(Holdings::read(&next.namespace) == before);
    next.complete();
    let end = next.objects.clone();
    next.assert_like_a_fresh_start(&end);
}
