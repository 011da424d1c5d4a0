//! The Kubernetes source against the API server double: nothing here but the
//! agent's own code and real HTTP.

pub(crate) mod follower;

use std::fmt::Write as _;
use std::time::Duration;

use follower::{
    Follower, LIMIT, all_watched, lists, node, options, requests_for, server_with_one_of_each, service, slice, timing,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use vmap_proxy_agent::metrics::Metrics;
use vmap_proxy_agent::source::Event;
use vmap_proxy_agent::source::kubernetes::{ConnectError, Encoding, KubernetesOptions, KubernetesSource};

use vmap_proxy_compiler::model::checked::Content;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_dns_zone::{Answer, QuestionType, Records, Zone, ZoneConfig};
use vmap_proxy_testbed::apiserver::{ApiServer, Fault, Lists, Resource};

async fn sync_and_follow(lists_of_server: Lists, protobuf: bool) {
    let server = server_with_one_of_each().await;
    server.set_protobuf(protobuf);
    server.set_lists(lists_of_server);
    // Objects that kube-proxy's selectors leave out.
    let mut headless = service("headless", "None");
    headless["spec"]["clusterIP"] = json!("None");
    let mut foreign = service("foreign", "10.0.0.2");
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": ""});
    let mut headless_slice = slice("headless-1", "headless", 1);
    headless_slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    server.apply_all([headless, foreign.clone(), headless_slice]);

    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    assert_eq!(
        follower.names(),
        ["Service shop/cart", "EndpointSlice shop/cart-1", "Node n1", "ServiceCIDR kubernetes"]
    );
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr] {
        assert_eq!((follower.count(&format!("list {kind}")), follower.count(&format!("listed {kind}"))), (1, 1));
    }
    let has_asked =
        |resource: Resource, word: &str| requests_for(&server, resource).iter().any(|request| request.contains(word));
    for resource in [Resource::Services, Resource::EndpointSlices] {
        let pages = [has_asked(resource, "limit=1000"), has_asked(resource, "limit=500")];
        assert_eq!(pages, [lists_of_server == Lists::PagesFromCache, lists_of_server == Lists::Pages], "{resource}");
    }
    // Where there are few objects, a streaming list saves a request.
    assert_eq!(has_asked(Resource::Nodes, "limit="), lists_of_server == Lists::Pages, "{:?}", server.requests());

    server.apply(service("cart", "10.0.0.3"));
    server.apply(service("new", "10.0.0.4"));
    foreign["metadata"]["labels"] = json!({});
    server.apply(foreign.clone());
    follower.until(|follower| follower.has("foreign")).await;
    assert_eq!(
        (follower.cluster_ip("cart").as_deref(), follower.cluster_ip("new").as_deref()),
        (Some("10.0.0.3"), Some("10.0.0.4"))
    );
    server.delete(Resource::Services, "shop", "cart");
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    server.apply(foreign);
    follower.until(|follower| !follower.has("foreign")).await;
    assert!(!follower.has("cart"));
    assert_eq!(
        lists(&server, Resource::Services),
        if lists_of_server == Lists::Pages { 2 } else { 1 },
        "{:?}",
        server.requests()
    );
}

#[tokio::test]
async fn lists_of_every_server_sync_and_are_followed() {
    for lists in Lists::ALL {
        for protobuf in [true, false] {
            sync_and_follow(lists, protobuf).await;
        }
    }
}

/// A server that forbids the question is asked once. One that could not answer is asked again at the next list.
#[tokio::test]
async fn a_server_without_a_version_gets_streaming_lists() {
    for (code, asked) in [(403, 1), (503, 4)] {
        let server = server_with_one_of_each().await;
        server.refuse_version(code);
        let mut follower = Follower::start(&server).await;
        follower.synced().await;
        all_watched(&server).await;
        for resource in [Resource::Services, Resource::EndpointSlices] {
            server.expire_watches(resource);
        }
        follower.until(|follower| follower.count("listed Service") + follower.count("listed EndpointSlice") == 4).await;
        let requests = server.requests();
        assert!(requests.iter().all(|request| !request.contains("limit=")), "{requests:?}");
        assert_eq!(requests.iter().filter(|request| request.ends_with(" /version")).count(), asked, "{code}");
        assert!(follower.log.iter().all(|line| !line.contains("can't")), "{:?}", follower.log);
    }
}

