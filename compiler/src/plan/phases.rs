//! The law of visibility: when each operation of a plan becomes visible.
//!
//! Elements become visible per lookup, not per packet. A packet may see the old
//! verdict and then look for a slot in the new map, never the other way round.
//! So: *grow before pointing, point before shrinking*. Growing and pointing may
//! share a transaction. Shrinking comes in a later one, and a new chain in an
//! earlier one than the verdict that points to it.
//!
//! A change and a resync both put their operations into [`Phases`], and nothing
//! else decides about order. A change takes all transactions at the end
//! ([`Phases::finish`]); a resync takes full ones on its way
//! ([`Phases::take_full`]).

use super::{Action, Operation, Transaction};
use crate::model::{Family, PerFamily};
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Data, Element, Key};
use crate::ruleset::maps::{DataKind, Map};
use crate::ruleset::rule::Statement;
use crate::ruleset::skeleton::{SkeletonConfig, rules};
use arcstr::ArcStr;

/// The most operations of one transaction. One commit blocks every other
/// nftables writer of the namespace: this many take well below 50 ms. A
/// transaction is also in memory twice while it is sent, as operations and as
/// bytes: four times as many cost 4 MiB more at a first sync.
pub const MAX_OPERATIONS: usize = 2048;

/// The most verdicts of one transaction to a table that is in use. The kernel
/// walks over all verdicts there at every commit that adds one: 40 to 80 ms
/// beside 100,000 to 200,000. Adding 8,192 takes about 35 ms. Few large
/// transactions therefore hold the lock for little longer than many small ones,
/// and for much less time in total (decision 93).
const MAX_VERDICTS: usize = 4 * MAX_OPERATIONS;

/// How large transactions may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    operations: usize,
    verdicts: usize,
}

impl Sizes {
    /// The usual sizes, but for no more operations than the socket can send at
    /// once: not even for one that is fuller by an eighth.
    pub(super) fn at_most(operations: usize) -> Self {
        let most = (operations - operations / 9).max(1);
        Self { operations: MAX_OPERATIONS.min(most), verdicts: MAX_VERDICTS.min(most) }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self { operations: MAX_OPERATIONS, verdicts: MAX_VERDICTS }
    }
}

/// The data of an element besides its key.
pub(super) type Value = (Data, Option<ArcStr>);

/// The phase in which an operation becomes visible: the order of the variants
/// is the order of the commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// New chains, with their rules.
    Chains,
    /// Changed rules of the skeleton.
    Rules,
    /// Elements that leave interval sets: before those that come, since the
    /// kernel refuses overlaps, and together with them.
    IntervalRemovals,
    /// Elements that come into interval sets.
    IntervalAdditions,
    /// Source ranges that come: before a firewall leads to them.
    Ranges,
    /// Frontends that get a firewall, in an earlier transaction than what serves
    /// them. A packet that passed the firewall's look-up must not find in a later
    /// one what the firewall guards.
    Close,
    /// How long lists remember their clients. It comes before a list gets its
    /// number: no packet is to carry a number that leads nowhere, because it would
    /// keep it as its priority.
    Learn,
    /// Frontends and endpoints whose connections are masqueraded from now on:
    /// before a packet may reach such an endpoint.
    Masquerade,
    /// New and replaced elements that nothing points to yet.
    Grow,
    /// New and replaced verdicts that packets look for because of another verdict,
    /// or because they found none. They share transactions with [`Self::Point`],
    /// but where there are too many for one, they come first: otherwise a packet
    /// would follow a new `goto local-policy` to nothing.
    Inner,
    /// New, replaced and removed verdicts of frontends.
    Point,
    /// The rules of a table that was not there. They go behind all verdicts, so
    /// that the kernel need not follow them into the maps at every commit that
    /// fills these, and all Services begin to work at once.
    Connect,
    /// Frontends that lose their firewall, once nothing serves them that it
    /// guarded; and verdicts that nothing but another verdict leads to. A packet
    /// that followed one of these still finds what comes after it.
    Open,
    /// Elements that nothing points to any more.
    Shrink,
    /// Frontends and endpoints whose connections are no longer masqueraded. A
    /// packet looks them up last: one that found an endpoint just before it left
    /// still needs them.
    Unmasquerade,
}

