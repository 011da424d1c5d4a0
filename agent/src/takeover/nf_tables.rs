//! The leftovers of kube-proxy in nf_tables: the tables of its nftables mode,
//! and the chains of its iptables mode where iptables is the variant that
//! writes to nf_tables (see `iptables -V`).
//!
//! Of foreign rules only the target chain of a verdict is read. The notes of
//! other programs about their rules (userdata) are private, and change from
//! version to version.

use std::collections::HashSet;

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::words::count;
use vmap_proxy_wire::message::{Attributes, Message, Request};
use vmap_proxy_wire::nf_tables::{TABLE_NAME, message_type, request};
use vmap_proxy_wire::uapi::{
    NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME,
    NFTA_IMMEDIATE_DATA, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_VERDICT_CHAIN,
};

use super::Removals;
use super::names::{IPTABLES_TABLES, TABLE, is_proxy_chain};
use crate::netlink::SocketError;
use crate::netlink::socket::Socket;

/// Maximum number of operations in one transaction, so that no other writer
/// waits for long.
const ORDERS_AT_ONCE: usize = 1000;

/// Removes the tables of the nftables mode.
pub(super) fn remove_tables(socket: &mut Socket, report: &mut Removals) {
    for family in Family::ALL {
        let what = format!("nftables table {} {TABLE}", family.keyword());
        let order = request(NFT_MSG_DELTABLE, family, |w| w.string(TABLE_NAME, TABLE));
        report.note(what, socket.transaction(&[order]).map_err(Into::into), libc::ENOENT);
    }
}

/// Removes the chains of the iptables mode, and the rules that jump to them.
pub(super) fn remove_chains(socket: &mut Socket, report: &mut Removals) {
    for family in Family::ALL {
        let ip = family.keyword();
        for table in IPTABLES_TABLES {
            match remove_chains_of(socket, family, table, report) {
                Ok(0) => {}
                Ok(chains) => report.removed(format!("{} of {ip} {table} (iptables-nft)", count(chains, "chain"))),
                Err(error) => report.failed(format!("chains of {ip} {table} (iptables-nft)"), error),
            }
        }
    }
}

/// Returns the number of removed chains.
fn remove_chains_of(
    socket: &mut Socket,
    family: Family,
    table: &str,
    report: &mut Removals,
) -> Result<usize, SocketError> {
    let chains = chains(socket, family, table)?;
    if chains.proxy.is_empty() {
        return Ok(0);
    }
    // First the jumps to the chains, then their content, then the chains: a
    // packet meets all of them or none, even if this is interrupted.
    let jumps = jumps(socket, family, table, &chains)?;
    submit(socket, family, table, &jumps, report);
    let flushes: Vec<Order<'_>> = chains.proxy.iter().map(|chain| Order::Flush(chain)).collect();
    submit(socket, family, table, &flushes, report);
    let deletions: Vec<Order<'_>> = chains.proxy.iter().map(|chain| Order::Chain(chain)).collect();
    Ok(submit(socket, family, table, &deletions, report))
}

/// The chains of a table, by owner.
#[derive(Default)]
struct Chains {
    proxy: HashSet<String>,
    others: Vec<String>,
}

fn chains(socket: &mut Socket, family: Family, table: &str) -> Result<Chains, SocketError> {
    let question = request(NFT_MSG_GETCHAIN, family, |w| w.string(TABLE_NAME, table));
    let listed = socket.list(&question, |message| {
        let attributes = attributes_of(message, NFT_MSG_NEWCHAIN)?;
        let name = attributes.string(NFTA_CHAIN_NAME)?;
        // A base chain belongs to the table's owner, whatever its name.
        let is_proxys = attributes.get(NFTA_CHAIN_HOOK).is_none() && is_proxy_chain(name);
        // Not every kernel omits the other tables.
        (attributes.string(TABLE_NAME) == Some(table)).then(|| (name.to_owned(), is_proxys))
    });
    let mut chains = Chains::default();
    for (name, is_proxys) in absent_is_empty(listed)? {
        if is_proxys {
            chains.proxy.insert(name);
        } else {
            chains.others.push(name);
        }
    }
    Ok(chains)
}

