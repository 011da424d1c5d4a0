//! The leftovers of kube-proxy in nf_tables: the tables of its nftables mode,
//! and the chains of its iptables mode where iptables is the variant that
//! writes to nf_tables (see `iptables -V`).
//!
//! Of foreign rules only the target chain of a verdict is read. The notes of
//! other programs about their rules (userdata) are private, and change from
//! version to version.

use std::collections::HashSet;
use std::io;

use nlink::netlink::nftables::{
    NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA,
    NFTA_EXPR_NAME, NFTA_IMMEDIATE_DATA, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE,
    NFTA_TABLE_NAME, NFTA_VERDICT_CHAIN,
};

use super::names::{IPTABLES_TABLES, TABLE, is_proxy_chain};
use super::socket::{Request, Socket};
use super::{FAMILIES, IpFamily, Report};
use crate::netlink::wire::{Attributes, Message, Writer, nft_type};

/// Maximum number of operations in one transaction, so that no other writer
/// waits for long.
const ORDERS_AT_ONCE: usize = 1000;

/// Removes the tables of the nftables mode.
pub(super) fn remove_tables(socket: &mut Socket, report: &mut Report) {
    for family in FAMILIES {
        let what = format!("nftables table {family} {TABLE}");
        let body = |w: &mut Writer| w.string(NFTA_TABLE_NAME, TABLE);
        let order = Request { kind: nft_type(NFT_MSG_DELTABLE), family: family.nfproto(), body: &body };
        report.note(what, socket.transaction(&[order]), libc::ENOENT);
    }
}

/// Removes the chains of the iptables mode, and the rules that jump to them.
pub(super) fn remove_chains(socket: &mut Socket, report: &mut Report) {
    for family in FAMILIES {
        for table in IPTABLES_TABLES {
            match remove_chains_of(socket, family, table, report) {
                Ok(0) => {}
                Ok(count) => report.removed(format!("{count} chains of {family} {table} (iptables-nft)")),
                Err(error) => report.failed(format!("chains of {family} {table} (iptables-nft)"), error),
            }
        }
    }
}

/// Returns the number of removed chains.
fn remove_chains_of(socket: &mut Socket, family: IpFamily, table: &str, report: &mut Report) -> io::Result<usize> {
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

fn chains(socket: &mut Socket, family: IpFamily, table: &str) -> io::Result<Chains> {
    let body = |w: &mut Writer| w.string(NFTA_CHAIN_TABLE, table);
    let question = Request { kind: nft_type(NFT_MSG_GETCHAIN), family: family.nfproto(), body: &body };
    let listed = socket.dump(&question, |message| {
        let attributes = attributes_of(message, NFT_MSG_NEWCHAIN)?;
        let name = attributes.string(NFTA_CHAIN_NAME)?;
        // A base chain belongs to the table's owner, whatever its name.
        let is_proxys = attributes.get(NFTA_CHAIN_HOOK).is_none() && is_proxy_chain(name);
        // Not every kernel omits the other tables.
        (attributes.string(NFTA_CHAIN_TABLE) == Some(table)).then(|| (name.to_owned(), is_proxys))
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
fn jumps<'a>(socket: &mut Socket, family: IpFamily, table: &str, chains: &'a Chains) -> io::Result<Vec<Order<'a>>> {
    let mut jumps = Vec::new();
    // Chain by chain: for every part of a listing the kernel walks the rules from the first, and kube-proxy's own
    // chains may have hundreds of thousands.
    for chain in &chains.others {
        let body = |w: &mut Writer| {
            w.string(NFTA_RULE_TABLE, table);
            w.string(NFTA_RULE_CHAIN, chain);
        };
        let question = Request { kind: nft_type(NFT_MSG_GETRULE), family: family.nfproto(), body: &body };
        let listed = socket.dump(&question, |message| {
            let attributes = attributes_of(message, NFT_MSG_NEWRULE)?;
            let is_of = |kind, name: &str| attributes.string(kind) == Some(name);
            let leads = is_of(NFTA_RULE_TABLE, table)
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
    if message.kind != nft_type(kind) {
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
    fn kind(&self) -> u16 {
        match self {
            Self::Rule(..) | Self::Flush(_) => nft_type(NFT_MSG_DELRULE),
            Self::Chain(_) => nft_type(NFT_MSG_DELCHAIN),
        }
    }

    fn write(&self, w: &mut Writer, table: &str) {
        // Table is attribute 1 of both rules and chains.
        w.string(NFTA_RULE_TABLE, table);
        match self {
            Self::Rule(chain, handle) => {
                w.string(NFTA_RULE_CHAIN, chain);
                w.be64(NFTA_RULE_HANDLE, *handle);
            }
            Self::Flush(chain) => w.string(NFTA_RULE_CHAIN, chain),
            Self::Chain(chain) => w.string(NFTA_CHAIN_NAME, chain),
        }
    }

    fn describe(&self, family: IpFamily, table: &str) -> String {
        match self {
            Self::Rule(chain, handle) => format!("rule {handle} of {family} {table} {chain}"),
            Self::Flush(chain) => format!("rules of {family} {table} {chain}"),
            Self::Chain(chain) => format!("chain {family} {table} {chain}"),
        }
    }
}

/// Submits operations in bounded transactions. If one is refused, its
/// operations are submitted one by one, and refused ones are recorded. Returns
/// the number of successful operations.
fn submit(socket: &mut Socket, family: IpFamily, table: &str, orders: &[Order<'_>], report: &mut Report) -> usize {
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
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => report.failed(order.describe(family, table), error),
            }
        }
    }
    done
}

fn transaction(socket: &mut Socket, family: IpFamily, table: &str, orders: &[Order<'_>]) -> io::Result<()> {
    let bodies: Vec<_> = orders.iter().map(|order| move |w: &mut Writer| order.write(w, table)).collect();
    let requests: Vec<Request<'_>> = orders
        .iter()
        .zip(&bodies)
        .map(|(order, body)| Request { kind: order.kind(), family: family.nfproto(), body })
        .collect();
    socket.transaction(&requests)
}

/// A kernel that checks the table first.
fn absent_is_empty<T>(listed: io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match listed {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        other => other,
    }
}
