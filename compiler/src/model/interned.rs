//! Values of which a cluster has few different ones, each in memory once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use arcstr::ArcStr;
use foldhash::fast::RandomState;

/// The number of values from which on unused ones are looked for.
const FIRST_LIMIT: usize = 1024;

/// A value that others may have, too, and that knows whether they do.
pub(super) trait Counted: Clone + Eq + Hash {
    /// Whether anybody else has it.
    fn is_shared(&self) -> bool;
}

impl<T: ?Sized + Eq + Hash> Counted for Arc<T> {
    fn is_shared(&self) -> bool {
        Arc::strong_count(self) > 1
    }
}

impl Counted for ArcStr {
    fn is_shared(&self) -> bool {
        // `None`: a text of the program itself.
        ArcStr::strong_count(self).is_none_or(|count| count > 1)
    }
}

/// The values of one kind.
#[derive(Debug)]
pub(super) struct Interned<T> {
    values: HashSet<T, RandomState>,
    /// Unused values are dropped when there are more than this.
    limit: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { values: HashSet::default(), limit: FIRST_LIMIT }
    }
}

impl<T: Counted> Interned<T> {
    /// Replaces a value by the same one from here. Unused values are dropped from time to
    /// time, because a cluster may invent new ones for ever: there are never more than
    /// twice as many as were used when they were dropped last ([`FIRST_LIMIT`] if that is
    /// more), and each call takes constant time on average.
    pub(super) fn share(&mut self, value: &mut T) {
        if let Some(known) = self.values.get(value) {
            *value = known.clone();
            return;
        }
        if self.values.len() >= self.limit {
            self.values.retain(T::is_shared);
            self.limit = FIRST_LIMIT.max(2 * self.values.len());
            self.values.shrink_to(self.limit);
        }
        self.values.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(names: &mut Interned<ArcStr>, name: &str) -> ArcStr {
        let mut name: ArcStr = name.into();
        names.share(&mut name);
        name
    }

    #[test]
    fn equal_values_are_kept_once() {
        let mut names = Interned::default();
        let (first, second) = (share(&mut names, "http"), share(&mut names, "http"));
        assert!(ArcStr::ptr_eq(&first, &second));
    }

    #[test]
    fn unused_values_are_dropped_and_used_ones_kept() {
        let mut names = Interned::default();
        let used: Vec<ArcStr> = (0..3000).map(|number| share(&mut names, &format!("used-{number}"))).collect();
        for number in 0..20_000 {
            share(&mut names, &format!("unused-{number}"));
            assert!(names.values.len() <= 2 * used.len() + FIRST_LIMIT);
        }
        for (number, name) in used.iter().enumerate() {
            assert!(ArcStr::ptr_eq(name, &share(&mut names, &format!("used-{number}"))));
        }
    }

    #[test]
    fn the_table_shrinks_when_values_are_dropped() {
        let mut names = Interned::default();
        let used: Vec<ArcStr> = (0..100_000).map(|number| share(&mut names, &format!("used-{number}"))).collect();
        drop(used);
        for number in 0..200_000 {
            share(&mut names, &format!("unused-{number}"));
        }
        assert!(names.values.capacity() < 4 * FIRST_LIMIT, "{}", names.values.capacity());
    }
}
