//! Compiles objects to a complete rule set in one call: the rule set of a first
//! sync on a node without our tables.

use crate::model::checked::CheckedChange;
use crate::model::convert::Problem;
use crate::model::{Change, Object, ObjectRef, PerFamily, ProxyConfig, Store};
use crate::plan::{Planner, TooLarge};
use crate::ruleset::table::Ruleset;

/// A rule set, and the parts of the objects that are not in it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Compilation {
    /// The tables of both families, complete.
    pub ruleset: Ruleset,
    /// Fields that can't be used. Each costs its object or a part of it, never
    /// another object.
    pub problems: Vec<Problem>,
    /// Services that ask for too many elements, and are not in the rule set.
    pub too_large: Vec<TooLarge>,
    /// EndpointSlices whose Service is not among the objects, sorted.
    pub lone_slices: Vec<ObjectRef>,
}

/// Compiles Kubernetes objects for the node that `config` names.
///
/// The kernel is not queried: the addresses on the node's interfaces are
/// assumed to be those of its Node object.
pub fn compile(config: ProxyConfig, objects: impl IntoIterator<Item = Object>) -> Compilation {
    let mut store = Store::new(config.node_name.clone());
    let problems = objects.into_iter().flat_map(|object| store.apply(Change::Apply(object))).collect();
    compile_all(config, store, problems)
}

/// [`compile()`] of objects that were [checked](CheckedChange::new) for the node
/// that `config` names. Their problems are known then, and not in the result.
pub fn compile_checked(config: ProxyConfig, changes: impl IntoIterator<Item = CheckedChange>) -> Compilation {
    let mut store = Store::new(config.node_name.clone());
    changes.into_iter().for_each(|change| store.take(change));
    compile_all(config, store, Vec::new())
}

/// Programs a store for a node without our tables, without a kernel: returns the
/// planner as it is after a first sync.
///
/// If the addresses on the node's interfaces are not known, they are assumed to
/// be those of its Node object.
pub fn program(config: ProxyConfig, store: &mut Store) -> Planner {
    if store.node().interface_addresses.is_empty() {
        store.set_interface_addresses(store.node().addresses.clone());
    }
    let mut planner = Planner::new(config, store.node());
    // The operations for an empty kernel are not needed, because the planner
    // knows the resulting elements.
    planner.resync(store, PerFamily::default()).for_each(drop);
    planner
}

fn compile_all(config: ProxyConfig, mut store: Store, problems: Vec<Problem>) -> Compilation {
    let mut lone_slices: Vec<ObjectRef> = store.lone_slices().collect();
    lone_slices.sort_unstable();
    let mut planner = program(config, &mut store);
    Compilation { ruleset: planner.ruleset(), problems, too_large: planner.take_too_large(), lone_slices }
}
