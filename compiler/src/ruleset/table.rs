//! The complete rule set as one value: `render` prints it, `evaluate` walks
//! through it, and a kernel with it would list the same.

use std::collections::{BTreeMap, BTreeSet};

use super::Family;
use super::chains::Chain;
use super::element::{Data, Element, Verdict};
use super::rule::Rule;
use super::skeleton::{self, SkeletonConfig};

/// One family's table, complete: skeleton and elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The family whose table this is.
    pub family: Family,
    /// The parameters of the rules.
    pub config: SkeletonConfig,
    /// Every chain and its rules, in order.
    pub chains: BTreeMap<Chain, Vec<Rule>>,
    /// The elements of all sets and maps, in no particular order.
    pub elements: Vec<Element>,
}

impl Table {
    /// Completes elements to a new table: adds the fixed skeleton, the chains
    /// that are made [ahead](Chain::AHEAD), and each numbered chain that the
    /// verdict of an element points to, with the chains that it needs.
    pub fn new(config: SkeletonConfig, elements: Vec<Element>) -> Table {
        let pointed_to = elements.iter().filter_map(|element| match element.data {
            Data::Verdict(Verdict::Goto(chain)) => Some(chain),
            _ => None,
        });
        let chains = Chain::FIXED
            .into_iter()
            .chain(Chain::AHEAD)
            .chain(pointed_to.flat_map(|chain| chain.needs().chain([chain])))
            .collect::<BTreeSet<Chain>>()
            .into_iter()
            .map(|chain| (chain, skeleton::rules(&config, chain)))
            .collect();
        Table { family: config.family, config, chains, elements }
    }

    /// Adds chains, with their rules, that no element here leads to.
    #[must_use]
    pub fn with_chains(mut self, chains: impl IntoIterator<Item = Chain>) -> Table {
        let config = &self.config;
        self.chains.extend(chains.into_iter().map(|chain| (chain, skeleton::rules(config, chain))));
        self
    }
}

/// The tables of both families, or of the one that the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// At most one table a family, IPv4 first.
    pub tables: Vec<Table>,
}
