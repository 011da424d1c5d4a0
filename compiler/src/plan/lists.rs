//! Numbers for the endpoint lists that clients stick to.

use rustc_hash::FxHashMap;

use crate::model::types::ServiceName;
use crate::ruleset::element::ListNumber;
use crate::ruleset::service::CompiledService;

/// The numbers of lists, in one family.
///
/// A list keeps its number for as long as it is programmed. A number that was
/// given up goes to another list only after the entries learned under it were
/// removed, so that no client is sent to an endpoint of another Service.
#[derive(Debug, Default)]
pub(super) struct ListNumbers {
    owners: FxHashMap<ListNumber, ServiceName>,
    /// No position above this was ever given out or found in the kernel.
    highest: u32,
    /// Positions that may be given out again.
    free: Vec<u32>,
    /// Positions that were given up, and under which something may be learned.
    released: Vec<u32>,
    /// Whether positions are unused that are neither free nor released.
    has_gaps: bool,
}

impl ListNumbers {
    /// The state after the kernel was read: `found` are the numbers that occur
    /// there anywhere, in use or not.
    pub(super) fn reset<'a>(
        services: impl Iterator<Item = (&'a ServiceName, &'a CompiledService)>,
        found: impl Iterator<Item = ListNumber>,
    ) -> Self {
        let mut numbers = Self { has_gaps: true, ..Self::default() };
        for (name, compiled) in services {
            for (number, _) in compiled.numbered_lists() {
                numbers.adopt(number, name);
            }
        }
        numbers.highest = found.map(ListNumber::position).fold(numbers.highest, u32::max);
        numbers
    }

    /// Returns the Service whose list has this number.
    pub(super) fn owner(&self, number: ListNumber) -> Option<&ServiceName> {
        self.owners.get(&number)
    }

    /// Gives a list the number that the kernel has for it, unless another list
    /// has it. To be called only between [`Self::reset`] and
    /// [`Self::forgotten`].
    pub(super) fn adopt(&mut self, number: ListNumber, name: &ServiceName) -> bool {
        let is_free = number.is_some() && !self.owners.contains_key(&number);
        if is_free {
            self.owners.insert(number, name.clone());
            self.highest = self.highest.max(number.position());
        }
        is_free
    }

    /// A number that nothing was learned under. [`ListNumber::NONE`] if all are
    /// in use: then clients of the list are not remembered.
    pub(super) fn take(&mut self, name: &ServiceName) -> ListNumber {
        let position = self.free.pop().unwrap_or(self.highest.saturating_add(1));
        let Some(number) = ListNumber::at(position) else { return ListNumber::NONE };
        self.highest = self.highest.max(position);
        self.owners.insert(number, name.clone());
        number
    }

    /// Gives up the number of a list that is gone or no longer has affinity.
    pub(super) fn release(&mut self, number: ListNumber) {
        if self.owners.remove(&number).is_some() {
            self.released.push(number.position());
        }
    }

    /// Nothing is learned any more under numbers that no list has.
    pub(super) fn forgotten(&mut self) {
        self.free.append(&mut self.released);
        if std::mem::take(&mut self.has_gaps) {
            self.highest = self.owners.keys().map(|number| number.position()).max().unwrap_or(0);
            let unused = |position: &u32| ListNumber::at(*position).is_some_and(|one| !self.owners.contains_key(&one));
            self.free = (1..=self.highest).rev().filter(unused).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u32) -> ListNumber {
        ListNumber::at(position).unwrap_or_default()
    }

    #[test]
    fn a_number_is_given_again_only_when_what_was_learned_is_forgotten() {
        let name = ServiceName::new("shop", "web");
        let mut numbers = ListNumbers::default();
        assert_eq!((numbers.take(&name), numbers.take(&name)), (at(1), at(2)));
        numbers.release(at(1));
        assert_eq!((numbers.owner(at(1)), numbers.owner(at(2))), (None, Some(&name)));
        assert_eq!(numbers.take(&name), at(3));
        numbers.forgotten();
        assert_eq!((numbers.take(&name), numbers.take(&name)), (at(1), at(4)));
    }

    #[test]
    fn what_the_kernel_holds_is_not_given_to_another() {
        let (web, other) = (ServiceName::new("shop", "web"), ServiceName::new("shop", "other"));
        let mut numbers = ListNumbers::reset(std::iter::empty(), [at(7), at(3)].into_iter());
        assert!(numbers.adopt(at(3), &web) && !numbers.adopt(at(3), &other));
        assert!(!numbers.adopt(ListNumber::NONE, &other));
        assert_eq!(numbers.take(&other), at(8));
        numbers.forgotten();
        let next: Vec<ListNumber> = (0..6).map(|_| numbers.take(&other)).collect();
        assert_eq!(next, [1, 2, 4, 5, 6, 7].map(at));
        assert_eq!(numbers.take(&other), at(9));
    }

    #[test]
    fn numbers_run_out_without_harm() {
        let name = ServiceName::new("shop", "web");
        let mut numbers = ListNumbers::reset(std::iter::empty(), [at(ListNumber::COUNT)].into_iter());
        assert_eq!(numbers.take(&name), ListNumber::NONE);
        numbers.release(ListNumber::NONE);
        numbers.forgotten();
        assert_eq!(numbers.take(&name), at(1));
    }
}
