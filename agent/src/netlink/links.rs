//! This node's interfaces.

use nlink::netlink::{Connection, Route};

use super::error::NetlinkError;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is a bridge.
    pub is_bridge: bool,
}

/// The interfaces in the network namespace of the calling thread, in the
/// kernel's order.
///
/// # Errors
///
/// [`NetlinkError::News`] if the request to the kernel fails.
pub async fn interfaces() -> Result<Vec<Interface>, NetlinkError> {
    let links = Connection::<Route>::new()?.get_links().await?;
    let interface =
        |name: &str, kind: Option<&str>| Interface { name: name.to_owned(), is_bridge: kind == Some("bridge") };
    Ok(links.iter().filter_map(|link| Some(interface(link.name()?, link.kind()))).collect())
}