/// The phases of what grows, which share transactions.
const GROWING: [Phase; 3] = [Phase::Learn, Phase::Masquerade, Phase::Grow];

/// The number of phases.
const PHASES: usize = Phase::Unmasquerade as usize + 1;

/// The change of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Added,
    Replaced,
    Removed,
}

/// The phase of a change to an element of a set or map that holds no intervals.
fn phase(map: Map, fate: Fate) -> Phase {
    let is_removed = fate == Fate::Removed;
    match map {
        Map::FirewallIps | Map::LocalFrontends(_) | Map::ShortCircuit(_) if is_removed => Phase::Open,
        Map::FirewallIps => Phase::Close,
        Map::SourceRanges | Map::SourceRangeMarkers if !is_removed => Phase::Ranges,
        // Elements that hold back packets without a frontend are removed only
        // after the frontend exists.
        Map::NoEndpoints(_) if is_removed => Phase::Shrink,
        Map::NoEndpoints(_) | Map::LocalFrontends(_) | Map::ShortCircuit(_) => Phase::Inner,
        Map::AffinityTimeouts if is_removed => Phase::Shrink,
        Map::AffinityTimeouts => Phase::Learn,
        Map::ClusterIps | Map::NodePortIps | Map::Masquerade(_) | Map::LocalPolicy(_) | Map::HairpinConnections => {
            if is_removed {
                Phase::Unmasquerade
            } else {
                Phase::Masquerade
            }
        }
        _ if map.data() == DataKind::Verdict => Phase::Point,
        _ if is_removed => Phase::Shrink,
        _ => Phase::Grow,
    }
}

/// Operations, sorted by when they may become visible.
#[derive(Debug, Default)]
pub(super) struct Phases {
    queues: [Vec<Operation>; PHASES],
    /// Tables that do not exist before the first of these operations.
    new_tables: PerFamily<bool>,
    sizes: Sizes,
}

impl Phases {
    /// Phases of a plan. No rule leads into these tables yet.
    pub(super) fn new(new_tables: PerFamily<bool>, sizes: Sizes) -> Self {
        Self { new_tables, sizes, ..Self::default() }
    }

    /// One element: the kernel's data under its key, and the desired data.
    pub(super) fn element(
        &mut self,
        family: Family,
        (map, key): (Map, Key),
        before: Option<Value>,
        after: Option<Value>,
        owner: Option<&ArcStr>,
    ) {
        if before == after {
            return;
        }
        let fate = match (&before, &after) {
            (Some(_), None) => Fate::Removed,
            (Some(_), Some(_)) => Fate::Replaced,
            (None, _) => Fate::Added,
        };
        let operation = |action| Operation { family, action, owner: owner.cloned() };
        let element = |(data, comment): Value| Element { map, key, data, comment };
        let removed = before.map(|value| operation(Action::DeleteElement(element(value))));
        let added = after.map(|value| operation(Action::AddElement(element(value))));
        if map.is_interval() {
            self.queue(Phase::IntervalRemovals).extend(removed);
            self.queue(Phase::IntervalAdditions).extend(added);
        } else {
            // A replacement is a removal with its addition behind it.
            self.queue(phase(map, fate)).extend(removed.into_iter().chain(added));
        }
    }

    /// A new chain with its rules.
    pub(super) fn make_chain(&mut self, skeleton: &SkeletonConfig, chain: Chain) {
        let family = skeleton.family;
        let operation = |action| Operation { family, action, owner: None };
        self.queue(Phase::Chains).push(operation(Action::AddChain(chain)));
        let is_connected_later = self.new_tables[family] && chain.base().is_some();
        let phase = if is_connected_later { Phase::Connect } else { Phase::Chains };
        let rules = rules(skeleton, chain).into_iter().map(|rule| operation(Action::AddRule(chain, rule)));
        self.queue(phase).extend(rules);
    }

