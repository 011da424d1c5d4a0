//! Links, addresses, routes and neighbours of a lab, over route netlink.
//!
//! Gateways have fixed link-layer addresses and permanent neighbour entries: no address resolution and no
//! duplicate address detection runs, so a lab is ready as soon as it is built.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use nlink::netlink::link::{BridgeLink, BridgePortConfig, VethLink};
use nlink::netlink::neigh::Neighbor;
use nlink::{Connection, Ipv4Address, Ipv4Route, Ipv6Address, Ipv6Route, LinkCond, Route, RuleBuilder};

use crate::{LabError, NetNs, patient};

/// Name of the one interface inside every host.
pub(crate) const HOST_INTERFACE: &str = "eth0";

const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
// Next hops on every veth pair. They are no addresses of anyone: the permanent neighbour entries alone give
// them meaning, which is why every pair can use the same.
const NODE_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
const HOST_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 2);
const NODE_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const HOST_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

const TABLE_LOCAL: u32 = 255;
const TABLE_MAIN: u32 = 254;

/// Longest time for the kernel to finish a link or an address on an ordinary machine. It takes well below a
/// millisecond.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Whether the kernel has IPv6. On one without it, a lab has links, routes and servers of IPv4 alone, and refuses
/// addresses of IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// The hops of the families that the kernel has.
fn hops(v4: Ipv4Addr, v6: Ipv6Addr) -> impl Iterator<Item = IpAddr> {
    [IpAddr::V4(v4), IpAddr::V6(v6)].into_iter().take(if has_ipv6() { 2 } else { 1 })
}

/// Runs `job` with a route netlink connection inside `namespace`; `what` names the objects in an error.
fn with_netlink<T: Send>(
    namespace: &NetNs,
    what: &str,
    job: impl AsyncFnOnce(Connection<Route>) -> nlink::Result<T> + Send,
) -> Result<T, LabError> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LabError::syscall("start a netlink event loop"))?;
        runtime
            .block_on(async { job(Connection::<Route>::new()?).await })
            .map_err(LabError::netlink(format!("{what} in namespace {}", namespace.name())))
    })?
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up(namespace: &NetNs) -> Result<(), LabError> {
    with_netlink(namespace, "loopback up", async |netlink| netlink.set_link_up("lo").await)
}

/// Joins `host` to `node` by a veth pair, called `interface` on the node and [`HOST_INTERFACE`] in the host,
/// and makes the node the host's way to everywhere.
pub(crate) fn join(node: &NetNs, host: &NetNs, interface: &str) -> Result<(), LabError> {
    let what = format!("veth pair {interface}");
    with_netlink(node, &what, async |netlink| {
        let pair =
            VethLink::new(interface, HOST_INTERFACE).address(NODE_MAC).peer_address(HOST_MAC).peer_netns_fd(host.fd());
        netlink.add_link(pair).await?;
        netlink.set_link_up(interface).await?;
        for hop in hops(HOST_HOP_V4, HOST_HOP_V6) {
            let neighbour = Neighbor::new(interface, hop).lladdr(HOST_MAC).permanent();
            netlink.add_neighbor(neighbour).await?;
        }
        Ok(())
    })?;
    route_through_node(host)?;
    with_netlink(node, &what, async |netlink| {
        netlink.wait_link(interface, LinkCond::OperUp, patient(SETTLE_LIMIT)).await.map(drop)
    })
}

fn route_through_node(host: &NetNs) -> Result<(), LabError> {
    with_netlink(host, "routing through the node", async |netlink| {
        netlink.set_link_up(HOST_INTERFACE).await?;
        for hop in hops(NODE_HOP_V4, NODE_HOP_V6) {
            let neighbour = Neighbor::new(HOST_INTERFACE, hop).lladdr(NODE_MAC).permanent();
            netlink.add_neighbor(neighbour).await?;
        }
        add_default_route(&netlink, HOST_INTERFACE, NODE_HOP_V4, NODE_HOP_V6).await?;
        send_everything_out(&netlink, RuleBuilder::v4).await?;
        if has_ipv6() { send_everything_out(&netlink, RuleBuilder::v6).await } else { Ok(()) }
    })
}

/// Joins `host` to a bridge of the node, made if it is not there, by a veth pair called `port` on the node, and routes
/// all traffic of the host through the node, including traffic to its neighbours on the bridge. `number` distinguishes
/// the ports of a bridge.
pub(crate) fn join_bridge(node: &NetNs, host: &NetNs, bridge: &str, port: &str, number: u8) -> Result<(), LabError> {
    let what = format!("bridge {bridge}");
    with_netlink(node, &what, async |netlink| {
        if netlink.get_link_by_name(bridge).await?.is_none() {
            netlink.add_link(BridgeLink::new(bridge).address(NODE_MAC)).await?;
            netlink.set_link_up(bridge).await?;
        }
        let pair = VethLink::new(port, HOST_INTERFACE).peer_address(port_mac(number)).peer_netns_fd(host.fd());
        netlink.add_link(pair).await?;
        netlink.set_link_master(port, bridge).await?;
        netlink.set_bridge_port(port, BridgePortConfig::new().hairpin(true)).await?;
        netlink.set_link_up(port).await
    })?;
    route_through_node(host)?;
    with_netlink(node, &what, async |netlink| {
        for interface in [port, bridge] {
            netlink.wait_link(interface, LinkCond::OperUp, patient(SETTLE_LIMIT)).await.map(drop)?;
        }
        Ok(())
    })
}

