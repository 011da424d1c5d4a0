//! What the kernel holds of our table, and whether it is what we would write.

use std::collections::HashMap;

use compiler::ruleset::Family;
use compiler::ruleset::chains::Chain;
use compiler::ruleset::maps::Map;
use compiler::ruleset::rule::Rule;
use nlink::netlink::nftables::*;

use super::NF_ACCEPT;
use super::expressions::write_rule;
use super::sets::{Declaration, declaration, userdata};
use super::wire::{Attribute, Attributes, Writer};

/// One of our tables, as the kernel lists it: chains with their rules and the
/// declarations of sets and maps, but not their elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    chains: HashMap<String, ChainState>,
    maps: HashMap<String, MapState>,
}

/// A chain as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainState {
    /// Type, hook, priority and policy of a base chain.
    base: Option<Hooked>,
    /// The expressions of each rule, in order, as `NFTA_RULE_EXPRESSIONS` has
    /// them.
    rules: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Hooked {
    kind: String,
    hook: u32,
    priority: i32,
    policy: u32,
}

/// The number of elements (Linux 6.16; not yet among nlink's constants).
const NFTA_SET_COUNT: u16 = 20;

/// A set or map as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapState {
    declaration: Declaration,
    /// How many elements it has, where the kernel tells.
    count: Option<u32>,
}

impl ChainState {
    /// How many rules it has.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The rules' expressions as the kernel encodes them: for comparisons
    /// with other programs' view of the same chain.
    pub fn rule_expressions(&self) -> &[Vec<u8>] {
        &self.rules
    }
}

impl TableState {
    /// Whether a chain is there and does what `rules` say: the same rules in
    /// the same order, and on the same hook with the same priority and an
    /// accepting policy if it is a base chain.
    pub fn chain_matches(&self, chain: Chain, family: Family, rules: &[Rule]) -> bool {
        let Some(state) = self.chains.get(&chain.to_string()) else { return false };
        let expected = chain.base().map(|base| Hooked {
            kind: if base.nat { "nat" } else { "filter" }.to_owned(),
            hook: base.hook.number(),
            priority: base.priority,
            policy: NF_ACCEPT,
        });
        let mut writer = Writer::as_listed();
        state.base == expected
            && state.rules.len() == rules.len()
            && state.rules.iter().zip(rules).all(|(state, rule)| {
                writer.clear();
                write_rule(&mut writer, family, rule);
                same_expressions(Attributes(writer.bytes()), Attributes(state))
            })
    }

    /// Whether a chain is there and hooks in as it should: what can't be
    /// changed in place.
    pub fn base_matches(&self, chain: Chain) -> bool {
        let expected = chain.base().map(|base| Hooked {
            kind: if base.nat { "nat" } else { "filter" }.to_owned(),
            hook: base.hook.number(),
            priority: base.priority,
            policy: NF_ACCEPT,
        });
        self.chains.get(&chain.to_string()).is_some_and(|state| state.base == expected)
    }

    /// Whether a set or map is there and declared as we would: the types and
    /// lengths of key and value, the flags, the size, the counters, and what
    /// nft needs to print a `typeof` map.
    pub fn map_matches(&self, map: Map, family: Family) -> bool {
        let Some(state) = self.maps.get(map.name()) else { return false };
        let (ours, theirs) = (declaration(family, map), &state.declaration);
        let typeof_matches = |kind| userdata::find(&ours.userdata, kind) == userdata::find(&theirs.userdata, kind);
        // Versions of nft differ in the notes that `type` maps need none of.
        let userdata_matches = !map.is_typeof()
            || (typeof_matches(userdata::NFTNL_UDATA_SET_KEY_TYPEOF)
                && typeof_matches(userdata::NFTNL_UDATA_SET_DATA_TYPEOF));
        userdata_matches && Declaration { userdata: theirs.userdata.clone(), ..ours } == *theirs
    }

    /// How many elements a map has; `None` if the kernel (before 6.16) does not
    /// tell, or has no such map.
    pub fn count(&self, map: Map) -> Option<u32> {
        self.maps.get(map.name())?.count
    }

    /// The chains, ours and others, in no order.
    pub fn chain_names(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(String::as_str)
    }

    /// The sets and maps, ours and others, in no order.
    pub fn map_names(&self) -> impl Iterator<Item = &str> {
        self.maps.keys().map(String::as_str)
    }

    /// A chain by name.
    pub fn chain(&self, name: &str) -> Option<&ChainState> {
        self.chains.get(name)
    }

    /// Reads a `NFT_MSG_NEWCHAIN` of our table.
    pub(super) fn read_chain(&mut self, attributes: Attributes<'_>) {
        let Some(name) = attributes.string(NFTA_CHAIN_NAME) else { return };
        let base = attributes.get(NFTA_CHAIN_HOOK).map(|hook| Hooked {
            kind: attributes.string(NFTA_CHAIN_TYPE).unwrap_or_default().to_owned(),
            hook: hook.nested().be32(NFTA_HOOK_HOOKNUM).unwrap_or(u32::MAX),
            priority: hook.nested().be32(NFTA_HOOK_PRIORITY).unwrap_or_default() as i32,
            policy: attributes.be32(NFTA_CHAIN_POLICY).unwrap_or(NF_ACCEPT),
        });
        self.chains.insert(name.to_owned(), ChainState { base, rules: Vec::new() });
    }

