//! This node's own addresses, and when they change.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use futures::{FutureExt, StreamExt};
use nlink::netlink::{Connection, NetworkEvent, Route, RtnetlinkGroup};

use super::error::NetlinkError;

/// All addresses of all interfaces in the network namespace of the calling
/// thread, loopback and link-local ones included, sorted. Of a point-to-point
/// interface our end, not the peer's.
///
/// # Errors
///
/// [`NetlinkError::News`] if the request to the kernel fails.
pub async fn local_addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    let listed = Connection::<Route>::new()?.get_addresses().await?;
    let mut addresses: Vec<IpAddr> = listed.iter().filter_map(|one| one.primary_address().copied()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// The address of each family that this machine uses by default: the source
/// address of its default route, as the kubelet chooses its own; without such a
/// route the first one that is neither loopback nor link-local. A family that
/// has none is left out.
///
/// # Errors
///
/// [`NetlinkError::News`] if the request to the kernel fails.
pub async fn default_addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    let all = local_addresses().await?;
    let first = |ipv4: bool| all.iter().copied().find(|address| address.is_ipv4() == ipv4 && is_usable(*address));
    let routed = |own: IpAddr, far: IpAddr| routed_source(own, far).filter(|address| is_usable(*address));
    // Addresses of documentation (RFC 5737, RFC 3849), to which there are no specific routes.
    let ipv4 = routed(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(203, 0, 113, 1).into());
    let ipv6 = routed(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    Ok(ipv4.or_else(|| first(true)).into_iter().chain(ipv6.or_else(|| first(false))).collect())
}

fn is_usable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !link_local
}

/// The source address that the kernel would choose. Nothing is sent: connecting
/// a UDP socket only looks up the route.
fn routed_source(own: IpAddr, far: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(own, 0)).ok()?;
    socket.connect(SocketAddr::new(far, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Reports when addresses come and go, in the network namespace of the thread
/// that opened it.
pub struct AddressWatcher {
    route: Connection<Route>,
}

impl std::fmt::Debug for AddressWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressWatcher").finish_non_exhaustive()
    }
}

impl AddressWatcher {
    /// Starts to watch: open it first, then call [`local_addresses`].
    ///
    /// # Errors
    ///
    /// [`NetlinkError::News`], if the socket can't be made.
    pub fn open() -> Result<AddressWatcher, NetlinkError> {
        let route = Connection::<Route>::new()?;
        route.subscribe(&[RtnetlinkGroup::Ipv4Addr, RtnetlinkGroup::Ipv6Addr])?;
        Ok(AddressWatcher { route })
    }

    /// Waits for an address to come or go, or for the news of that to be lost.
    /// Several changes may be reported as one. May be dropped and called again.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::News`], if the socket fails.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        let mut events = self.route.events().await;
        loop {
            match events.next().await {
                Some(Ok(NetworkEvent::NewAddress(_) | NetworkEvent::DelAddress(_))) => break,
                Some(Ok(_)) => {}
                Some(Err(error)) if error.is_no_buffer_space() => break,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(nlink::Error::from(io::Error::from(io::ErrorKind::UnexpectedEof)).into()),
            }
        }
        // Notifications that arrived meanwhile belong to the same change.
        while let Some(Some(Ok(_))) = events.next().now_or_never() {}
        Ok(())
    }
}
