//! Looks elements up in the kernel for a comparison, on two sockets at a time.
//!
//! The kernel works on the thread that asks, about 3 us for each element, and
//! look-ups of two sockets do not wait for each other (`NFNL_CB_RCU` in
//! `net/netfilter/nf_tables_api.c`). So a second thread asks too, and begins
//! while the first one plans what was looked up before.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;

use super::report::SyncReport;
use crate::netlink::{ElementState, ForeignElement, Kernel, NetlinkError};

/// Number of Services whose elements are looked up together.
pub(super) const SERVICES_AT_ONCE: usize = 512;

/// Maximum number of keys that a thread takes at once, so that both end at nearly
/// the same time. No more than that are looked up by one thread: to start another
/// takes as long as ten look-ups.
pub(super) const KEYS_AT_ONCE: usize = 128;

/// A map and keys that are looked up in it together.
type Keys<'a> = (Family, Map, &'a [Key]);

/// What the kernel has at some keys of a map: our elements, and foreign ones.
type Found = (Family, Map, Vec<ElementState>, Vec<ForeignElement>);

/// The sockets.
pub(super) struct LookUps<'a> {
    first: &'a mut Kernel,
    /// `None` on a node with one processor, and where none can be opened.
    second: Option<Kernel>,
    keys_at_once: usize,
}

impl<'a> LookUps<'a> {
    pub(super) fn new(first: &'a mut Kernel, keys_at_once: usize) -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let second = (processors > 1).then(|| first.open_another());
        let second = second.and_then(|opened| {
            opened.inspect_err(|error| tracing::debug!("one socket for all look-ups: {error}")).ok()
        });
        Self { first, second, keys_at_once }
    }

    /// Looks up these elements, and does some work meanwhile, which may use the
    /// socket for everything else. Foreign elements in their place are removed
    /// afterwards.
    ///
    /// # Errors
    /// That of the work, which ends the look-ups, or any [`NetlinkError`].
    pub(super) fn look_up_while<E: From<NetlinkError>>(
        &mut self,
        keys: Vec<(Family, Map, Key)>,
        report: &mut SyncReport,
        work: impl FnOnce(&mut Kernel, &mut SyncReport) -> Result<(), E>,
    ) -> Result<Vec<(Family, Element)>, E> {
        let is_worth_a_thread = keys.len() > self.keys_at_once;
        let keys = by_map(keys);
        let questions = Questions::new(&keys, self.keys_at_once);
        let second = self.second.as_mut().filter(|_| is_worth_a_thread);
        let first = &mut *self.first;
        let (found, others) = thread::scope(|scope| {
            let other = second.and_then(|second| {
                let ask = || questions.ask(second);
                thread::Builder::new().name("look-up".to_owned()).spawn_scoped(scope, ask).ok()
            });
            let worked = work(first, report).inspect_err(|_| questions.skip());
            let found = worked.and_then(|()| questions.ask(first).map_err(E::from));
            let others = other.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (found, others)
        });
        let mut elements = Vec::new();
        for (family, map, states, foreign) in found?.into_iter().chain(others.transpose()?.unwrap_or_default()) {
            if !foreign.is_empty() {
                self.first.delete_foreign(family, map, &foreign)?;
                report.cleaned(family, "element", foreign.len(), &format!("elements of {map}, removed"));
            }
            elements.extend(states.into_iter().map(|state| (family, state.element)));
        }
        Ok(elements)
    }
}

/// Keys to look up, from which each thread takes some, until none is left.
struct Questions<'a> {
    questions: Vec<Keys<'a>>,
    /// The index of the next one.
    next: AtomicUsize,
}

impl<'a> Questions<'a> {
    fn new(keys: &'a BTreeMap<(Family, Map), Vec<Key>>, at_once: usize) -> Self {
        let questions =
            keys.iter().flat_map(|(&(family, map), keys)| keys.chunks(at_once).map(move |some| (family, map, some)));
        Self { questions: questions.collect(), next: AtomicUsize::new(0) }
    }

    fn ask(&self, kernel: &mut Kernel) -> Result<Vec<Found>, NetlinkError> {
        let mut found = Vec::new();
        while let Some(&(family, map, keys)) = self.questions.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let (states, foreign) = kernel.look_up(family, map, keys).inspect_err(|_| self.skip())?;
            found.push((family, map, states, foreign));
        }
        Ok(found)
    }

    /// No thread takes more.
    fn skip(&self) {
        self.next.store(self.questions.len(), Ordering::Relaxed);
    }
}

/// The keys of each map, which are looked up together.
pub(super) fn by_map(keys: impl IntoIterator<Item = (Family, Map, Key)>) -> BTreeMap<(Family, Map), Vec<Key>> {
    // Few maps and many keys: a comparison is cheaper than a hash.
    let mut by_map: BTreeMap<(Family, Map), Vec<Key>> = BTreeMap::new();
    for (family, map, key) in keys {
        by_map.entry((family, map)).or_default().push(key);
    }
    by_map
}
