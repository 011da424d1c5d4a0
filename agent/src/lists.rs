//! Lists of names in messages.

use std::fmt;

/// The first names of a list, and the number of the others: `eth0, eth1 and 3
/// more`.
pub fn some_of(names: &[impl fmt::Display], most: usize) -> String {
    let mut text = names.iter().take(most).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(most).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut() {
        assert_eq!(some_of(&["eth0", "eth1"], 2), "eth0, eth1");
        assert_eq!(some_of(&["eth0", "eth1", "eth2"], 1), "eth0 and 2 more");
        assert_eq!(some_of(&[""; 0], 1), "");
    }
}
