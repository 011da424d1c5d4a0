//! Plain validated types, and the store of what the sources told us.
//!
//! * [`objects`]: the parts of Kubernetes objects that a proxy reads;
//! * [`types`]: validated types, which need no further checks;
//! * [`family`]: the two address families, and one value for each;
//! * [`config`]: what the proxy is configured to do on this node;
//! * [`convert`]: from objects to types: what cannot be programmed is reported
//!   by name and left out, never fatal;
//! * [`checked`]: a change of one object, converted;
//! * [`store`]: all Services and slices, and which of them changed.

pub mod checked;
pub mod config;
pub mod convert;
pub mod family;
pub mod objects;
pub mod store;
pub mod types;

pub use config::{NodeInfo, ProxyConfig};
pub use family::{Family, PerFamily};
pub use objects::{Change, Object, ObjectRef};

pub use store::Store;
pub use types::{Endpoint, Protocol};
