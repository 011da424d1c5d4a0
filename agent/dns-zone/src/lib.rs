//! The DNS zone of a Kubernetes cluster: Services and EndpointSlices in, typed
//! answers out. No I/O, no async, no clock, no randomness, no DNS messages.
//!
//! The schema is that of <https://github.com/kubernetes/dns/blob/master/docs/specification.md>
//! (1.1.0). A [`Zone`] follows the objects one by one:
//!
//! * [`NameContent`] is the part of an object that names need, checked once where
//!   the object is read;
//! * [`Zone::apply`] costs the changed Service at most, and never reads another;
//! * [`Zone::answer`] answers one question from the current state of all slices
//!   of a Service. An endpoint that stays in its slice is therefore in every
//!   answer, whatever happens to the other slices.
//!
//! ```
//! use serde_json::{from_value, json};
//! use vmap_proxy_compiler::model::{Change, Object};
//! use vmap_proxy_dns_zone::{Answer, NameContent, QuestionType, Records, Zone, ZoneConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut zone = Zone::new(ZoneConfig::default());
//! let service = Object::Service(from_value(json!({
//!     "metadata": { "namespace": "shop", "name": "cart" },
//!     "spec": { "clusterIP": "10.96.0.10", "ports": [{ "name": "http", "port": 80 }] },
//! }))?);
//! let object = service.reference();
//! let (content, problems) = NameContent::read(&Change::Apply(service));
//! assert!(problems.is_empty());
//! zone.apply(&object, content);
//! zone.set_complete();
//!
//! let labels: Vec<&[u8]> = "Cart.shop.svc.cluster.local".split('.').map(str::as_bytes).collect();
//! let Answer::Records(Records::A(addresses)) = zone.answer(&labels, QuestionType::A) else { panic!() };
//! assert_eq!(addresses.first().map(ToString::to_string).as_deref(), Some("10.96.0.10"));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod answer;
mod content;
mod entry;
pub mod label;
pub mod reverse;
mod zone;

pub use answer::{Answer, QuestionType, Records, Target};
pub use content::{EndpointNames, NameContent, PortName, ServiceNames, SliceNames};
pub use zone::{InvalidDomain, Zone, ZoneConfig};
