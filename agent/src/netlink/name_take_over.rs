//! Leads the packets of the cluster's DNS Service to the DNS server of this
//! agent, for as long as it answers.
//!
//! Two parts, for each family:
//!
//! * A route of type `local` to the cluster IP, so that packets to it end on this
//!   node. The kernel keeps it when the agent ends, and it changes nothing then:
//!   DNAT comes before routing.
//! * A table that belongs to the socket which made it (`flags owner`, Linux 5.12):
//!   the kernel deletes it with the socket, however the agent ends. Its rules keep
//!   questions out of connection tracking, and so out of DNAT. They do so only
//!   for addresses in the set `answering`, whose elements expire, and which only
//!   an answer of the server to a question of its own renews.
//!
//! ```nft
//! table ip vmap-proxy-dns {
//!     flags owner
//!     set services { type ipv4_addr; elements = { 10.96.0.10 } }
//!     set answering { type ipv4_addr; size 16; flags dynamic,timeout; timeout 3s; }
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr @answering udp dport 53 notrack
//!         ip daddr @answering tcp dport 53 notrack
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip saddr @services ip daddr @services udp sport 53 update @answering { ip saddr timeout 3s }
//!         ip saddr @services notrack
//!         ip daddr @answering udp dport 53 notrack
//!         ip daddr @answering tcp dport 53 notrack
//!     }
//!     chain input {
//!         type filter hook input priority filter + 10; policy accept;
//!         ct state new ip daddr @services reject
//!     }
//! }
//! ```
//!
//! The chain `input` rejects ports of the cluster IP that no Service has, which
//! otherwise would lead to programs of this node. The reasons are in decision 66.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use nlink::netlink::nftables::{
    BaseChain, Chain, CtState, DynsetExpr, DynsetOp, Expr, Family as NftFamily, FilterHook, NFT_TABLE_F_OWNER,
    PacketField, PayloadBase, Priority, Register, Rule, Set, SetElement, SetKeyType, Transaction,
};
use nlink::netlink::types::route::{RouteProtocol, RouteType};
use nlink::netlink::{Connection, Nftables};
use nlink::{Ipv4Route, Ipv6Route, Route};
use vmap_proxy_compiler::ruleset::Family;

use super::NetlinkError;

/// The name of the table in both families.
const TABLE: &str = "vmap-proxy-dns";

/// How long questions go on to the server after the last answer to a question of
/// its own.
const LIFETIME: Duration = Duration::from_secs(3);

/// The mark of our routes (`rtm_protocol`): a number that
/// `/etc/iproute2/rt_protos` gives to nobody.
const ROUTES: RouteProtocol = RouteProtocol::Other(118);

/// `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

const SERVICES: &str = "services";
const ANSWERING: &str = "answering";
/// Services have one cluster IP of a family; changes need another for a moment.
const MOST_ANSWERING: u32 = 16;
const DNS: u16 = 53;
/// The codes of "port unreachable" in ICMP and ICMPv6.
const PORT_UNREACHABLE: [u8; 2] = [3, 4];

/// The table and the routes of this process.
pub struct NameTakeOver {
    /// The tables end with it.
    tables: Connection<Nftables>,
    routes: Connection<Route>,
    programmed: BTreeMap<Family, Vec<IpAddr>>,
    /// Cluster IPs and the source address of this node's own questions to them.
    routed: BTreeMap<IpAddr, IpAddr>,
}

impl std::fmt::Debug for NameTakeOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NameTakeOver").field("programmed", &self.programmed).finish_non_exhaustive()
    }
}

