//! `docs/maps.md` is made from the table of sets and maps:
//! `UPDATE_GOLDEN=1 cargo test -p vmap-proxy-compiler --test reference`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/golden.rs"]
mod golden;

use std::fmt::Write;
use std::path::Path;

use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::maps::{AFFINITY_SIZE, Map};

const HEAD: &str = "\
# Sets and maps

The tables `ip vmap-proxy` and `ip6 vmap-proxy` always hold the sets and maps of this page, whatever
the cluster holds. Only their elements grow ([architecture](architecture.md#the-law)). To list one on
a node: `nft list map ip vmap-proxy services`, or `nft list set` for a set.

The declarations are those of the `ip` table. In the `ip6` table `ipv6_addr` and `ip6` take the
places of `ipv4_addr` and `ip`.

This page is made from the table in `compiler/src/ruleset/maps.rs`. Do not edit it: change the
table, then run `UPDATE_GOLDEN=1 cargo test -p vmap-proxy-compiler --test reference`.

| name | kind | declaration | flags | purpose |
|---|---|---|---|---|
";

#[test]
fn the_page_of_maps_is_what_the_table_says() {
    let mut page = HEAD.to_owned();
    for map in Map::all() {
        let flags = render::properties(map).iter().map(|flag| format!("`{flag}`")).collect::<Vec<_>>().join(", ");
        let declaration = render::declaration(Family::Ipv4, map);
        let (kind, purpose) = (render::kind(map), map.row().purpose);
        writeln!(page, "| `{map}` | {kind} | `{declaration}` | {flags} | {purpose} |").unwrap();
    }
    write!(page, "\n`affinity` remembers at most {AFFINITY_SIZE} clients.\n").unwrap();
    golden::check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/maps.md"), &page);
}
