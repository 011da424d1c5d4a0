//! Over how many slots a balancing chain draws.
//!
//! With a chain for each number of endpoints, one endpoint more is another
//! verdict, and at a commit that adds a verdict the kernel walks through those
//! of all Services. A new chain also costs a walk through all endpoints. So
//! only the smallest numbers have separate chains; larger ones share one for
//! each power of two: see decision 14.

use std::fmt;

/// Over how many slots connections are spread, and how many of them hold an
/// endpoint. [`Spread::of`] makes the one for a number of endpoints; names of
/// chains with any other do not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Spread {
    /// The number of slots, with an endpoint in each: 1 to
    /// [`Spread::MAX_EXACT`].
    Exactly(u32),
    /// The number of slots, one less than a power of two and above
    /// [`Spread::MAX_EXACT`], of which more than half hold an endpoint. A draw
    /// that hits an empty slot is repeated.
    ///
    /// One less, so that a Service of 4, 8 or 16 endpoints has free slots for
    /// those that a rolling update adds for a while.
    AtMost(u32),
}

impl Spread {
    /// Up to this number of endpoints, each number has a separate chain.
    pub const MAX_EXACT: u32 = 3;

    /// Returns how connections are spread over this many endpoints, at least 1.
    /// The endpoints occupy the slots from 0 on, without a gap.
    pub fn of(endpoints: u32) -> Spread {
        if endpoints <= Self::MAX_EXACT {
            Spread::Exactly(endpoints)
        } else {
            // All bits below the highest that is set.
            Spread::AtMost(u32::MAX >> endpoints.leading_zeros())
        }
    }

    /// Slots 0 up to this number, exclusive, are drawn from.
    pub fn slots(self) -> u32 {
        match self {
            Spread::Exactly(slots) | Spread::AtMost(slots) => slots,
        }
    }

    /// Slots 0 up to this number, exclusive, always hold an endpoint, whatever
    /// the number of endpoints. The last draw is from these.
    pub fn always_filled(self) -> u32 {
        match self {
            Spread::Exactly(slots) => slots,
            Spread::AtMost(slots) => slots / 2 + 1,
        }
    }
}

impl fmt::Display for Spread {
    /// Prints the end of the chain's name: `3`, `max-7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spread::Exactly(slots) => write!(f, "{slots}"),
            Spread::AtMost(slots) => write!(f, "max-{slots}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Spread::{self, AtMost, Exactly};

    #[test]
    fn small_numbers_are_exact_and_larger_ones_share_powers_of_two() {
        for (endpoints, spread) in [
            (1, Exactly(1)),
            (3, Exactly(3)),
            (4, AtMost(7)),
            (7, AtMost(7)),
            (8, AtMost(15)),
            (9_999, AtMost(16_383)),
            (10_000, AtMost(16_383)),
            (65_535, AtMost(65_535)),
            (u32::MAX, AtMost(u32::MAX)),
        ] {
            assert_eq!(Spread::of(endpoints), spread, "{endpoints}");
        }
    }

    #[test]
    fn what_is_always_filled_is_filled() {
        for endpoints in 1..70_000 {
            let spread = Spread::of(endpoints);
            assert!(spread.always_filled() <= endpoints && endpoints <= spread.slots(), "{endpoints}: {spread:?}");
            // More than half: each draw finds an endpoint at least every second time.
            assert!(2 * endpoints > spread.slots(), "{endpoints}: {spread:?}");
        }
    }
}
