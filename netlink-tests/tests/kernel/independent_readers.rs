//! Three independent programs read from the kernel what we wrote: libnftnl, the
//! nft program in JSON, and (tables, chains and sets) rustables.

use std::collections::BTreeSet;

use crate::readback::fixtures::{complete, loadable, simple_config};
use crate::readback::view::View;
use crate::readback::{json, libnftnl};
use vmap_proxy_agent::netlink::{Kernel, OwnTable};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, TABLE};
use vmap_proxy_testbed::namespaces::in_fresh_namespace;
use vmap_proxy_testbed::nft::nft;

#[test]
fn libnftnl_and_nft_report_what_we_wrote() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            let table = loadable(simple_config(family));
            kernel.commit(&complete(&table)).unwrap();
            let expected = View::expected(&table);

            let listing = nft(&["-j", "list", "table", family.keyword(), TABLE], "").unwrap();
            assert_eq!(json::view(&listing).unwrap(), expected, "nft -j, {family}");

            // libnftnl has no notion of prefixes: where they are boundaries, compare the rest.
            let without_boundaries = |mut view: View| {
                assert!(!view.sets.insert(Map::ServiceCidrs.to_string(), BTreeSet::new()).unwrap().is_empty());
                view
            };
            let found = libnftnl::view(family).unwrap();
            assert_eq!(without_boundaries(found), without_boundaries(expected), "libnftnl, {family}");
        }
    });
}

#[test]
fn rustables_reports_our_tables_chains_and_sets() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        // It asks for all families at once and tells tables by name alone: one at a time.
        for family in Family::ALL {
            let loaded = loadable(simple_config(family));
            kernel.commit(&complete(&loaded)).unwrap();
            let tables = rustables::list_tables().unwrap();
            let [table] = tables.as_slice() else { panic!("{tables:?}") };
            assert_eq!(table.get_name().map(String::as_str), Some(TABLE));
            let expected = View::expected(&loaded);
            let chains = rustables::list_chains_for_table(table).unwrap();
            assert_eq!(chains.len(), expected.chains.len());
            for chain in chains {
                let name = chain.get_name().unwrap();
                let base = &expected.chains.get(name).unwrap_or_else(|| panic!("{name}")).base;
                let found = chain.get_hook().map(|hook| (*hook.get_class().unwrap(), *hook.get_priority().unwrap()));
                let expected = base.as_ref().map(|(_, hook, priority)| (*hook, *priority as u32));
                assert_eq!(found, expected, "{name}");
            }
            let mut names = BTreeSet::new();
            let collect = |set: rustables::Set, names: &mut BTreeSet<String>| {
                names.insert(set.get_name().cloned().unwrap_or_default());
                Ok(())
            };
            rustables::query::list_objects_with_data(libc::NFT_MSG_GETSET as u16, &collect, None, &mut names).unwrap();
            assert_eq!(names, expected.sets.into_keys().collect());
            kernel.delete_table(OwnTable::Main, family).unwrap();
        }
    });
}
