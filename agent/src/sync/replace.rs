//! Replaces a table that can't be changed in place: one of another layout, or
//! one whose sets or hooks another program has changed.
//!
//! A table is never deleted before another one serves. The desired state is
//! programmed into a *stand-in*, a table under a name of its own, while the old
//! one serves. Then the old one is deleted and recreated under its name, while
//! the stand-in serves. Finally the stand-in is deleted. An agent that is killed
//! at any point leaves at least one complete table, and the next one goes on
//! from there (decision 70). A table is switched off before it is deleted; a main
//! table that is switched off beside a stand-in has been replaced already.
//!
//! While two tables serve, a new connection is translated by the one that was
//! made later, since its chains come first on each hook. It learned of the same
//! Services.

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::plan::{Action, KernelElements, Transaction};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::target::{Domain, Pool};
use vmap_proxy_compiler::ruleset::{Family, TABLE};

use super::affinity::learned_of;
use super::compare::Read;
use super::repair::Pass;
use super::report::SyncReport;
use super::{SyncError, Syncer};
use crate::netlink::{Kernel, NetlinkError, OwnTable, TableState, await_packets};

/// The maps by which clients are remembered. Their entries go over into a new
/// table if all of them are declared as they should be.
const AFFINITY_MAPS: [Map; 6] = [
    Map::Affinity,
    Map::AffinityTimeouts,
    Map::AffinityLists(Domain::Frontend, Pool::Main),
    Map::AffinityLists(Domain::Frontend, Pool::ShortCircuit),
    Map::AffinityLists(Domain::NodePort, Pool::Main),
    Map::AffinityLists(Domain::NodePort, Pool::ShortCircuit),
];

/// The learned entries of tables that are being replaced. They go over before
/// packets reach the new table, and once more before the old one is deleted.
#[derive(Debug, Default)]
pub(super) struct Carry {
    /// The table that has them.
    from: PerFamily<Option<OwnTable>>,
    /// Whether the new table has those learned before packets reached it.
    done: PerFamily<bool>,
}

impl Carry {
    /// Takes the entries over if this transaction leads packets into the new
    /// table.
    ///
    /// # Errors
    /// If the agent is to end. Any other failure costs only the entries, and is
    /// logged.
    pub(super) fn before(&mut self, transaction: &Transaction, kernel: &mut Kernel) -> Result<(), NetlinkError> {
        for family in Family::ALL {
            if !self.done[family] && self.from[family].is_some() && connects(transaction, family) {
                self.done[family] = true;
                self.copy(family, kernel)?;
            }
        }
        Ok(())
    }

    /// Copies the entries that the new table does not have.
    fn copy(&self, family: Family, kernel: &mut Kernel) -> Result<(), NetlinkError> {
        let Some(from) = self.from[family] else { return Ok(()) };
        let to = match from {
            OwnTable::Main => OwnTable::StandIn,
            OwnTable::StandIn => OwnTable::Main,
        };
        let learned = kernel.read_contents_of(from, family, Map::Affinity);
        match learned.and_then(|(learned, _)| kernel.add_learned(to, family, &learned)) {
            Err(error) if error.is_stopped() => Err(error),
            Err(error) => {
                tracing::warn!(
                    "{family} clients of Services with session affinity may be placed again: what was learned could not \
                     go over into the table {}: {error}",
                    to.name()
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

impl Syncer {
    /// Reads the parts of a table that give numbers to lists, and notes that
    /// what packets learned there is to go over.
    pub(super) fn read_earlier(
        &mut self,
        own: OwnTable,
        table: &TableState,
        family: Family,
        read: &mut Read,
    ) -> Result<(), SyncError> {
        if !AFFINITY_MAPS.into_iter().all(|map| table.map_matches(map, family)) {
            return Ok(());
        }
        let mut earlier = KernelElements::default();
        for map in AFFINITY_MAPS {
            let (elements, _) = self.kernel.read_contents_of(own, family, map)?;
            for state in elements {
                match learned_of(&state.element) {
                    Some((number, _)) => _ = read.states[family].learned.insert(number),
                    None => earlier.insert(state.element),
                }
            }
        }
        read.states[family].earlier = earlier;
        read.carry.from[family] = Some(own);
        Ok(())
    }

    /// Programs everything into stand-ins, and deletes the outdated tables once
    /// these serve. The next pass recreates them.
    pub(super) fn replace(&mut self, read: Read, report: &mut SyncReport) -> Result<Pass, SyncError> {
        let Read { states, looked_up, outdated, stand_ins, mut carry, .. } = read;
        for family in Family::ALL {
            // The outdated table still serves: what is in the stand-in does not matter.
            if outdated[family] && stand_ins[family] {
                self.kernel.retire_table(OwnTable::StandIn, family)?;
            }
        }
        let directed = outdated.map(|outdated| if outdated { OwnTable::StandIn } else { OwnTable::Main });
        self.kernel.direct_to(directed);
        match self.send_difference(states, &looked_up, &mut carry, report)? {
            Pass::Done => {
                self.hand_over(outdated, OwnTable::Main, &carry)?;
                Ok(Pass::Replaced)
            }
            other => Ok(other),
        }
    }

    /// Deletes tables that others have replaced.
    pub(super) fn hand_over(
        &mut self,
        families: PerFamily<bool>,
        from: OwnTable,
        carry: &Carry,
    ) -> Result<(), SyncError> {
        if families.values().all(|family| !family) {
            return Ok(());
        }
        // A packet that entered a hook before the new table was there passes only the old one.
        await_packets();
        for (family, is_replaced) in families {
            if is_replaced {
                carry.copy(family, &mut self.kernel)?;
                self.kernel.retire_table(from, family)?;
                match from {
                    OwnTable::Main => {
                        tracing::info!("table {} {TABLE} was replaced: the new one follows", family.keyword())
                    }
                    OwnTable::StandIn => tracing::info!("table {} {TABLE} is complete again", family.keyword()),
                }
            }
        }
        Ok(())
    }
}

/// Returns whether packets pass through a table of this family from this
/// transaction on.
fn connects(transaction: &Transaction, family: Family) -> bool {
    transaction.operations.iter().any(|operation| {
        let is_base = matches!(&operation.action, Action::AddRule(chain, _) if chain.base().is_some());
        is_base && operation.family == family
    })
}
