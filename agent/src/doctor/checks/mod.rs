//! The checks. Each takes the facts and returns its findings.

mod agent;
mod connections;
mod flow_table;
mod forwarding;
mod other_tables;
mod programs;
mod ranges;
mod rules;

use super::Finding;
use super::facts::Facts;

/// Runs every check.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let checks: [fn(&Facts) -> Vec<Finding>; 8] = [
        rules::check,
        forwarding::check,
        other_tables::check,
        programs::check,
        connections::check,
        ranges::check,
        flow_table::check,
        agent::check,
    ];
    checks.into_iter().flat_map(|check| check(facts)).collect()
}
