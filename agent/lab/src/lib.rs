//! A laptop-sized cluster of network namespaces: client, node, pods, second node.
//!
//! A [`Lab`] is one *node* namespace, where the proxy under study runs, and any number of *hosts*, each a
//! separate namespace joined to the node by a veth pair. A host carries any addresses (one pod, all pods of
//! another node, every external client), and every packet it sends crosses the node, even to another address
//! of the same host; so what the node's rule set does is always seen.
//!
//! ```text
//!   client (198.51.100.23) ---- eth0 +------+ vetha ---- pod (10.244.1.5)
//!                                    | node |
//!   node-b (192.0.2.12,    ---- eth1 +------+ vethb ---- pod (10.244.1.6)
//!           10.244.2.5)         192.0.2.11
//! ```
//!
//! [`Lab::listen`] starts echo servers that report their own address and the source address that they see,
//! [`Lab::probe_all`] opens new connections to them and distinguishes an answer, a TCP reset, an ICMP error and
//! silence apart. [`Lab::open_flow`] keeps one connection open. [`Process`] runs a program in a namespace and follows
//! its log; [`http`] asks its servers. [`PodResolver`] looks names up as a pod does.
//!
//! # Privileges
//!
//! [`enter_user_namespace`] must be called before any thread exists; with it an ordinary user is root in
//! separate namespaces, if the kernel allows unprivileged user namespaces.
//!
//! # Cleanup after a crash
//!
//! Every namespace is anonymous: it has no file below `/run/netns` and lives only as long as a file
//! descriptor, socket or thread of this process refers to it. When the process ends, however it ends, the kernel
//! takes namespaces, veth pairs, addresses and rule sets away. There is nothing to clean up, and labs of several
//! processes or threads can't clash.

mod error;
mod flow;
pub mod http;
mod links;
mod namespace;
mod pace;
mod probe;
mod process;
mod resolver;
mod sctp;
mod server;
mod topology;

pub use error::LabError;
pub use flow::Flow;
pub use links::has_ipv6;
pub use namespace::{NetNs, enter_user_namespace};
pub use pace::patient;
pub use probe::{Probe, ProbeResult, Transport};
pub use process::{NoLine, Process};
pub use resolver::{PodResolver, ResolveError};
pub use sctp::METHOD as SCTP_METHOD;
pub use server::{EchoServer, Identity, NotAnIdentity};
pub use topology::{HostSpec, Lab, LabBuilder};
