//! Plain validated types, and the store of the state from the sources.
//!
//! * [`objects`]: the parts of Kubernetes objects that a proxy reads;
//! * [`types`]: validated types, which need no further checks;
//! * [`slice`](mod@slice): EndpointSlices of these types, packed;
//! * `endpoint_list`: the endpoints of a compiled Service, packed;
//! * [`family`]: the two address families, and one value for each;
//! * [`config`]: the configuration of the proxy on this node;
//! * [`convert`]: converts objects to types; unusable parts are reported by
//!   name and left out, and are never fatal;
//! * [`checked`]: a change of one object, converted;
//! * [`store`]: all Services and slices, and which of them changed; equal values are
//!   `interned` there.

pub mod checked;
pub mod config;
pub mod convert;
pub mod digest;
mod endpoint_list;
pub mod family;
mod interned;
pub mod objects;
pub mod slice;
pub mod store;
pub mod types;

pub use config::{NodeInfo, ProxyConfig};
pub use endpoint_list::EndpointList;
pub use family::{Family, PerFamily};
pub use objects::{Change, Object, ObjectRef};

pub use store::Store;
pub use types::{Endpoint, Protocol};