    /// Changed rules of chains that exist: each chain is flushed and filled
    /// again.
    pub(super) fn change_rules(&mut self, operations: impl IntoIterator<Item = Operation>) {
        self.queue(Phase::Rules).extend(operations);
    }

    /// The rules of a new table's skeleton.
    pub(super) fn connect(&mut self, operations: impl IntoIterator<Item = Operation>) {
        self.queue(Phase::Connect).extend(operations);
    }

    /// The rules that are to connect new tables, which will be committed otherwise.
    pub(super) fn take_connections(&mut self) -> Vec<Operation> {
        self.take(Phase::Connect)
    }

    fn queue(&mut self, phase: Phase) -> &mut Vec<Operation> {
        &mut self.queues[phase as usize]
    }

    fn take(&mut self, phase: Phase) -> Vec<Operation> {
        std::mem::take(self.queue(phase))
    }

    /// The operations of several phases, in order.
    fn take_all(&mut self, phases: &[Phase]) -> Vec<Operation> {
        phases.iter().flat_map(|phase| self.take(*phase)).collect()
    }

    /// Returns full transactions; the rest stays. Verdicts are collected for
    /// longer than their targets, because the kernel checks the whole graph of
    /// jumps at every commit that adds one.
    pub(super) fn take_full(&mut self) -> Vec<Transaction> {
        if self.queue(Phase::Inner).len() + self.queue(Phase::Point).len() >= self.max_verdicts() {
            self.take_pointed()
        } else if GROWING.iter().map(|phase| self.queue(*phase).len()).sum::<usize>() >= self.sizes.operations {
            self.take_grown()
        } else {
            Vec::new()
        }
    }

    /// Everything that grows, with the chains before it: growing early never
    /// harms.
    fn take_grown(&mut self) -> Vec<Transaction> {
        let (mut transactions, grown) = self.take_growth();
        push_chunks(self.sizes.operations, grown, &mut transactions);
        transactions
    }

    /// The transactions that have to be visible before anything grows, and the
    /// operations that grow.
    fn take_growth(&mut self) -> (Vec<Transaction>, Vec<Operation>) {
        let mut transactions = chains_ahead(self.take(Phase::Chains));
        let mut grown =
            self.take_all(&[Phase::Rules, Phase::IntervalRemovals, Phase::IntervalAdditions, Phase::Ranges]);
        let closed = self.take(Phase::Close);
        if !closed.is_empty() {
            grown.extend(closed);
            push_chunks(self.sizes.operations, std::mem::take(&mut grown), &mut transactions);
        }
        grown.extend(self.take_all(&GROWING));
        (transactions, grown)
    }

    /// Everything but the operations that have to wait until all others are
    /// visible.
    pub(super) fn take_pointed(&mut self) -> Vec<Transaction> {
        let (mut transactions, mut grown) = self.take_growth();
        let mut pointed = self.take_all(&[Phase::Inner, Phase::Point]);
        // One commit for all, if it is not too large; else as few with verdicts
        // as can be.
        if grown.len() + pointed.len() <= fullest(self.sizes.operations) {
            grown.append(&mut pointed);
        }
        push_chunks(self.sizes.operations, grown, &mut transactions);
        push_chunks(self.max_verdicts(), pointed, &mut transactions);
        transactions
    }

    /// The most verdicts of one transaction. Nothing leads to those of a new table
    /// yet, so the kernel walks over none.
    fn max_verdicts(&self) -> usize {
        if self.new_tables.values().any(|is_new| *is_new) { self.sizes.operations } else { self.sizes.verdicts }
    }

