use serde_json::{Value, from_value, json};
use vmap_proxy_compiler::model::{Change, PerFamily};

use super::*;

fn service(name: &str, address: &str, policy: &str) -> Value {
    json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "NodePort", "clusterIP": address, "clusterIPs": [address], "externalTrafficPolicy": policy,
                 "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]},
    })
}

fn slice(service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": service, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn store(objects: &[Value]) -> Store {
    let mut store = Store::new("n1");
    for object in objects {
        store.apply(Change::Apply(from_value(object.clone()).unwrap()));
    }
    store
}

/// The words and the transactions from one state to another.
fn plan(before: &[Value], after: &[Value]) -> (Vec<String>, Vec<Transaction>) {
    let config = ProxyConfig { node_name: "n1".to_owned(), ..ProxyConfig::default() };
    let mut programmed = store(before);
    let earlier = vmap_proxy_compiler::program(config.clone(), &mut programmed);
    let mut store = store(after);
    assume_addresses(&mut store);
    let mut planner = Planner::new(config, store.node());
    let found = preview::of_planner(&earlier, &planner, &store);
    let mut transactions = Vec::new();
    let surplus =
        preview::transactions(None, &mut planner, &mut store, found, |transaction| transactions.push(transaction));
    assert_eq!(surplus.unwrap(), 0);
    let words =
        changes_of(&transactions).into_iter().map(|(name, changes)| format!("{name}: {}", changes.words().join("; ")));
    (words.collect(), transactions)
}

#[test]
fn nothing_changes_between_a_state_and_itself() {
    let state = [service("web", "10.96.0.10", "Cluster"), slice("web", &["10.244.1.5", "10.244.1.6"])];
    let (words, transactions) = plan(&state, &state);
    assert_eq!((words.len(), transactions.len()), (0, 0), "{words:?}");
}

#[test]
fn changes_are_told_by_service() {
    let before = [service("web", "10.96.0.10", "Cluster"), slice("web", &["10.244.1.5", "10.244.1.6"])];
    let endpoint = [before[0].clone(), slice("web", &["10.244.1.5", "10.244.2.9"])];
    let (words, transactions) = plan(&before, &endpoint);
    assert_eq!(words, ["shop/web: gains 10.244.2.9:8080; loses 10.244.1.6:8080"]);
    assert_eq!(transactions.len(), 1);
    let (words, _) = plan(&before, &before[..1]);
    assert!(words[0].contains("no longer serves 10.96.0.10 port 80/TCP"), "{words:?}");
    assert!(words[0].contains("refuses packets to 10.96.0.10 port 80/TCP"), "{words:?}");
    let (words, _) = plan(&before, &[service("web", "10.96.0.10", "Local"), before[1].clone()]);
    assert!(words[0].contains("follows the Local policy at node port 30080/TCP"), "{words:?}");
    let (words, _) = plan(&[], &before);
    assert!(
        words[0].contains("serves 10.96.0.10 port 80/TCP") && words[0].contains("gains 10.244.1.5:8080"),
        "{words:?}"
    );
}

#[test]
fn a_prediction_grows_with_the_elements_and_the_maps_that_are_walked() {
    let config = ProxyConfig { node_name: "n1".to_owned(), ..ProxyConfig::default() };
    let mut store = store(&[service("web", "10.96.0.10", "Cluster"), slice("web", &["10.244.1.5"])]);
    let mut planner = Planner::new(config, store.node());
    let transactions: Vec<Transaction> = planner.resync(&mut store, PerFamily::default()).collect();
    let sizes = Sizes::of(&planner);
    let forecasts: Vec<Forecast> = transactions.iter().map(|transaction| sizes.forecast(transaction)).collect();
    assert!(forecasts.iter().map(|forecast| forecast.added).sum::<usize>() > 3);
    assert!(forecasts.iter().all(|forecast| {
        let [low, high] = forecast.lock_hold_microseconds;
        low < high && low >= 10
    }));
    let text = forecasts[0].to_string();
    assert!(text.contains("predicted"), "{text}");
}

#[test]
fn a_service_that_goes_is_named_with_and_without_a_name_of_its_port() {
    for port_name in ["http", ""] {
        let mut state = [service("web", "10.96.0.10", "Cluster"), slice("web", &["10.244.1.5"])];
        state[0]["spec"]["ports"][0]["name"] = port_name.into();
        state[1]["ports"][0]["name"] = port_name.into();
        let (words, _) = plan(&state, &[]);
        let [words] = words.as_slice() else { panic!("{words:?}") };
        assert!(words.starts_with("shop/web: no longer serves 10.96.0.10 port 80/TCP"), "{words}");
    }
}
