//! nft text of the rule set, exactly as `nft list ruleset` prints it.

use crate::ruleset::Family;
use crate::ruleset::rule::Rule;

/// One rule as nft text.
pub fn rule(_family: Family, _rule: &Rule) -> String {
    String::new()
}