/// A DNS server needs what a proxy leaves out: headless Services and their slices.
#[tokio::test]
async fn with_names_headless_services_are_followed() {
    let server = server_with_one_of_each().await;
    let mut headless = service("headless", "None");
    headless["spec"]["clusterIP"] = json!("None");
    let mut headless_slice = slice("headless-1", "headless", 1);
    headless_slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    headless_slice["endpoints"][0]["hostname"] = json!("pod-0");
    server.apply_all([headless, headless_slice]);

    let source = KubernetesSource::connect(options(&server)).await.unwrap().with_names(true);
    let (sender, mut events) = mpsc::channel(8);
    let task = tokio::spawn(source.run(sender));
    let mut zone = Zone::new(ZoneConfig::default());
    while !zone.is_complete() {
        match timeout(LIMIT, events.recv()).await.unwrap().unwrap() {
            Event::Changes(changes) => {
                for mut change in changes {
                    let names = change.take_names().unwrap();
                    zone.apply(change.object(), names);
                }
            }
            Event::Synced => zone.set_complete(),
            _ => {}
        }
    }
    let ask = |name: &str| {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        match zone.answer(&labels, QuestionType::A) {
            Answer::Records(Records::A(addresses)) => addresses.iter().map(ToString::to_string).collect(),
            other => vec![format!("{other:?}")],
        }
    };
    assert_eq!(ask("pod-0.headless.shop.svc.cluster.local"), ["10.1.0.0"]);
    assert_eq!(ask("cart.shop.svc.cluster.local"), ["10.0.0.1"]);
    task.abort();
}

#[tokio::test]
async fn an_empty_cluster_syncs() {
    let server = ApiServer::start().await.unwrap();
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    assert!(follower.objects.is_empty());
}

#[tokio::test]
async fn what_was_deleted_before_a_relist_is_swept() {
    let server = server_with_one_of_each().await;
    server.apply(service("stays", "10.0.0.9"));
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    // The deletion happens where no watch can see it.
    server.break_watches(Resource::Services);
    server.refuse(Resource::Services, 503, "shutting down");
    timeout(LIMIT, server.wait_until(|server| server.open_watches(Resource::Services) == 0)).await.unwrap();
    server.delete(Resource::Services, "shop", "cart");
    server.compact();
    server.allow(Resource::Services);
    follower.until(|follower| follower.count("listed Service") == 2).await;
    assert_eq!(
        follower.names(),
        ["Service shop/stays", "EndpointSlice shop/cart-1", "Node n1", "ServiceCIDR kubernetes"]
    );
    assert_eq!(
        (follower.count("list EndpointSlice"), follower.count("list Node")),
        (1, 1),
        "others are not listed again"
    );
    // And the watch goes on.
    server.apply(service("after", "10.0.0.8"));
    follower.until(|follower| follower.has("after")).await;
}

#[tokio::test]
async fn an_expired_watch_lists_again() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    server.expire_watches(Resource::EndpointSlices);
    follower.until(|follower| follower.count("listed EndpointSlice") == 2).await;
    server.apply(slice("cart-2", "cart", 1));
    follower.until(|follower| follower.has("cart-2")).await;
    assert!(follower.log.iter().all(|line| !line.contains("can't")), "410 is no failure: {:?}", follower.log);
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_behind_the_last_bookmark() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    let listed = lists(&server, Resource::Services);
    let requested = requests_for(&server, Resource::Services).len();
    // Only the bookmark tells the Services' watch how far the others moved on.
    let version = server.apply(node("n2"));
    server.bookmark();
    server.end_watches(Resource::Services);
    let is_resumed = |server: &ApiServer| requests_for(server, Resource::Services).len() > requested;
    timeout(LIMIT, server.wait_until(is_resumed)).await.unwrap();
    server.apply(service("later", "10.0.0.5"));
    follower.until(|follower| follower.has("later")).await;
    assert_eq!(lists(&server, Resource::Services), listed, "no second list");
    let resumed = requests_for(&server, Resource::Services).pop().unwrap();
    assert!(
        resumed.contains(&format!("resourceVersion={version}")),
        "{resumed} should be behind the bookmark, {version}"
    );
}

#[tokio::test]
async fn a_broken_watch_goes_on_where_it_was() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    // Whether this still arrives on the old connection is a matter of luck.
    server.apply(service("sooner", "10.0.0.4"));
    server.break_watches(Resource::Services);
    server.apply(service("later", "10.0.0.5"));
    follower.until(|follower| follower.has("sooner") && follower.has("later")).await;
    assert_eq!(lists(&server, Resource::Services), 1);
    assert!(follower.log.iter().all(|line| !line.contains("can't")), "a new watch is enough: {:?}", follower.log);
}