/// The link-layer address of a host on a bridge.
fn port_mac(number: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0x01, number]
}

/// Makes addresses neighbours of the node on a bridge, at the port with this number.
pub(crate) fn add_bridge_routes(node: &NetNs, bridge: &str, number: u8, addresses: &[IpAddr]) -> Result<(), LabError> {
    with_netlink(node, "routes to a port of a bridge", async |netlink| {
        let index = interface_index(&netlink, bridge).await?;
        for address in addresses {
            match *address {
                IpAddr::V4(v4) => netlink.add_route(Ipv4Route::from_addr(v4, 32).dev_index(index)).await?,
                IpAddr::V6(v6) => netlink.add_route(Ipv6Route::from_addr(v6, 128).dev_index(index)).await?,
            }
            netlink.add_neighbor(Neighbor::new(bridge, *address).lladdr(port_mac(number)).permanent()).await?;
        }
        Ok(())
    })
}

/// Makes a host deliver to itself only what arrives on its interface, so that connections between two addresses
/// of one host cross the node as they would between two pods.
async fn send_everything_out(netlink: &Connection<Route>, rule: fn() -> RuleBuilder) -> nlink::Result<()> {
    let arriving = rule().priority(10).iif(HOST_INTERFACE).table(TABLE_LOCAL);
    netlink.add_rule(arriving).await?;
    netlink.add_rule(rule().priority(20).table(TABLE_MAIN)).await?;
    netlink.add_rule(rule().priority(30).table(TABLE_LOCAL)).await?;
    netlink.del_rule(rule().priority(0).table(TABLE_LOCAL)).await
}

/// Sends what the node has no better route for out of `interface`.
pub(crate) fn set_uplink(node: &NetNs, interface: &str) -> Result<(), LabError> {
    with_netlink(node, "default route", async |netlink| {
        add_default_route(&netlink, interface, HOST_HOP_V4, HOST_HOP_V6).await
    })
}

async fn add_default_route(
    netlink: &Connection<Route>,
    interface: &str,
    hop_v4: Ipv4Addr,
    hop_v6: Ipv6Addr,
) -> nlink::Result<()> {
    let v4 = Ipv4Route::from_addr(Ipv4Addr::UNSPECIFIED, 0);
    netlink.add_route(v4.gateway(hop_v4).dev(interface).onlink()).await?;
    if !has_ipv6() {
        return Ok(());
    }
    let v6 = Ipv6Route::from_addr(Ipv6Addr::UNSPECIFIED, 0);
    netlink.add_route(v6.gateway(hop_v6).dev(interface)).await
}

/// Gives a namespace addresses on one of its interfaces, each with a prefix of full length.
pub(crate) fn add_addresses(namespace: &NetNs, interface: &str, addresses: &[IpAddr]) -> Result<(), LabError> {
    with_netlink(namespace, "addresses", async |netlink| {
        let index = interface_index(&netlink, interface).await?;
        for address in addresses {
            match *address {
                IpAddr::V4(v4) => {
                    let config = Ipv4Address::with_index(index, v4, 32);
                    netlink.add_address(config).await?;
                }
                IpAddr::V6(v6) => {
                    // Without the flag the kernel adds an on-link route for the address itself, which
                    // would outrank the way through the node.
                    let config = Ipv6Address::with_index(index, v6, 128).nodad().noprefixroute();
                    netlink.add_address(config).await?;
                }
            }
        }
        let settled = tokio::time::timeout(patient(SETTLE_LIMIT), await_local_routes(&netlink, addresses));
        settled.await.unwrap_or_else(|_| Err(nlink::Error::timeout()))
    })
}

/// Waits until packets to new IPv6 addresses are taken. The kernel acknowledges such an address at once, but
/// adds its local route later, from a work queue (`addrconf_dad_work`); a packet in between would be lost.
async fn await_local_routes(netlink: &Connection<Route>, addresses: &[IpAddr]) -> nlink::Result<()> {
    let mut awaited: BTreeSet<IpAddr> = addresses.iter().copied().filter(IpAddr::is_ipv6).collect();
    while !awaited.is_empty() {
        for route in netlink.get_routes_for_table(TABLE_LOCAL).await? {
            route.destination().map(|address| awaited.remove(address));
        }
        tokio::time::sleep(Duration::from_millis(u64::from(!awaited.is_empty()))).await;
    }
    Ok(())
}

/// Routes each of `addresses` from the node to the host behind `interface`.
pub(crate) fn add_host_routes(node: &NetNs, interface: &str, addresses: &[IpAddr]) -> Result<(), LabError> {
    with_netlink(node, "routes to a host", async |netlink| {
        let index = interface_index(&netlink, interface).await?;
        for address in addresses {
            match *address {
                IpAddr::V4(v4) => {
                    let route = Ipv4Route::from_addr(v4, 32).gateway(HOST_HOP_V4);
                    netlink.add_route(route.dev_index(index).onlink()).await?;
                }
                IpAddr::V6(v6) => {
                    let route = Ipv6Route::from_addr(v6, 128).gateway(HOST_HOP_V6);
                    netlink.add_route(route.dev_index(index)).await?;
                }
            }
        }
        Ok(())
    })
}

async fn interface_index(netlink: &Connection<Route>, name: &str) -> nlink::Result<u32> {
    let link = netlink.get_link_by_name(name).await?;
    link.map(|link| link.ifindex()).ok_or_else(|| nlink::Error::from(std::io::Error::from_raw_os_error(libc::ENODEV)))
}
