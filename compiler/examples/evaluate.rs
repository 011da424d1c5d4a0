//! One packet through a compiled rule set, without a kernel: where does it go,
//! and by which rules?
//!
//! `cargo run -p vmap-proxy-compiler --example evaluate`

use std::io::Write;

use serde_json::{from_value, json};
use vmap_proxy_compiler::compile;
use vmap_proxy_compiler::evaluate::{Evaluator, Host, Packet};
use vmap_proxy_compiler::model::{Object, Protocol, ProxyConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let objects = [
        json!({
            "kind": "Service",
            "metadata": { "namespace": "shop", "name": "cart" },
            "spec": { "clusterIP": "10.96.0.10", "ports": [{ "name": "http", "port": 80 }] },
        }),
        json!({
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop", "name": "cart-1", "labels": { "kubernetes.io/service-name": "cart" },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.244.1.7"] }, { "addresses": ["10.244.2.9"] }],
            "ports": [{ "name": "http", "port": 8080 }],
        }),
    ];
    let objects: Vec<Object> = objects.into_iter().map(from_value).collect::<Result<_, _>>()?;
    let compilation = compile(ProxyConfig::default(), objects);
    let evaluator = Evaluator::new(&compilation.ruleset, Host::default());

    let mut out = std::io::stdout();
    for port in [80, 81] {
        let packet = Packet {
            source: "10.244.1.9".parse()?,
            destination: "10.96.0.10".parse()?,
            protocol: Protocol::Tcp,
            port,
            input_interface: Some("eth0".to_owned()),
        };
        let outcome = evaluator.evaluate(&packet);
        writeln!(out, "{} to {}:{}: {:?}", packet.source, packet.destination, packet.port, outcome.verdict)?;
    }
    Ok(())
}
