//! The pure half of vmap-proxy: Kubernetes objects in, an nftables rule set out.
//!
//! No I/O, no async, no clock, no randomness. The modules depend on each other
//! in one direction only (`tests/structure.rs` holds it):
//!
//! ```text
//! model ─┬─> select ──────> limits ──┐
//!        └─> ruleset ─┬─────┘        ├──> plan ──> compile
//!                     └─> render ────┘
//!                           └─────────> evaluate ──> explain (with select, limits, plan, words)
//! ```
//!
//! * [`model`]: checked types made from Kubernetes objects, and the store of them;
//! * [`select`]: which endpoints serve a service port on this node;
//! * [`limits`]: the maximum number of elements of one Service;
//! * [`ruleset`]: the typed rule set: a fixed skeleton of chains and maps, and
//!   the elements of each Service;
//! * [`plan`]: ordered transactions from the programmed state to the desired one;
//! * [`compile`](mod@compile): all of it in one call;
//! * [`render`]: the rule set as nft text and as JSON;
//! * [`evaluate`]: one packet through the rule set;
//! * [`explain`]: why a packet goes where it goes: the objects and fields behind it;
//! * [`words`]: numbers of things in messages.
//!
//! The law of the project holds here: the number of tables, chains, rules,
//! sets and maps never depends on the number of Services or endpoints; only
//! map and set *elements* grow. (Two bounded families of chains follow the
//! distinct endpoint counts and affinity timeouts in use: [`ruleset::chains`].)
//!
//! # Example
//!
//! A Service with one endpoint: its rule set, one packet, and the transactions
//! when a second endpoint comes. There are more in `examples/`.
//!
//! ```
//! use vmap_proxy_compiler::plan::Planner;
//! use vmap_proxy_compiler::evaluate::{Evaluator, Host, Packet, Verdict};
//! use vmap_proxy_compiler::model::{Change, Object, PerFamily, Protocol, ProxyConfig, Store};
//! use serde_json::{from_value, json};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = Object::Service(from_value(json!({
//!     "metadata": { "namespace": "shop", "name": "cart" },
//!     "spec": { "clusterIP": "10.96.0.10", "ports": [{ "name": "http", "port": 80 }] },
//! }))?);
//! let slice = |addresses: &[&str]| -> serde_json::Result<Object> {
//!     let endpoints: Vec<_> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
//!     Ok(Object::EndpointSlice(from_value(json!({
//!         "metadata": {
//!             "namespace": "shop", "name": "cart-1", "labels": { "kubernetes.io/service-name": "cart" },
//!         },
//!         "addressType": "IPv4",
//!         "endpoints": endpoints,
//!         "ports": [{ "name": "http", "port": 8080 }],
//!     }))?))
//! };
//!
//! // Objects to a rule set, and the rule set to nft text.
//! let objects = [service.clone(), slice(&["10.244.1.7"])?];
//! let compiled = vmap_proxy_compiler::compile(ProxyConfig::default(), objects.clone());
//! let text = vmap_proxy_compiler::render::ruleset(&compiled.ruleset);
//! assert!(text.contains("10.96.0.10 . tcp . 80 . 0 : 10.244.1.7 . 8080"));
//!
//! // One packet through the rules.
//! let packet = Packet {
//!     source: "10.244.1.9".parse()?,
//!     destination: "10.96.0.10".parse()?,
//!     protocol: Protocol::Tcp,
//!     port: 80,
//!     input_interface: Some("eth0".to_owned()),
//! };
//! let outcome = Evaluator::new(&compiled.ruleset, Host::default()).evaluate(&packet);
//! let Verdict::Dnat { endpoints } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
//! assert_eq!(endpoints.first().map(ToString::to_string).as_deref(), Some("10.244.1.7:8080"));
//!
//! // One change: its plan touches the elements of this Service alone.
//! let mut store = Store::new("node-1");
//! for object in objects {
//!     store.apply(Change::Apply(object));
//! }
//! let mut planner = Planner::new(ProxyConfig::default(), store.node());
//! planner.resync(&mut store, PerFamily::default()).for_each(drop);
//!
//! store.apply(Change::Apply(slice(&["10.244.1.7", "10.244.2.9"])?));
//! let plan = planner.update(&mut store).ok_or("nothing changed")?;
//! let commands: String = plan.transactions.iter().map(ToString::to_string).collect();
//! assert!(commands.contains("add element ip vmap-proxy endpoints { 10.96.0.10 . tcp . 80 . 1 : 10.244.2.9 . 8080 }"));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod compile;
pub mod evaluate;
pub mod explain;
pub mod limits;
pub mod model;
pub mod plan;
pub mod render;
pub mod ruleset;
pub mod select;
pub mod words;

pub use compile::{Compilation, compile, compile_checked, program};