#[tokio::test]
async fn a_server_that_was_away_is_caught_up_with() {
    let mut server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    server.pause();
    server.apply(service("meanwhile", "10.0.0.6"));
    server.delete(Resource::EndpointSlices, "shop", "cart-1");
    follower.until(|follower| follower.log.iter().any(|line| line.contains("can't follow Services"))).await;
    assert!(follower.has("cart-1"), "nothing is taken away while the server is away");
    server.resume().await.unwrap();
    follower.until(|follower| follower.has("meanwhile") && !follower.has("cart-1")).await;
    assert_eq!(lists(&server, Resource::Services), 1, "a watch is enough");
}

#[tokio::test]
async fn a_server_that_comes_late_is_waited_for() {
    let mut server = server_with_one_of_each().await;
    server.pause();
    let mut follower = Follower::start(&server).await;
    follower.until(|follower| follower.log.iter().any(|line| line.contains("can't follow Services"))).await;
    assert!(!follower.is_synced);
    server.resume().await.unwrap();
    follower.synced().await;
    assert!(follower.has("cart") && follower.has("cart-1"));
}

#[tokio::test]
async fn a_forbidden_resource_names_the_rule_and_stops_no_other() {
    let server = server_with_one_of_each().await;
    server.refuse(Resource::EndpointSlices, 403, "endpointslices is forbidden: User \"proxy\" cannot list");
    let mut follower = Follower::start(&server).await;
    follower.until(|follower| follower.has("cart") && follower.log.iter().any(|line| line.contains("403"))).await;
    let line = follower.log.iter().find(|line| line.contains("403")).unwrap();
    assert!(line.starts_with("can't follow EndpointSlices: the API server answers 403"), "{line}");
    assert!(
        line.contains(r#"{apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"]}"#),
        "{line}"
    );
    assert!(!follower.is_synced, "rules without endpoints would cut traffic");
    server.allow(Resource::EndpointSlices);
    follower.synced().await;
    assert!(follower.has("cart-1"));
}

#[tokio::test]
async fn service_cidrs_and_the_node_may_be_out_of_reach() {
    let server = server_with_one_of_each().await;
    server.refuse(Resource::ServiceCidrs, 404, "the server could not find the requested resource");
    server.refuse(Resource::Nodes, 401, "Unauthorized");
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    assert_eq!(follower.names(), ["Service shop/cart", "EndpointSlice shop/cart-1"]);
    let complaints: Vec<_> = follower.log.iter().filter(|line| line.contains("can't")).collect();
    assert_eq!(complaints.len(), 1, "an old cluster is no failure: {complaints:?}");
    assert!(complaints[0].contains("Node") && complaints[0].contains("token"), "{complaints:?}");
}

#[tokio::test]
async fn a_malformed_event_is_skipped() {
    let server = server_with_one_of_each().await;
    server.set_protobuf(false);
    let mut bad = service("bad", "10.0.0.7");
    bad["spec"]["ports"] = json!("none");
    server.apply(bad.clone());
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    assert!(follower.has("cart") && !follower.has("bad"));
    for garbage in [
        "{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"cart\"},\"spec\":3}}\n",
        "{\"type\":\"ADDED\",\n",
        "not json\n\n",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{}}}\n",
        "{\"type\":\"NOVELTY\",\"object\":{\"a\":[1]}}\n",
        "{\"object\":{\"metadata\":{\"name\":\"odd\",\"namespace\":\"shop\"}},\"type\":\"ADDED\"}\n",
    ] {
        server.send_raw(Resource::Services, garbage);
    }
    server.apply(bad);
    server.apply(service("good", "10.0.0.8"));
    follower.until(|follower| follower.has("good") && follower.has("odd")).await;
    assert_eq!(follower.cluster_ip("cart").as_deref(), Some("10.0.0.1"));
    assert!(!follower.has("bad"));
    assert_eq!(lists(&server, Resource::Services), 1, "the stream goes on");
}

#[tokio::test]
async fn what_a_later_list_cannot_read_stays_as_it_was() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    let mut bad = service("cart", "10.0.0.1");
    bad["spec"]["ports"] = json!("none");
    server.apply(bad);
    server.apply(service("good", "10.0.0.8"));
    follower.until(|follower| follower.has("good")).await;
    server.compact();
    server.expire_watches(Resource::Services);
    follower.until(|follower| follower.log.iter().filter(|line| *line == "listed Service").count() == 2).await;
    assert_eq!(follower.cluster_ip("cart").as_deref(), Some("10.0.0.1"));
}

