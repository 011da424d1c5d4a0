//! This node's own addresses, and when they change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nlink::netlink::{NetlinkSocket, Protocol, rtnetlink_groups};

use super::error::NetlinkError;
use super::wire::{Answer, Attributes, Messages, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Writer};

// `include/uapi/linux/rtnetlink.h`, `if_addr.h`.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
/// Of a point-to-point interface, our end; `IFA_ADDRESS` is the peer's.
const IFA_LOCAL: u16 = 2;
/// `sizeof(struct ifaddrmsg)`: family, prefix length, flags, scope, index.
const IFADDRMSG: usize = 8;
/// How often a listing is tried again that changed meanwhile.
const ATTEMPTS: u32 = 20;

/// All addresses of all interfaces in the network namespace of the calling
/// thread, loopback and link-local ones included, sorted.
///
/// # Errors
///
/// [`NetlinkError`], if the kernel can't be asked.
pub async fn local_addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    let socket = NetlinkSocket::new(Protocol::Route)?;
    for _ in 0..ATTEMPTS {
        if let Some(mut addresses) = list(&socket).await? {
            addresses.sort();
            addresses.dedup();
            return Ok(addresses);
        }
    }
    Err(NetlinkError::Interrupted { attempts: ATTEMPTS })
}

/// The address of each family that this machine uses by default: the source
/// address of its default route, as the kubelet chooses its own; without such a
/// route the first one that is neither loopback nor link-local. A family that
/// has none is left out.
///
/// # Errors
///
/// [`NetlinkError`], if the kernel can't be asked.
pub async fn default_addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    let all = local_addresses().await?;
    let first = |ipv4: bool| all.iter().copied().find(|address| address.is_ipv4() == ipv4 && is_usable(*address));
    let routed = |own: IpAddr, far: IpAddr| routed_source(own, far).filter(|address| is_usable(*address));
    // Addresses of documentation (RFC 5737, RFC 3849): nobody has a route of its own to them.
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

/// Tells when addresses come and go, in the network namespace of the thread
/// that opened it.
pub struct AddressWatcher {
    socket: NetlinkSocket,
}

impl std::fmt::Debug for AddressWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressWatcher").finish_non_exhaustive()
    }
}

impl AddressWatcher {
    /// Starts to watch: open it first, then ask for [`local_addresses`].
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Socket`], if the socket can't be made.
    pub fn open() -> Result<AddressWatcher, NetlinkError> {
        let socket = NetlinkSocket::new(Protocol::Route)?;
        socket.add_membership(rtnetlink_groups::RTNLGRP_IPV4_IFADDR)?;
        socket.add_membership(rtnetlink_groups::RTNLGRP_IPV6_IFADDR)?;
        Ok(AddressWatcher { socket })
    }

    /// Waits for an address to come or go, or for the news of that to be lost.
    /// Several changes may be reported as one. May be dropped and called again.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Socket`], if the socket fails.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        let is_change = |datagram: &[u8]| Messages(datagram).any(|m| matches!(m.kind, RTM_NEWADDR | RTM_DELADDR));
        loop {
            match self.socket.recv_msg().await {
                Ok(datagram) if is_change(&datagram) => break,
                Ok(_) => {}
                Err(error) if error.is_no_buffer_space() => break,
                Err(error) => return Err(error.into()),
            }
        }
        // What has come in the meantime is part of the same news.
        while matches!(self.socket.try_recv_msg(), Ok(Some(_))) {}
        Ok(())
    }
}

/// One listing; `None` if the addresses changed meanwhile.
async fn list(socket: &NetlinkSocket) -> Result<Option<Vec<IpAddr>>, NetlinkError> {
    let sequence = socket.next_seq();
    let mut writer = Writer::default();
    // The header's four bytes and the index make an ifaddrmsg of zeros: every
    // family, every interface.
    let open = writer.begin_message(RTM_GETADDR, NLM_F_DUMP, sequence, 0, 0);
    writer.raw(&[0; 4]);
    writer.end_message(open);
    socket.send(writer.bytes()).await?;
    let mut addresses = Vec::new();
    let mut interrupted = false;
    loop {
        let datagram = socket.recv_msg().await?;
        for message in Messages(&datagram).filter(|message| message.sequence == sequence) {
            interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    return match Answer::parse(&message).map_or(0, |answer| answer.errno) {
                        _ if interrupted => Ok(None),
                        0 => Ok(Some(addresses)),
                        libc::EINTR => Ok(None),
                        errno => Err(NetlinkError::from_errno("addresses of this node", errno)),
                    };
                }
                RTM_NEWADDR => addresses.extend(message.payload.get(IFADDRMSG..).and_then(own_address)),
                _ => {}
            }
        }
    }
}

fn own_address(attributes: &[u8]) -> Option<IpAddr> {
    let attributes = Attributes(attributes);
    let bytes = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?.payload;
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
