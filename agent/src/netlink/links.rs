//! This node's interfaces, and when they change.

use std::io;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use nix::net::if_::if_nametoindex;
use nlink::netlink::{Connection, NetworkEvent, OwnedEventStream, Route, RtnetlinkGroup};

use super::InterfaceNames;
use super::error::NetlinkError;

/// Maximum number of listings until one is undisturbed, and the time in between.
const LISTINGS: u32 = 20;
const BETWEEN_LISTINGS: Duration = Duration::from_millis(50);

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

/// The names of the interfaces but the loopback one, in the network namespace of
/// the calling thread.
///
/// # Errors
///
/// [`NetlinkError::News`] if the request to the kernel fails.
pub async fn interface_names() -> Result<InterfaceNames, NetlinkError> {
    listed(&Connection::<Route>::new()?).await
}

async fn listed(requests: &Connection<Route>) -> Result<InterfaceNames, NetlinkError> {
    let mut attempts = 1;
    let links = loop {
        match requests.get_links().await {
            // The library has tried several times, too.
            Err(error) if error.is_dump_interrupted() && attempts < LISTINGS => {
                attempts += 1;
                tokio::time::sleep(BETWEEN_LISTINGS).await;
            }
            done => break done?,
        }
    };
    let named = links.iter().filter(|link| !link.is_loopback());
    Ok(named.filter_map(|link| Some((link.ifindex(), link.name()?.to_owned()))).collect())
}

/// Follows the names of the interfaces but the loopback one, in the network
/// namespace of the thread that uses it.
pub struct LinkWatcher {
    /// Kept as a whole: it may have read more than it has handed out.
    events: OwnedEventStream<Route>,
    requests: Connection<Route>,
    present: InterfaceNames,
    /// Whether news were lost.
    lost: bool,
}

impl std::fmt::Debug for LinkWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkWatcher").field("present", &self.present).finish_non_exhaustive()
    }
}

impl LinkWatcher {
    /// Lists the interfaces, and follows them from now on.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::News`], if a socket can't be made, or interfaces come and
    /// go so fast that no listing succeeds.
    pub async fn open() -> Result<LinkWatcher, NetlinkError> {
        let events = Connection::<Route>::new()?;
        events.subscribe(&[RtnetlinkGroup::Link])?;
        let requests = Connection::<Route>::new()?;
        let present = listed(&requests).await?;
        Ok(LinkWatcher { events: events.into_events().await, requests, present, lost: false })
    }

    /// The interfaces, as of the last news that were taken.
    pub fn present(&self) -> &InterfaceNames {
        &self.present
    }

    /// Waits for news that change the interfaces, and takes them, or for their
    /// loss; then call [`Self::catch_up`]. May be dropped and called again.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::News`], if the socket fails.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        loop {
            let event = self.events.next().await;
            let event =
                event.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof)).map_err(nlink::Error::from)?;
            if self.take(event)? {
                return Ok(());
            }
        }
    }

    /// Takes the news that have arrived, and waits for no others. Lists the
    /// interfaces if some were lost.
    ///
    /// # Errors
    ///
    /// As [`Self::changed`].
    pub async fn catch_up(&mut self) -> Result<(), NetlinkError> {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.take(event)?;
        }
        if self.lost {
            self.present = listed(&self.requests).await?;
            self.lost = false;
        }
        Ok(())
    }

    /// Takes one piece of news. Returns whether it changed the interfaces.
    fn take(&mut self, event: nlink::Result<NetworkEvent>) -> Result<bool, NetlinkError> {
        match event {
            Ok(NetworkEvent::NewLink(link)) if !link.is_loopback() => {
                let Some(name) = link.name() else { return Ok(false) };
                let before = self.present.insert(link.ifindex(), name.to_owned());
                Ok(before.as_deref() != Some(name))
            }
            // One that only left a bridge is still there.
            Ok(NetworkEvent::DelLink(link)) => {
                let index = link.name().and_then(|name| if_nametoindex(name).ok());
                Ok(index != Some(link.ifindex()) && self.present.remove(&link.ifindex()).is_some())
            }
            Ok(_) => Ok(false),
            Err(error) if error.is_no_buffer_space() => {
                self.lost = true;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }
}