/// From a cache or a proxy that mixes up answers.
#[tokio::test]
async fn what_is_of_another_kind_changes_nothing() {
    for (lists, is_protobuf) in Lists::ALL.into_iter().flat_map(|lists| [(lists, true), (lists, false)]) {
        let server = server_with_one_of_each().await;
        server.set_lists(lists);
        server.set_protobuf(is_protobuf);
        let mut options = options(&server);
        options.timing.list_idle = Duration::from_millis(300);
        let mut follower = Follower::with(options).await;
        follower.synced().await;
        all_watched(&server).await;
        let known = follower.names();
        let mut stranger = node("cart");
        stranger["metadata"]["namespace"] = json!("shop");
        server.send_object(Resource::Services, &stranger);
        server.set_fault(Resource::Services, Some(Fault::OtherKind));
        server.expire_watches(Resource::Services);
        let is_told = |line: &String| line.contains("it is a NodeList instead of a ServiceList");
        follower.until(|follower| follower.log.iter().any(is_told)).await;
        assert_eq!(follower.names(), known);
        assert_eq!(follower.cluster_ip("cart").as_deref(), Some("10.0.0.1"));
        server.set_fault(Resource::Services, None);
        server.apply(service("late", "10.0.0.3"));
        follower.until(|follower| follower.has("late")).await;
        assert_eq!(follower.names().len(), known.len() + 1);
    }
}

/// A server that was restored from a backup, or one of several that is behind.
#[tokio::test]
async fn a_version_that_goes_back_is_followed_and_loses_nothing() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    for round in 1..=5 {
        all_watched(&server).await;
        server.apply(service("cart", &format!("10.0.0.{round}")));
        server.apply(service(&format!("new-{round}"), "10.0.1.1"));
        server.bookmark_at(Resource::Services, 1);
        server.end_watches(Resource::Services);
        server.apply(service(&format!("last-{round}"), "10.0.1.2"));
        follower.until(|follower| follower.has(&format!("last-{round}"))).await;
        assert!(follower.has(&format!("new-{round}")));
        assert_eq!(follower.cluster_ip("cart"), Some(format!("10.0.0.{round}")));
    }
    assert_eq!(lists(&server, Resource::Services), 1);
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    for lists in Lists::ALL {
        let server = server_with_one_of_each().await;
        server.set_lists(lists);
        server.apply_all((0..1203).map(|index| service(&format!("s-{index}"), "10.0.1.1")));
        server.apply_all((0..12).map(|index| slice(&format!("big-{index}"), "s-1", 1000)));
        // Pieces that end anywhere, in the middle of a character too.
        server.set_slow(Some((997, Duration::ZERO)));
        let mut follower = Follower::start(&server).await;
        follower.synced().await;
        let services = follower.objects.keys().filter(|object| object.kind == Kind::Service).count();
        assert_eq!(services, 1204);
        for (reference, object) in &follower.objects {
            if let Content::EndpointSlice(Some((_, slice))) = object
                && reference.name.starts_with("big")
            {
                assert_eq!(slice.endpoints.len(), 1000);
            }
        }
        let pages =
            requests_for(&server, Resource::Services).iter().filter(|request| request.contains("limit=")).count();
        let expected = match lists {
            Lists::PagesFromCache => 2,
            Lists::Streaming => 0,
            Lists::Pages => 3,
        };
        assert_eq!(pages, expected, "{lists:?}");
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_starts_again_and_loses_nothing() {
    for lists in Lists::ALL {
        let server = server_with_one_of_each().await;
        server.set_lists(lists);
        server.apply_all((0..600).map(|index| service(&format!("s-{index}"), "10.0.1.1")));
        server.break_next(Resource::Services, 5000);
        let mut follower = Follower::start(&server).await;
        follower.synced().await;
        assert_eq!(follower.objects.len(), 604);
        assert_eq!((follower.count("list Service"), follower.count("listed Service")), (2, 1), "{:?}", follower.log);
    }
}

#[tokio::test]
async fn a_page_token_that_expires_starts_the_list_again() {
    let server = server_with_one_of_each().await;
    server.set_lists(Lists::Pages);
    server.apply_all((0..600).map(|index| service(&format!("s-{index}"), "10.0.1.1")));
    server.expire_next_page(Resource::Services);
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    assert_eq!((follower.count("list Service"), follower.count("listed Service")), (2, 1), "{:?}", follower.log);
    assert_eq!(follower.objects.keys().filter(|object| object.kind == Kind::Service).count(), 601);
}

#[tokio::test]
async fn a_server_that_never_ends_a_streaming_list_gets_paged_ones() {
    let server = server_with_one_of_each().await;
    server.set_lists(Lists::Streaming);
    server.set_forgets_bookmark(true);
    let mut options = options(&server);
    options.timing.list_idle = Duration::from_millis(300);
    let mut follower = Follower::with(options).await;
    follower.synced().await;
    assert_eq!(follower.objects.len(), 4);
    assert!(requests_for(&server, Resource::Services).iter().any(|request| request.contains("limit=500")));
}

#[tokio::test]
async fn slow_chunks_are_put_together() {
    let server = server_with_one_of_each().await;
    server.set_slow(Some((64, Duration::from_millis(1))));
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    assert_eq!(follower.objects.len(), 4);
    server.apply(slice("cart-1", "cart", 7));
    let seven =
        |object: &Content| matches!(object, Content::EndpointSlice(Some((_, slice))) if slice.endpoints.len() == 7);
    follower.until(|follower| follower.objects.values().any(seven)).await;
}

#[tokio::test]
async fn what_arrives_together_stays_together() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    server.apply_all((0..100).map(|index| service(&format!("s-{index}"), "10.0.1.1")));
    let mut batches = 0;
    while follower.objects.len() < 104 {
        follower.step().await;
        batches += 1;
    }
    assert!(batches <= 3, "100 changes in one write came in {batches} batches");
}

