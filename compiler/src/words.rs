//! Words in messages.

use std::fmt::Display;

/// A number of things, with the right form of their word: `1 endpoint`, `2
/// endpoints`. The plural of the word ends with `s`.
pub fn count<N: Display + PartialEq + From<u8>>(number: N, word: &str) -> String {
    let ending = if number == N::from(1) { "" } else { "s" };
    format!("{number} {word}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!([0_usize, 1, 2].map(|number| count(number, "Service")), ["0 Services", "1 Service", "2 Services"]);
    }
}