    /// All transactions that are left, in order.
    pub(super) fn finish(&mut self) -> Vec<Transaction> {
        let mut transactions = self.take_pointed();
        transactions.extend(connections(self.take_connections()));
        // Not together: a packet may be between its look-ups.
        for phase in [Phase::Open, Phase::Shrink, Phase::Unmasquerade] {
            push_chunks(self.sizes.operations, self.take(phase), &mut transactions);
        }
        transactions
    }
}

/// Puts new chains into separate transactions, before anything points to them.
///
/// A packet keeps the generation of *rules* in which it entered a base chain,
/// but sees *elements* of the newest generation at every lookup. One that is on
/// its way while a transaction adds both would follow the new verdict into a
/// chain that is still empty for it, fall out of it and go on untranslated: see
/// decision 13.
///
/// Each rule that looks up endpoints ends a transaction: the kernel walks over
/// all elements of the map when it accepts the rule, and no other writer should
/// wait for more than one such walk.
fn chains_ahead(chains: Vec<Operation>) -> Vec<Transaction> {
    let walks = |operation: &Operation| match &operation.action {
        Action::AddRule(_, rule) => rule.0.iter().any(|statement| matches!(statement, Statement::Dnat(..))),
        _ => false,
    };
    let mut transactions = Vec::new();
    let mut operations = Vec::new();
    for operation in chains {
        let is_last = walks(&operation);
        operations.push(operation);
        if is_last {
            transactions.push(Transaction { operations: std::mem::take(&mut operations) });
        }
    }
    transactions.extend(transaction(operations));
    transactions
}

/// The rules of a new table. The kernel walks through a map once for every rule
/// that is bound to it, and once for every base chain that leads there: two
/// commits, so that none holds the lock for both.
pub(super) fn connections(rules: Vec<Operation>) -> impl Iterator<Item = Transaction> {
    let is_base =
        |operation: &Operation| matches!(operation.action, Action::AddRule(chain, _) if chain.base().is_some());
    let (base, inner): (Vec<Operation>, Vec<Operation>) = rules.into_iter().partition(is_base);
    [inner, base].into_iter().filter_map(transaction)
}

/// Operations that belong together whatever their number.
pub(super) fn transaction(operations: Vec<Operation>) -> Option<Transaction> {
    (!operations.is_empty()).then_some(Transaction { operations })
}

/// A transaction may be fuller than `most` by an eighth: no commit for the little.
const fn fullest(most: usize) -> usize {
    most + most / 8
}

/// Cuts a long list of operations into about equal parts, each of about `most`.
/// Operations that belong together are adjacent and are not separated.
///
/// Each part is a list of exactly its size. `Vec::split_off` would leave every
/// part with the capacity of all that followed it, which is quadratic.
fn push_chunks(most: usize, operations: Vec<Operation>, transactions: &mut Vec<Transaction>) {
    let mut left = operations.len();
    if left <= fullest(most) {
        transactions.extend(transaction(operations));
        return;
    }
    let mut operations = operations.into_iter().peekable();
    while left > fullest(most) {
        let parts = left.div_ceil(most);
        let mut part: Vec<Operation> = operations.by_ref().take(left.div_ceil(parts)).collect();
        while let Some(next) = operations.next_if(|next| part.last().is_some_and(|last| belongs_to(last, next))) {
            part.push(next);
        }
        left -= part.len();
        transactions.push(Transaction { operations: part });
    }
    transactions.extend(transaction(operations.collect()));
}