/// The rules outside of kube-proxy's chains that lead into one.
fn jumps<'a>(
    socket: &mut Socket,
    family: Family,
    table: &str,
    chains: &'a Chains,
) -> Result<Vec<Order<'a>>, SocketError> {
    let mut jumps = Vec::new();
    // Chain by chain: for every part of a listing the kernel walks the rules from the first, and kube-proxy's own
    // chains may have hundreds of thousands.
    for chain in &chains.others {
        let question = request(NFT_MSG_GETRULE, family, |w| {
            w.string(TABLE_NAME, table);
            w.string(NFTA_RULE_CHAIN, chain);
        });
        let listed = socket.list(&question, |message| {
            let attributes = attributes_of(message, NFT_MSG_NEWRULE)?;
            let is_of = |kind, name: &str| attributes.string(kind) == Some(name);
            let leads = is_of(TABLE_NAME, table)
                && is_of(NFTA_RULE_CHAIN, chain)
                && attributes.get(NFTA_RULE_EXPRESSIONS)?.nested().any(|expression| {
                    verdict_chain(expression.nested()).is_some_and(|target| chains.proxy.contains(target))
                });
            let handle = attributes.get(NFTA_RULE_HANDLE)?.be64()?;
            leads.then_some(Order::Rule(chain, handle))
        });
        jumps.extend(absent_is_empty(listed)?);
    }
    Ok(jumps)
}

/// The chain that an expression jumps or goes to, if it is a verdict.
fn verdict_chain(expression: Attributes<'_>) -> Option<&str> {
    if expression.string(NFTA_EXPR_NAME) != Some("immediate") {
        return None;
    }
    let data = expression.get(NFTA_EXPR_DATA)?.nested().get(NFTA_IMMEDIATE_DATA)?;
    data.nested().get(NFTA_DATA_VERDICT)?.nested().string(NFTA_VERDICT_CHAIN)
}

fn attributes_of<'a>(message: &Message<'a>, kind: u8) -> Option<Attributes<'a>> {
    if message.kind != message_type(kind) {
        return None;
    }
    message.body().map(|(_, attributes)| attributes)
}

/// One object to remove.
enum Order<'a> {
    Rule(&'a str, u64),
    Flush(&'a str),
    Chain(&'a str),
}

impl Order<'_> {
    fn request(&self, family: Family, table: &str) -> Request {
        let kind = match self {
            Self::Rule(..) | Self::Flush(_) => NFT_MSG_DELRULE,
            Self::Chain(_) => NFT_MSG_DELCHAIN,
        };
        request(kind, family, |w| {
            w.string(TABLE_NAME, table);
            match self {
                Self::Rule(chain, handle) => {
                    w.string(NFTA_RULE_CHAIN, chain);
                    w.be64(NFTA_RULE_HANDLE, *handle);
                }
                Self::Flush(chain) => w.string(NFTA_RULE_CHAIN, chain),
                Self::Chain(chain) => w.string(NFTA_CHAIN_NAME, chain),
            }
        })
    }

    fn describe(&self, family: Family, table: &str) -> String {
        let ip = family.keyword();
        match self {
            Self::Rule(chain, handle) => format!("rule {handle} of {ip} {table} {chain}"),
            Self::Flush(chain) => format!("rules of {ip} {table} {chain}"),
            Self::Chain(chain) => format!("chain {ip} {table} {chain}"),
        }
    }
}

/// Submits operations in bounded transactions. If one is refused, its
/// operations are submitted one by one, and refused ones are recorded. Returns
/// the number of successful operations.
fn submit(socket: &mut Socket, family: Family, table: &str, orders: &[Order<'_>], report: &mut Removals) -> usize {
    let mut done = 0;
    for some in orders.chunks(ORDERS_AT_ONCE) {
        if transaction(socket, family, table, some).is_ok() {
            done += some.len();
            continue;
        }
        for order in some {
            match transaction(socket, family, table, std::slice::from_ref(order)) {
                Ok(()) => done += 1,
                // Another program was faster.
                Err(SocketError::Refused(libc::ENOENT)) => {}
                Err(error) => report.failed(order.describe(family, table), error),
            }
        }
    }
    done
}

fn transaction(socket: &mut Socket, family: Family, table: &str, orders: &[Order<'_>]) -> Result<(), SocketError> {
    let requests: Vec<Request> = orders.iter().map(|order| order.request(family, table)).collect();
    socket.transaction(&requests)
}

/// A kernel that checks the table first.
fn absent_is_empty<T>(listed: Result<Vec<T>, SocketError>) -> Result<Vec<T>, SocketError> {
    match listed {
        Err(SocketError::Refused(libc::ENOENT)) => Ok(Vec::new()),
        other => other,
    }
}
