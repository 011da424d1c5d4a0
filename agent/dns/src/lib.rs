//! A DNS server for the Services and pods of a cluster, on every node.
//!
//! [`DnsServer::start`] starts a thread that listens, answers names of the
//! cluster from a [`vmap_proxy_dns_zone::Zone`], and forwards all others. The
//! caller sends it the changes of objects, and never waits for it: a failure here
//! costs names, and delays no rule.
//!
//! * [`options`]: addresses, upstream servers, clients;
//! * `server`: the thread, and the changes it applies;
//! * `udp`, `tcp`: datagrams and connections, bounded;
//! * `respond`: from the bytes of a question to an answer, or to a question for
//!   an upstream server;
//! * `hot`: answers that were given before;
//! * `message`: the encoding of answers, and their truncation;
//! * `forward`: upstream servers and the cache; `upstream`: which servers;
//! * `take_over`: the cluster IPs of another DNS Service;
//! * [`metrics`]: CoreDNS' metrics.
#![forbid(unsafe_code)]

mod clients;
mod forward;
mod hot;
mod message;
pub mod metrics;
pub mod options;
mod replies;
mod respond;
mod server;
mod take_over;
mod tcp;
mod udp;
mod upstream;

pub use clients::Clients;
pub use metrics::DnsMetrics;
pub use options::{Options, Upstream};
pub use respond::Answerer;
pub use server::{DnsServer, Listening, StartError, THREAD, Update};