/// Returns whether the second operation must not become visible later than the
/// first.
fn belongs_to(first: &Operation, second: &Operation) -> bool {
    let interval = |element: &Element| element.map.is_interval();
    match (&first.action, &second.action) {
        (Action::DeleteElement(old), Action::AddElement(new)) => {
            (old.map, old.key) == (new.map, new.key) || (interval(old) && interval(new))
        }
        (Action::DeleteElement(old), Action::DeleteElement(new)) => interval(old) && interval(new),
        (Action::FlushChain(flushed), Action::AddRule(filled, _)) => flushed == filled,
        (Action::AddRule(one, _), Action::AddRule(other, _)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::model::{Endpoint, Protocol};
    use crate::ruleset::element::{ListNumber, Verdict};
    use crate::ruleset::target::{Domain, Pool};

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    fn value(data: Data) -> Option<Value> {
        Some((data, None))
    }

    /// The position of the transaction that holds an operation on this map.
    fn position(transactions: &[Transaction], map: Map) -> Option<usize> {
        transactions.iter().position(|transaction| {
            transaction.operations.iter().any(|operation| match &operation.action {
                Action::AddElement(element) | Action::DeleteElement(element) => element.map == map,
                _ => false,
            })
        })
    }

    #[test]
    fn what_shrinks_comes_after_what_points() {
        let mut phases = Phases::default();
        let drop = value(Data::Verdict(Verdict::Drop));
        let nothing = value(Data::Nothing);
        let key = Key::Address(address(1));
        phases.element(Family::Ipv4, (Map::ClusterIps, key), nothing.clone(), None, None);
        phases.element(Family::Ipv4, (Map::FirewallIps, key), drop.clone(), None, None);
        phases.element(Family::Ipv4, (Map::Frontends(Domain::Frontend), key), drop.clone(), None, None);
        // A packet that found the frontend's verdict may be about to look up this one.
        phases.element(Family::Ipv4, (Map::LocalFrontends(Domain::Frontend), key), drop.clone(), None, None);
        // A packet that found the firewall may be about to look up this one.
        phases.element(Family::Ipv4, (Map::SourceRanges, key), nothing.clone(), None, None);
        phases.element(Family::Ipv4, (Map::NoEndpoints(Domain::Frontend), key), drop.clone(), None, None);
        phases.element(Family::Ipv4, (Map::Frontends(Domain::NodePort), key), None, drop, None);
        phases.element(Family::Ipv4, (Map::NodePortIps, key), nothing.clone(), nothing, None);
        let transactions = phases.finish();
        let places = [
            Map::Frontends(Domain::Frontend),
            Map::Frontends(Domain::NodePort),
            Map::LocalFrontends(Domain::Frontend),
            Map::FirewallIps,
            Map::SourceRanges,
            Map::NoEndpoints(Domain::Frontend),
            Map::ClusterIps,
        ];
        // The source of a connection is decided last.
        let expected = [0, 0, 1, 1, 2, 2, 3].map(Some);
        assert_eq!(places.map(|map| position(&transactions, map)), expected);
        assert_eq!((transactions.len(), position(&transactions, Map::NodePortIps)), (4, None));
    }

    #[test]
    fn a_chain_is_there_before_what_grows_points_to_it() {
        let skeleton = SkeletonConfig {
            family: Family::Ipv4,
            detector: None,
            masquerade_all: false,
            nodeports_on_all_addresses: false,
        };
        let chain = Chain::LearnFor { seconds: 60 };
        let mut phases = Phases::default();
        for number in (1..).map_while(ListNumber::at).take(MAX_OPERATIONS) {
            let learn = value(Data::Verdict(Verdict::Goto(chain)));
            phases.element(Family::Ipv4, (Map::AffinityTimeouts, Key::List(number)), None, learn, None);
        }
        phases.make_chain(&skeleton, chain);
        let transactions = phases.take_full();
        assert!(matches!(transactions[0].operations[0].action, Action::AddChain(made) if made == chain));
        assert_eq!((transactions.len(), position(&transactions, Map::AffinityTimeouts)), (2, Some(1)));
        assert!(phases.finish().is_empty());
    }

    #[test]
    fn verdicts_that_packets_reach_come_in_few_transactions() {
        let transactions = |new_tables: PerFamily<bool>| {
            let mut phases = Phases::new(new_tables, Sizes::default());
            for number in 0..MAX_VERDICTS as u32 {
                let place = (Map::Frontends(Domain::Frontend), Key::Address(address(number)));
                phases.element(Family::Ipv4, place, None, value(Data::Verdict(Verdict::Drop)), None);
            }
            let full = phases.take_full();
            assert!(phases.finish().is_empty());
            full.len()
        };
        assert_eq!((transactions(PerFamily::default()), transactions(PerFamily::from_fn(|_| true))), (1, 4));
    }

    #[test]
    fn a_list_has_a_number_no_earlier_than_clients_are_remembered_under_it() {
        let mut phases = Phases::new(PerFamily::default(), Sizes::at_most(1));
        let Some(number) = ListNumber::at(1) else { panic!("no first number") };
        let lists = Map::AffinityLists(Domain::Frontend, Pool::Main);
        phases.element(Family::Ipv4, (lists, Key::Address(address(1))), None, value(Data::List(number)), None);
        let learn = value(Data::Verdict(Verdict::Goto(Chain::LearnFor { seconds: 60 })));
        phases.element(Family::Ipv4, (Map::AffinityTimeouts, Key::List(number)), None, learn, None);
        let transactions = phases.finish();
        assert_eq!([lists, Map::AffinityTimeouts].map(|map| position(&transactions, map)), [Some(1), Some(0)]);
    }

    /// Where the verdicts of many Services are cut into several transactions.
    #[test]
    fn what_verdicts_lead_to_comes_no_later_than_they() {
        let mut phases = Phases::new(PerFamily::default(), Sizes::at_most(1));
        let drop = value(Data::Verdict(Verdict::Drop));
        let key = Key::Address(address(1));
        let maps =
            [Map::Frontends, Map::LocalFrontends, Map::ShortCircuit, Map::NoEndpoints].map(|map| map(Domain::Frontend));
        for map in maps {
            phases.element(Family::Ipv4, (map, key), None, drop.clone(), None);
        }
        let transactions = phases.finish();
        assert_eq!((transactions.len(), position(&transactions, Map::Frontends(Domain::Frontend))), (4, Some(3)));
    }

    #[test]
    fn no_transaction_is_larger_than_the_socket_can_send() {
        for new_tables in [PerFamily::default(), PerFamily::from_fn(|_| true)] {
            let mut phases = Phases::new(new_tables, Sizes::at_most(450));
            let mut transactions = Vec::new();
            for number in 0..3000 {
                let key = Key::Address(address(number));
                let places = [
                    (Map::Frontends(Domain::Frontend), Data::Verdict(Verdict::Drop)),
                    (Map::ClusterIps, Data::Nothing),
                ];
                for (map, data) in places {
                    phases.element(Family::Ipv4, (map, key), None, value(data), None);
                }
                transactions.extend(phases.take_full());
            }
            transactions.extend(phases.finish());
            let sizes = transactions.iter().map(|transaction| transaction.operations.len());
            assert_eq!((sizes.clone().sum::<usize>(), sizes.max().filter(|most| *most > 450)), (6000, None));
        }
        assert_eq!(Sizes::at_most(usize::MAX), Sizes::default());
    }

    #[test]
    fn a_replacement_is_in_one_transaction() {
        let mut phases = Phases::default();
        let endpoint = |port| value(Data::Endpoint(Endpoint { address: address(7), port }));
        for number in 0..2 * MAX_OPERATIONS as u32 {
            let key = Key::Hairpin(Endpoint { address: address(number), port: 80 }, Protocol::Tcp);
            phases.element(
                Family::Ipv4,
                (Map::Endpoints(Domain::Frontend, Pool::Main), key),
                endpoint(1),
                endpoint(2),
                None,
            );
        }
        let transactions = phases.finish();
        assert!(transactions.len() > 2);
        for transaction in &transactions {
            assert!(transaction.operations.len() <= fullest(MAX_OPERATIONS));
            let is_whole = |pair: &[Operation]| pair.len() == 2 && belongs_to(&pair[0], &pair[1]);
            assert!(transaction.operations.chunks(2).all(is_whole));
        }
    }
}
