//! The kernel's version of our table, compared with the desired one.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::rule::Rule;
use vmap_proxy_compiler::ruleset::skeleton::{SkeletonConfig, rules};
use vmap_proxy_compiler::ruleset::{Family, LAYOUT};

use super::POLICY_ACCEPT;
use super::elements::comment_in;
use super::expressions::write_rule;
use super::foreign::{ForeignKind, ForeignObject};
use super::sets::{Declaration, declaration, userdata};
use crate::message::{Attribute, Attributes, Writer};
use crate::uapi::*;

impl fmt::Display for ChainFault {
    /// The end of a sentence about the chain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Differs => "has other rules",
        })
    }
}

/// One of our tables, as the kernel lists it: chains with their rules and the
/// declarations of sets and maps, but not their elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    /// `NFT_TABLE_F_*`.
    flags: u32,
    /// The comment of the table.
    comment: Option<String>,
    /// The netlink address of the socket that owns the table, if one does.
    owner: Option<u32>,
    chains: HashMap<String, ChainState>,
    maps: HashMap<String, MapState>,
    foreign: Vec<ForeignObject>,
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

/// A set or map as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapState {
    declaration: Declaration,
    /// Its number of elements, where the kernel reports it.
    count: Option<u32>,
}

impl ChainState {
    /// Its number of rules.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The expressions of each rule (`NFTA_LIST_ELEM`), in order.
    pub fn rules(&self) -> impl Iterator<Item = Attributes<'_>> {
        self.rules.iter().map(|rule| Attributes::new(rule))
    }

    /// The rules' expressions as the kernel encodes them: for comparisons
    /// with other programs' view of the same chain.
    pub fn rule_expressions(&self) -> &[Vec<u8>] {
        &self.rules
    }
}

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainFault {
    /// It does not exist.
    Missing,
    /// It has other rules, another hook or another policy.
    Differs,
}

