//! From Kubernetes objects to a rule set, printed as nft would list it.
//!
//! `cargo run -p vmap-proxy-compiler --example compile`

use serde_json::{from_value, json};
use vmap_proxy_compiler::model::{Object, ProxyConfig};
use vmap_proxy_compiler::{compile, render};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = json!({
        "kind": "Service",
        "metadata": { "namespace": "shop", "name": "cart" },
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.0.10",
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
        },
    });
    let slice = json!({
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop", "name": "cart-1", "labels": { "kubernetes.io/service-name": "cart" },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.244.1.7"] }, { "addresses": ["10.244.2.9"] }],
        "ports": [{ "name": "http", "port": 8080 }],
    });
    // A field that cannot be used costs its object and nothing else.
    let broken = json!({
        "kind": "Service",
        "metadata": { "namespace": "shop", "name": "broken" },
        "spec": { "clusterIP": "10.96.0", "ports": [{ "port": 80 }] },
    });
    let objects: Vec<Object> = [service, slice, broken].into_iter().map(from_value).collect::<Result<_, _>>()?;

    let config = ProxyConfig { node_name: "node-1".to_owned(), ..ProxyConfig::default() };
    let compilation = compile(config, objects);
    for problem in &compilation.problems {
        eprintln!("{problem}");
    }
    // `nft -f` can load this text.
    std::io::Write::write_all(&mut std::io::stdout(), render::ruleset(&compilation.ruleset).as_bytes())?;
    Ok(())
}
