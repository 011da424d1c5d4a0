//! Everything that decodes, for the property tests and the fuzz targets alike.
#![allow(dead_code, reason = "each fuzz target uses a part")]

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_wire::answer::{Answers, DumpReader, Sequences};
use vmap_proxy_wire::conntrack::{Connection, Flow};
use vmap_proxy_wire::leftovers::{ipset_name, ipvs_number};
use vmap_proxy_wire::legacy_table::LegacyTable;
use vmap_proxy_wire::message::{Attributes, Messages};
use vmap_proxy_wire::nf_tables::all_chains::any_chain;
use vmap_proxy_wire::nf_tables::all_rules::any_rule;
use vmap_proxy_wire::nf_tables::elements::Reader;
use vmap_proxy_wire::nf_tables::kube_proxy_table;
use vmap_proxy_wire::nf_tables::table_state::TableState;
use vmap_proxy_wire::nf_tables::trace_event::TraceEvent;

/// The number of the request that everything answers.
pub(crate) const SEQUENCE: u32 = 7;

/// Everything that decodes, on the same bytes.
pub(crate) fn decode(datagram: &[u8]) {
    let mut answers = Answers::default();
    answers.read(datagram, Sequences { first: SEQUENCE, last: SEQUENCE }, &mut |_| {});
    let mut reader = DumpReader::new(SEQUENCE);
    reader.read(datagram, &mut |entries| entries.for_each(|message| assert!(message.payload.len() <= datagram.len())));
    for message in Messages::new(datagram) {
        any_chain(&message);
        any_rule(&message);
        if let Some(flow) = Flow::decode(&message) {
            flow.deletion();
        }
        if let Some(connection) = Connection::decode(&message) {
            connection.deletion();
        }
        TraceEvent::decode(&message);
        kube_proxy_table::rule(&message);
        kube_proxy_table::elements(&message);
        ipvs_number(&message);
        ipset_name(&message);
        let Some((_, attributes)) = message.body() else { continue };
        decode_tables(attributes);
    }
    decode_tables(Attributes::new(datagram));
}

/// The attributes as every kind of object of a table.
fn decode_tables(attributes: Attributes<'_>) {
    for family in Family::ALL {
        let mut state = TableState::default();
        state.read_table(attributes);
        state.read_chain(attributes);
        state.read_rule(attributes);
        state.read_set(attributes);
        state.read_object(attributes);
        state.read_flowtable(attributes);
        state.chain_names().filter_map(Chain::parse).count();
        for map in Map::all() {
            state.map_matches(map, family);
            let mut reader = Reader::new(family, map);
            reader.read(attributes);
            reader.finish();
        }
    }
}

/// Reduces a legacy table in both families.
pub(crate) fn reduce(table: &LegacyTable) {
    for family in Family::ALL {
        if let Some(reduced) = table.without(family, |_| true) {
            assert!(reduced.table.entries.len() <= table.entries.len());
            assert_eq!(reduced.kept.len(), reduced.table.count);
        }
    }
}
