//! A double of the Kubernetes API server: real HTTP on 127.0.0.1, objects in
//! memory, and every kind of trouble on request.
//!
//! It speaks list (`limit`, `continue`), watch (`resourceVersion`, bookmarks,
//! `sendInitialEvents`), both in JSON and in [`protobuf`], the label and field
//! selectors that a proxy uses, and accepts events. A [`Front`] before it speaks
//! TLS or is a proxy. It runs on a thread of its own, in the network namespace of
//! the thread that starts it.

pub mod certificates;
mod encoding;
mod faults;
mod front;
mod http;
mod lists;
mod objects;
pub mod protobuf;
mod respond;
mod server;

pub use self::faults::Fault;
pub use self::front::{Front, Role};
pub use self::lists::Lists;
pub use self::objects::Resource;
pub use self::server::ApiServer;