impl NameTakeOver {
    /// Opens the sockets, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel gives none.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            tables: Connection::<Nftables>::new()?,
            routes: Connection::<Route>::new()?,
            programmed: BTreeMap::new(),
            routed: BTreeMap::new(),
        })
    }

    /// Makes the tables and routes those of these cluster IPs, each with the
    /// source address of this node's own questions. A route that somebody has
    /// removed is made again.
    ///
    /// # Errors
    /// If the kernel refuses; the next call tries again.
    pub async fn set(&mut self, wanted: &BTreeMap<IpAddr, IpAddr>) -> Result<(), NetlinkError> {
        // The rules go first and come last: without a route they would lead nowhere.
        for family in Family::ALL {
            let left = |address: &&IpAddr| wanted.contains_key(*address);
            let before = self.programmed.get(&family).into_iter().flatten().filter(left).copied().collect();
            self.set_table(family, before).await?;
        }
        self.set_routes(wanted).await?;
        for family in Family::ALL {
            let of_family = |address: &&IpAddr| Family::of(**address) == family;
            self.set_table(family, wanted.keys().filter(of_family).copied().collect()).await?;
        }
        Ok(())
    }

    async fn set_table(&mut self, family: Family, addresses: Vec<IpAddr>) -> Result<(), NetlinkError> {
        let programmed = self.programmed.get(&family);
        if programmed.map_or(&[][..], Vec::as_slice) == addresses {
            return Ok(());
        }
        let mut transaction = self.tables.transaction();
        if programmed.is_some() {
            transaction = transaction.del_table(TABLE, nft_family(family));
        } else {
            // One that somebody else made.
            self.tables.del_table_if_exists(TABLE, nft_family(family)).await?;
        }
        if !addresses.is_empty() {
            transaction = add_table(transaction, family, &addresses)?;
        }
        transaction.commit(&self.tables).await?;
        if addresses.is_empty() {
            self.programmed.remove(&family);
        } else {
            self.programmed.insert(family, addresses);
        }
        Ok(())
    }

    async fn set_routes(&mut self, wanted: &BTreeMap<IpAddr, IpAddr>) -> Result<(), NetlinkError> {
        let stale: Vec<IpAddr> =
            self.routed.iter().filter(|(to, source)| wanted.get(to) != Some(source)).map(|(to, _)| *to).collect();
        for address in stale {
            remove_route(&self.routes, address).await?;
            self.routed.remove(&address);
        }
        for (address, source) in wanted {
            match add_route(&self.routes, *address, *source).await {
                Ok(()) => {}
                // Ours, or the address is on an interface: then the packets arrive as well.
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error.into()),
            }
            self.routed.insert(*address, *source);
        }
        Ok(())
    }
}

/// Removes the routes of former agents, except to these addresses. Returns the
/// addresses.
///
/// # Errors
/// If the kernel refuses.
pub async fn remove_name_routes(except: &[IpAddr]) -> Result<Vec<IpAddr>, NetlinkError> {
    let connection = Connection::<Route>::new()?;
    let mut removed = Vec::new();
    // A node may have a million routes: one at a time.
    let mut routes = std::pin::pin!(connection.stream_routes().await?);
    while let Some(route) = routes.next().await {
        let route = route?;
        match route.destination() {
            Some(address)
                if route.table_id() == LOCAL_TABLE && route.protocol() == ROUTES && !except.contains(address) =>
            {
                removed.push(*address);
            }
            _ => {}
        }
    }
    let requests = Connection::<Route>::new()?;
    for address in &removed {
        remove_route(&requests, *address).await?;
    }
    Ok(removed)
}

async fn add_route(connection: &Connection<Route>, address: IpAddr, source: IpAddr) -> nlink::Result<()> {
    match (address, source) {
        (IpAddr::V4(address), IpAddr::V4(source)) => connection.add_route(ipv4(address).prefsrc(source)).await,
        (IpAddr::V6(address), IpAddr::V6(source)) => connection.add_route(ipv6(address).prefsrc(source)).await,
        // Callers pair addresses of one family.
        _ => Ok(()),
    }
}

