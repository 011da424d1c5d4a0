//! The tables of another version in a node's kernel, put there without a gap.

use vmap_proxy_agent::netlink::await_packets;
use vmap_proxy_compiler::ruleset::{Family, STAND_IN, TABLE};
use vmap_proxy_lab::NetNs;

use crate::nft::{load_nft, nft_in};

/// A line of nft for the table of this name in each family.
fn for_each_table(name: &str, line: impl Fn(String) -> String) -> String {
    Family::ALL.map(|family| line(format!("table {} {name}", family.keyword()))).concat()
}

/// Our tables as nft lists them: they can be loaded again.
///
/// # Panics
///
/// If there are none.
#[track_caller]
pub fn listing(namespace: &NetNs) -> String {
    let list = |family: Family| nft_in(namespace, &["list", "table", family.keyword(), TABLE], "");
    Family::ALL.map(|family| list(family).unwrap_or_else(|error| panic!("{error}"))).concat()
}

/// A listing under the name of the stand-ins.
pub fn as_stand_in(listing: &str) -> String {
    listing.replace(&format!(" {TABLE} {{"), &format!(" {STAND_IN} {{"))
}

/// Puts a rule set in the place of our tables, as another version would have left it. Copies of ours serve meanwhile.
///
/// # Panics
///
/// If nft refuses.
#[track_caller]
pub fn install(namespace: &NetNs, layout: &str) {
    let load = |text: &str| load_nft(namespace, text).unwrap_or_else(|error| panic!("{error}"));
    let remove = |name: &str| {
        load(&for_each_table(name, |table| format!("add {table} {{ flags dormant; }}\n")));
        await_packets();
        load(&for_each_table(name, |table| format!("delete {table}\n")));
    };
    load(&as_stand_in(&listing(namespace)));
    await_packets();
    remove(TABLE);
    load(layout);
    await_packets();
    remove(STAND_IN);
}