    /// Reads a `NFT_MSG_NEWRULE` of our table; the chains come before.
    pub(super) fn read_rule(&mut self, attributes: Attributes<'_>) {
        let Some(name) = attributes.string(NFTA_RULE_CHAIN) else { return };
        let expressions = attributes.get(NFTA_RULE_EXPRESSIONS).map(|list| list.payload.to_vec());
        if let Some(chain) = self.chains.get_mut(name) {
            chain.rules.push(expressions.unwrap_or_default());
        }
    }

    /// Reads a `NFT_MSG_NEWSET` of our table.
    pub(super) fn read_set(&mut self, attributes: Attributes<'_>) {
        let Some(name) = attributes.string(NFTA_SET_NAME) else { return };
        let description = attributes.get(NFTA_SET_DESC).map(|desc| desc.nested()).unwrap_or_default();
        let fields = description.get(NFTA_SET_DESC_CONCAT).into_iter().flat_map(|list| list.nested());
        let expression = attributes.get(NFTA_SET_EXPR);
        let declaration = Declaration {
            // Of the flags, those that say what the set is; CONCAT and EXPR
            // appear or not depending on the kernel.
            flags: attributes.be32(NFTA_SET_FLAGS).unwrap_or_default() & !NFT_SET_EXPR,
            key_type: attributes.be32(NFTA_SET_KEY_TYPE).unwrap_or_default(),
            key_bytes: attributes.be32(NFTA_SET_KEY_LEN).unwrap_or_default(),
            data_type: attributes.be32(NFTA_SET_DATA_TYPE),
            // Of a verdict map the kernel says no length, or its own.
            data_bytes: match attributes.be32(NFTA_SET_DATA_TYPE) {
                Some(NFT_DATA_VERDICT) => Some(0),
                _ => attributes.be32(NFTA_SET_DATA_LEN),
            },
            size: description.be32(NFTA_SET_DESC_SIZE).unwrap_or_default(),
            fields: fields.filter_map(|field| field.nested().be32(NFTA_SET_FIELD_LEN)).collect(),
            counter: expression.is_some_and(|e| e.nested().string(NFTA_EXPR_NAME) == Some("counter")),
            userdata: attributes.get(NFTA_SET_USERDATA).map(|data| data.payload.to_vec()).unwrap_or_default(),
        };
        self.maps.insert(name.to_owned(), MapState { declaration, count: attributes.be32(NFTA_SET_COUNT) });
    }
}

/// Whether the kernel lists the expressions that we would write. It adds
/// attributes that we leave out; see [`same_attributes`].
fn same_expressions(ours: Attributes<'_>, kernels: Attributes<'_>) -> bool {
    ours.count() == kernels.count()
        && ours.zip(kernels).all(|(ours, kernels)| {
            let ((name, ours), (other, kernels)) = (parts(ours), parts(kernels));
            let same = if name == Some("nat") { same_nat } else { same_attributes };
            name == other && same(ours, kernels)
        })
}

/// The name and the data of an expression.
fn parts(expression: Attribute<'_>) -> (Option<&str>, Attributes<'_>) {
    let expression = expression.nested();
    let data = expression.get(NFTA_EXPR_DATA).map(|data| data.nested());
    (expression.string(NFTA_EXPR_NAME), data.unwrap_or_default())
}

/// Whether two lists hold the same attributes, in whichever order. One that
/// only the kernel lists must be zero: newer kernels list defaults of
/// attributes that older ones do not know.
fn same_attributes(ours: Attributes<'_>, kernels: Attributes<'_>) -> bool {
    let found = { ours }.all(|our| kernels.get(our.kind).is_some_and(|other| other.payload == our.payload));
    let mut additions = kernels.filter(|other| ours.get(other.kind).is_none());
    found && additions.all(|other| other.payload.iter().all(|byte| *byte == 0))
}

/// The kernel lists each bound of a range of one, and flags that follow from
/// which bounds there are.
fn same_nat(ours: Attributes<'_>, kernels: Attributes<'_>) -> bool {
    let implied = NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED;
    let bound = |list: Attributes<'_>, min, max| {
        let min = list.be32(min);
        (min, list.be32(max).or(min))
    };
    let parts = |list: Attributes<'_>| {
        (
            list.be32(NFTA_NAT_TYPE),
            list.be32(NFTA_NAT_FAMILY),
            bound(list, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_ADDR_MAX),
            bound(list, NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_REG_PROTO_MAX),
            list.be32(NFTA_NAT_FLAGS).unwrap_or_default() & !implied,
        )
    };
    parts(ours) == parts(kernels)
}