async fn remove_route(connection: &Connection<Route>, address: IpAddr) -> Result<(), NetlinkError> {
    let gone = match address {
        IpAddr::V4(address) => connection.del_route(ipv4(address)).await,
        IpAddr::V6(address) => connection.del_route(ipv6(address)).await,
    };
    match gone {
        // The kernel answers ESRCH.
        Err(error) if error.errno() != Some(libc::ESRCH) && !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

fn ipv4(address: std::net::Ipv4Addr) -> Ipv4Route {
    Ipv4Route::new(address, 32).dev("lo").table(LOCAL_TABLE).route_type(RouteType::Local).protocol(ROUTES)
}

fn ipv6(address: std::net::Ipv6Addr) -> Ipv6Route {
    Ipv6Route::new(address, 128).dev("lo").table(LOCAL_TABLE).route_type(RouteType::Local).protocol(ROUTES)
}

fn nft_family(family: Family) -> NftFamily {
    match family {
        Family::Ipv4 => NftFamily::Ip,
        Family::Ipv6 => NftFamily::Ip6,
    }
}

fn add_table(transaction: Transaction, family: Family, addresses: &[IpAddr]) -> nlink::Result<Transaction> {
    let of = nft_family(family);
    let key = match family {
        Family::Ipv4 => SetKeyType::Ipv4Addr,
        Family::Ipv6 => SetKeyType::Ipv6Addr,
    };
    let services = Set::new(TABLE, SERVICES).family(of).key_type(key.clone());
    let answering =
        Set::new(TABLE, ANSWERING).family(of).key_type(key).dynamic().timeout(LIFETIME).size(MOST_ANSWERING);
    let elements: Vec<SetElement> = addresses
        .iter()
        .map(|address| match address {
            IpAddr::V4(address) => SetElement::ipv4(*address),
            IpAddr::V6(address) => SetElement::ipv6(*address),
        })
        .collect();
    let chain = |name: &str, hook, priority| -> nlink::Result<Chain> {
        Ok(Chain::new(TABLE, name)?.family(of).base(BaseChain::filter(hook, priority)))
    };
    let transaction = transaction
        .add_table_with_flags(TABLE, of, NFT_TABLE_F_OWNER)
        .add_set(services.clone())
        .add_set(answering)
        .add_set_elements(&services, &elements)
        .add_chain(chain("prerouting", FilterHook::Prerouting, Priority::Raw)?)
        .add_chain(chain("output", FilterHook::Output, Priority::Raw)?)
        .add_chain(chain("input", FilterHook::Input, Priority::Custom(10))?);
    Ok(rules(family).into_iter().fold(transaction, Transaction::add_rule))
}

fn rules(family: Family) -> Vec<Rule> {
    let (source, destination) = match family {
        Family::Ipv4 => (PacketField::Ip4Saddr, PacketField::Ip4Daddr),
        Family::Ipv6 => (PacketField::Ip6Saddr, PacketField::Ip6Daddr),
    };
    let rule = |chain: &str| Rule::new(TABLE, chain).family(nft_family(family));
    let untracked = |chain: &str| {
        let asked = || rule(chain).match_in_set(destination, ANSWERING);
        [asked().match_udp_dport(DNS).notrack(), asked().match_tcp_dport(DNS).notrack()]
    };
    let (offset, len) = match family {
        Family::Ipv4 => (12, 4),
        Family::Ipv6 => (8, 16),
    };
    let renewed = rule("output")
        .match_in_set(source, SERVICES)
        .match_in_set(destination, SERVICES)
        .match_udp_sport(DNS)
        .expr(Expr::Payload { dreg: Register::R0, base: PayloadBase::Network, offset, len })
        .expr(DynsetExpr::new(DynsetOp::Update, ANSWERING, Register::R0).timeout(LIFETIME));
    let own = rule("output").match_in_set(source, SERVICES).notrack();
    let undefined = rule("input").match_ct_state(CtState::NEW).match_in_set(destination, SERVICES);
    let [icmp, icmpv6] = PORT_UNREACHABLE;
    let undefined = match family {
        Family::Ipv4 => undefined.reject_icmp(icmp),
        Family::Ipv6 => undefined.reject_icmpv6(icmpv6),
    };
    let mut rules = vec![renewed, own];
    rules.extend(untracked("output"));
    rules.extend(untracked("prerouting"));
    rules.push(undefined);
    rules
}
