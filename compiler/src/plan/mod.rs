//! Ordered transactions from the programmed state to the desired one.
//!
//! A [`Planner`] knows the programmed state. [`Planner::update`] plans the
//! changes in the store, and processes only changed Services. [`Planner::resync`]
//! plans from the kernel's state to the desired one.
//!
//! * [`planner`]: the programmed state, and the path of a change;
//! * [`resync`]: the start, and the repair;
//! * `family_state`: the programmed state of one family;
//! * `node`: the change of the node;
//! * `fill`: a start that begins while the lists arrive;
//! * `phases`: the law of visibility: when each operation becomes visible;
//! * [`claims`]: which Service has a frontend that several want;
//! * `compile`: one Service, or why it is too large;
//! * [`slots`]: which endpoint sits in which slot;
//! * `lists`: the numbers of endpoint lists that clients stick to;
//! * `adopt`: slots and numbers that the kernel holds already;
//! * `counted`: shared elements, and chains that elements point to;
//! * `net`: the net effect of several Services on one element;
//! * `pieces`: very many Services, in plans of a bounded size;
//! * `kernel_state`: the kernel's state;
//! * `display`: operations as nft commands;
//! * [`excerpt`]: the part of the rule set that decides about one packet.

mod adopt;
pub mod claims;
mod compile;
mod counted;
mod display;
pub mod excerpt;
mod family_state;
mod fill;
mod kernel_state;
mod lists;
mod net;
mod node;
mod phases;
mod pieces;
pub mod planner;
pub mod resync;
pub mod slots;

pub use compile::TooLarge;
pub use kernel_state::{KernelElements, KernelState};
pub use phases::MAX_OPERATIONS;
pub use pieces::PIECE;
pub use planner::{Plan, Planner};
pub use resync::Resync;

use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::Element;
use crate::ruleset::maps::Map;
use crate::ruleset::rule::Rule;
use arcstr::ArcStr;

/// One change to the kernel's rule set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the table; no error if it exists.
    AddTable,
    /// Make a set or map; no error if it exists.
    AddMap(Map),
    /// Make a chain; no error if it exists.
    AddChain(Chain),
    /// Take all rules out of a chain.
    FlushChain(Chain),
    /// Append a rule to a chain.
    AddRule(Chain, Rule),
    /// Remove a chain that nothing points to.
    DeleteChain(Chain),
    /// Remove a set or map, with its elements, that no rule refers to.
    DeleteMap(Map),
    /// Add an element that is not there.
    AddElement(Element),
    /// Remove an existing element (data and comment do not count).
    DeleteElement(Element),
}

/// A change, the table it is for, and the Service it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The table's family.
    pub family: Family,
    /// The operation.
    pub action: Action,
    /// `namespace/name` of the Service, or `None` for the skeleton: names the
    /// culprit when the kernel refuses the operation.
    pub owner: Option<ArcStr>,
}

/// Operations that become visible together. After each transaction of a plan
/// the data path is consistent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The operations, in order.
    pub operations: Vec<Operation>,
}
