//! The transactions of one change: a Service gets a fourth endpoint.
//!
//! `cargo run -p vmap-proxy-compiler --example plan`

use std::io::Write;

use serde_json::{from_value, json};
use vmap_proxy_compiler::model::{Change, Object, PerFamily, ProxyConfig, Store};
use vmap_proxy_compiler::plan::Planner;

fn slice(endpoints: u8) -> serde_json::Result<Object> {
    let endpoints: Vec<_> = (1..=endpoints).map(|pod| json!({ "addresses": [format!("10.244.1.{pod}")] })).collect();
    from_value(json!({
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop", "name": "cart-1", "labels": { "kubernetes.io/service-name": "cart" },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080 }],
    }))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service: Object = from_value(json!({
        "kind": "Service",
        "metadata": { "namespace": "shop", "name": "cart" },
        "spec": { "clusterIP": "10.96.0.10", "ports": [{ "name": "http", "port": 80 }] },
    }))?;
    let mut store = Store::new("node-1");
    store.apply(Change::Apply(service));
    store.apply(Change::Apply(slice(3)?));

    let mut out = std::io::stdout();
    let mut planner = Planner::new(ProxyConfig::default(), store.node());
    // A kernel that holds nothing gets everything: tables, maps, chains, elements.
    let first = planner.resync(&mut store, PerFamily::default());
    writeln!(out, "An empty kernel takes {} transactions.\n", first.count())?;

    store.apply(Change::Apply(slice(4)?));
    while let Some(plan) = planner.update(&mut store) {
        for transaction in &plan.transactions {
            writeln!(out, "{transaction}")?;
        }
    }
    Ok(())
}
