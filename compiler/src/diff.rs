//! What is programmed against what should be: ordered transactions.

use std::sync::Arc;

use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::Element;
use crate::ruleset::maps::Map;
use crate::ruleset::rule::Rule;

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
    /// Remove an element that is there (data and comment do not count).
    DeleteElement(Element),
}

/// A change, the table it is for, and the Service it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The table's family.
    pub family: Family,
    /// What to do.
    pub action: Action,
    /// `namespace/name` of the Service, or `None` for the skeleton: names the
    /// culprit when the kernel refuses the operation.
    pub owner: Option<Arc<str>>,
}

/// Operations that become visible together. After each transaction of a plan
/// the data path is consistent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The operations, in order.
    pub operations: Vec<Operation>,
}