#[tokio::test]
async fn configurations_that_cannot_work_name_the_remedy() {
    let connect = async |kubeconfig: Option<&str>, master: Option<&str>| {
        let options = KubernetesOptions {
            kubeconfig: kubeconfig.map(Into::into),
            master: master.map(ToOwned::to_owned),
            node_name: "n1".to_owned(),
            encoding: Encoding::Protobuf,
            timing: timing(),
            metrics: Metrics::new(),
        };
        KubernetesSource::connect(options).await.err().unwrap()
    };
    let missing = connect(Some("/nonexistent/kubeconfig"), None).await;
    assert!(matches!(missing, ConnectError::Kubeconfig { .. }));
    assert!(missing.to_string().contains("/nonexistent/kubeconfig") && missing.to_string().contains("--kubeconfig"));
    let outside = connect(None, None).await;
    assert!(matches!(outside, ConnectError::InCluster(_)), "{outside}");
    assert!(outside.to_string().contains("give --kubeconfig"));
    let master = connect(None, Some("https://[oops")).await;
    assert!(matches!(master, ConnectError::Master { .. }), "{master}");

    let server = ApiServer::start().await.unwrap();
    let mut text = std::fs::read_to_string(server.kubeconfig()).unwrap();
    text = text
        .replace("http://", "https://")
        .replace("cluster: {server", "cluster: {certificate-authority: /nonexistent/ca.crt, server");
    let path = server.kubeconfig().with_extension("bad");
    std::fs::write(&path, text).unwrap();
    let bad_ca = connect(Some(path.to_str().unwrap()), None).await;
    std::fs::remove_file(&path).unwrap();
    assert!(bad_ca.to_string().contains("/nonexistent/ca.crt"), "{bad_ca}");
}

#[tokio::test]
async fn master_overrides_the_kubeconfig() {
    let server = server_with_one_of_each().await;
    let mut elsewhere = ApiServer::start().await.unwrap();
    elsewhere.pause();
    let mut options = options(&elsewhere);
    options.master = Some(server.url().replace("http://", ""));
    let mut follower = Follower::with(options).await;
    follower.synced().await;
    assert!(follower.has("cart"));
}

/// Not a timed test: it proves that nothing is lost at this size. With
/// `--nocapture` it tells how long it took.
#[tokio::test]
async fn many_services_and_slices() {
    const COUNT: usize = 3000;
    for lists in Lists::ALL {
        let server = server_with_one_of_each().await;
        server.set_lists(lists);
        server.apply_all((0..COUNT).flat_map(|index| {
            let name = format!("s-{index}");
            [service(&name, "10.0.1.1"), slice(&name, &name, 5)]
        }));
        let started = std::time::Instant::now();
        let mut follower = Follower::start(&server).await;
        follower.synced().await;
        assert_eq!(follower.objects.len(), 2 * COUNT + 4);
        let mut line = String::new();
        write!(line, "{COUNT} Services and slices, {lists:?}: {:?}", started.elapsed()).unwrap();
        #[allow(clippy::print_stdout, reason = "printed for a reader of the test's output")]
        {
            println!("{line}");
        }
    }
}