impl TableState {
    /// Compares all chains of ours with the rules that this configuration makes:
    /// first those that are missing, then those that differ, each in the order of
    /// listings. Compares as it is asked for more.
    pub fn wrong_chains<'a>(
        &'a self,
        skeleton: &'a SkeletonConfig,
    ) -> impl Iterator<Item = (Chain, ChainFault)> + use<'a> {
        let names: BTreeSet<Chain> = self.chain_names().filter_map(Chain::parse).collect();
        let missing = Chain::missing(&names).into_iter().map(|chain| (chain, ChainFault::Missing));
        let differs = move |chain: &Chain| !self.chain_matches(*chain, skeleton.family, &rules(skeleton, *chain));
        missing.chain(names.into_iter().filter(differs).map(|chain| (chain, ChainFault::Differs)))
    }

    /// Returns whether a chain exists and equals `rules`: the same rules in the
    /// same order, and on the same hook with the same priority and an accepting
    /// policy if it is a base chain.
    pub fn chain_matches(&self, chain: Chain, family: Family, rules: &[Rule]) -> bool {
        let Some(state) = self.chains.get(&chain.to_string()) else { return false };
        let mut writer = Writer::as_listed();
        state.base == hooked(chain)
            && state.rules.len() == rules.len()
            && state.rules.iter().zip(rules).all(|(state, rule)| {
                writer.clear();
                write_rule(&mut writer, family, rule);
                same_expressions(Attributes::new(writer.bytes()), Attributes::new(state))
            })
    }

    /// Returns whether a chain exists with the right hook, which cannot be
    /// changed in place.
    pub fn base_matches(&self, chain: Chain) -> bool {
        let Some(state) = self.chains.get(&chain.to_string()) else { return false };
        match (&state.base, hooked(chain)) {
            (Some(base), Some(expected)) => Hooked { policy: base.policy, ..expected } == *base,
            (base, expected) => base.is_none() && expected.is_none(),
        }
    }

    /// Returns our base chains with a changed policy, which can be changed back
    /// in place.
    pub fn wrong_policies(&self) -> Vec<Chain> {
        let of_ours = |(name, state): (&String, &ChainState)| {
            let wrong = state.base.as_ref().is_some_and(|base| base.policy != POLICY_ACCEPT);
            Chain::parse(name).filter(|_| wrong)
        };
        self.chains.iter().filter_map(of_ours).collect()
    }

    /// Returns whether the table is switched off as a whole (`flags dormant`).
    pub fn is_dormant(&self) -> bool {
        self.flags & NFT_TABLE_F_DORMANT != 0
    }

    /// Returns whether the table survives the process that owned it (`flags
    /// persist`). The flag can neither be given to an existing table nor taken
    /// from it.
    pub fn is_persistent(&self) -> bool {
        self.flags & NFT_TABLE_F_PERSIST != 0
    }

    /// Returns whether the table is left over from a process that owned it, so
    /// that another one may take it over.
    pub fn is_orphan(&self) -> bool {
        self.is_persistent() && self.owner.is_none()
    }

    /// The flags that an update of the table must repeat: the kernel refuses to
    /// change them.
    pub fn lasting_flags(&self) -> u32 {
        self.flags & (NFT_TABLE_F_PERSIST | NFT_TABLE_F_OWNER)
    }

    /// Returns whether the table has the layout of this version, by its comment.
    /// The tables of versions before there were layout numbers have none.
    pub fn layout_matches(&self) -> bool {
        self.comment.as_deref() == Some(LAYOUT)
    }

    /// The comment of the table, unprintable characters escaped, for messages.
    pub fn layout(&self) -> String {
        self.comment.as_ref().map_or_else(|| "no layout number".to_owned(), |text| text.escape_debug().to_string())
    }

    /// The netlink address of the socket that owns the table (`flags owner`):
    /// no other process may change it. Usually that is the number of a process.
    pub fn owner(&self) -> Option<u32> {
        self.owner
    }

    /// Returns the foreign objects in the table, except for elements and rules
    /// in our own chains.
    pub fn foreign(&self) -> &[ForeignObject] {
        &self.foreign
    }

    /// Returns whether a set or map exists with the desired declaration: the
    /// types and lengths of key and value, the flags, the size, the counters,
    /// and the data that nft needs to print a `typeof` map.
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

    /// Returns the number of elements of a map; `None` if the kernel (before
    /// 6.16) does not report it, or has no such map.
    pub fn count(&self, map: Map) -> Option<u32> {
        self.maps.get(map.name())?.count
    }

    /// The chains, ours and others, in no order.
    pub fn chain_names(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(String::as_str)
    }

    /// The base chains, ours and others, in no order.
    pub fn base_chain_names(&self) -> impl Iterator<Item = &str> {
        self.chains.iter().filter(|(_, state)| state.base.is_some()).map(|(name, _)| name.as_str())
    }

    /// The sets and maps, ours and others, in no order.
    pub fn map_names(&self) -> impl Iterator<Item = &str> {
        self.maps.keys().map(String::as_str)
    }

    /// A chain by name.
    pub fn chain(&self, name: &str) -> Option<&ChainState> {
        self.chains.get(name)
    }

    /// Reads the `NFT_MSG_NEWTABLE` of our table.
    pub fn read_table(&mut self, attributes: Attributes<'_>) {
        self.flags = attributes.be32(NFTA_TABLE_FLAGS).unwrap_or_default();
        self.comment = attributes.get(NFTA_TABLE_USERDATA).and_then(|userdata| comment_in(userdata.payload));
        self.owner = attributes.be32(NFTA_TABLE_OWNER).filter(|_| self.flags & NFT_TABLE_F_OWNER != 0);
    }

    /// Reads a `NFT_MSG_NEWCHAIN` of our table.
    pub fn read_chain(&mut self, attributes: Attributes<'_>) {
        let Some(name) = name(attributes, NFTA_CHAIN_NAME) else { return };
        let base = attributes.get(NFTA_CHAIN_HOOK).map(|hook| Hooked {
            kind: attributes.string(NFTA_CHAIN_TYPE).unwrap_or_default().to_owned(),
            hook: hook.nested().be32(NFTA_HOOK_HOOKNUM).unwrap_or(u32::MAX),
            priority: hook.nested().be32(NFTA_HOOK_PRIORITY).unwrap_or_default() as i32,
            policy: attributes.be32(NFTA_CHAIN_POLICY).unwrap_or(POLICY_ACCEPT),
        });
        // A chain without a name, part of the rule that jumps to it.
        let is_binding = attributes.be32(NFTA_CHAIN_FLAGS).unwrap_or_default() & NFT_CHAIN_BINDING != 0;
        if Chain::parse(&name).is_none() && !is_binding {
            let kind = if base.is_some() { ForeignKind::BaseChain } else { ForeignKind::Chain };
            self.add_foreign(kind, attributes, NFTA_CHAIN_NAME);
        }
        self.chains.insert(name, ChainState { base, rules: Vec::new() });
    }

    /// Reads a `NFT_MSG_NEWRULE` of our table; the chains come before.
    pub fn read_rule(&mut self, attributes: Attributes<'_>) {
        let Some(name) = name(attributes, NFTA_RULE_CHAIN) else { return };
        let expressions = attributes.get(NFTA_RULE_EXPRESSIONS).map(|list| list.payload.to_vec());
        if let Some(chain) = self.chains.get_mut(&name) {
            chain.rules.push(expressions.unwrap_or_default());
        }
    }

    /// Reads a `NFT_MSG_NEWSET` of our table.
    pub fn read_set(&mut self, attributes: Attributes<'_>) {
        let Some(name) = name(attributes, NFTA_SET_NAME) else { return };
        let flags = attributes.be32(NFTA_SET_FLAGS).unwrap_or_default();
        if Map::parse(&name).is_none() {
            // A chain without a name is removed with its rule.
            if flags & NFT_SET_ANONYMOUS == 0 {
                self.add_foreign(ForeignKind::Set, attributes, NFTA_SET_NAME);
            }
        }
        let description = attributes.get(NFTA_SET_DESC).map(|desc| desc.nested()).unwrap_or_default();
        let fields = description.get(NFTA_SET_DESC_CONCAT).into_iter().flat_map(|list| list.nested());
        let expression = attributes.get(NFTA_SET_EXPR);
        let declaration = Declaration {
            // The flags that define the set. CONCAT and EXPR appear or not
            // depending on the kernel.
            flags: flags & !NFT_SET_EXPR,
            key_type: attributes.be32(NFTA_SET_KEY_TYPE).unwrap_or_default(),
            key_bytes: attributes.be32(NFTA_SET_KEY_LEN).unwrap_or_default(),
            data_type: attributes.be32(NFTA_SET_DATA_TYPE),
            // For a verdict map the kernel reports no length, or its own.
            data_bytes: match attributes.be32(NFTA_SET_DATA_TYPE) {
                Some(NFT_DATA_VERDICT) => Some(0),
                _ => attributes.be32(NFTA_SET_DATA_LEN),
            },
            size: description.be32(NFTA_SET_DESC_SIZE).unwrap_or_default(),
            fields: fields.filter_map(|field| field.nested().be32(NFTA_SET_FIELD_LEN)).collect(),
            counter: expression.is_some_and(|e| e.nested().string(NFTA_EXPR_NAME) == Some("counter")),
            timeout: attributes.get(NFTA_SET_TIMEOUT).and_then(|timeout| timeout.be64()).unwrap_or_default(),
            collects_every: attributes.be32(NFTA_SET_GC_INTERVAL).unwrap_or_default(),
            userdata: attributes.get(NFTA_SET_USERDATA).map(|data| data.payload.to_vec()).unwrap_or_default(),
        };
        self.maps.insert(name, MapState { declaration, count: attributes.be32(NFTA_SET_COUNT) });
    }

    /// Reads a `NFT_MSG_NEWOBJ` of our table: a counter, quota, limit or the
    /// like. We have none.
    pub fn read_object(&mut self, attributes: Attributes<'_>) {
        let kind = attributes.be32(NFTA_OBJ_TYPE).unwrap_or_default();
        self.add_foreign(ForeignKind::Object(kind), attributes, NFTA_OBJ_NAME);
    }

    /// Reads a `NFT_MSG_NEWFLOWTABLE` of our table. We have none.
    pub fn read_flowtable(&mut self, attributes: Attributes<'_>) {
        self.add_foreign(ForeignKind::Flowtable, attributes, NFTA_FLOWTABLE_NAME);
    }

    fn add_foreign(&mut self, kind: ForeignKind, attributes: Attributes<'_>, name: u16) {
        if let Some(name) = attributes.get(name) {
            self.foreign.push(ForeignObject { kind, name: name.payload.to_vec() });
        }
    }
}

/// The hook of one of our base chains.
fn hooked(chain: Chain) -> Option<Hooked> {
    chain.base().map(|base| Hooked {
        kind: if base.nat { "nat" } else { "filter" }.to_owned(),
        hook: base.hook.number(),
        priority: base.priority,
        policy: POLICY_ACCEPT,
    })
}

/// Returns a name as text. A foreign name need not be UTF-8.
fn name(attributes: Attributes<'_>, kind: u16) -> Option<String> {
    let bytes = attributes.get(kind)?.payload;
    Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
}

/// Returns whether the kernel lists the desired expressions. It adds attributes
/// that we leave out; see [`same_attributes`].
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

/// Returns whether two lists hold the same attributes, in any order. An
/// attribute that only the kernel lists must be zero: newer kernels list
/// defaults of attributes that older ones do not know.
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
