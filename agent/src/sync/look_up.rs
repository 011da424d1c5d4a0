//! Looks elements up in the kernel for a comparison, on two sockets at a time.
//!
//! The kernel works on the thread that asks, about 3 us for each element, and
//! look-ups of two sockets do not wait for each other (`NFNL_CB_RCU` in
//! `net/netfilter/nf_tables_api.c`). So half of the keys are asked for on a
//! second thread.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::thread;

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;

use super::report::SyncReport;
use crate::netlink::{ElementState, ForeignElement, Kernel, NetlinkError};

/// A map with fewer keys than this is looked up by one thread: to start another
/// takes as long as ten look-ups.
const WORTH_A_THREAD: usize = 128;

/// A map and keys that are looked up in it together.
type Keys<'a> = (Family, Map, &'a [Key]);

/// What the kernel has at some keys of a map: our elements, and foreign ones.
type Found = (Family, Map, Vec<ElementState>, Vec<ForeignElement>);

/// The sockets.
pub(super) struct LookUps<'a> {
    first: &'a mut Kernel,
    /// `None` on a node with one processor, and where none can be opened.
    second: Option<Kernel>,
}

impl<'a> LookUps<'a> {
    pub(super) fn new(first: &'a mut Kernel) -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let second = (processors > 1).then(|| first.open_another());
        let second = second.and_then(|opened| {
            opened.inspect_err(|error| tracing::debug!("one socket for all look-ups: {error}")).ok()
        });
        Self { first, second }
    }

    /// The socket for everything else.
    pub(super) fn kernel(&mut self) -> &mut Kernel {
        self.first
    }

    /// Looks up these elements. Foreign elements in their place are removed.
    ///
    /// # Errors
    /// Any [`NetlinkError`].
    pub(super) fn look_up(
        &mut self,
        keys: Vec<(Family, Map, Key)>,
        report: &mut SyncReport,
    ) -> Result<Vec<(Family, Element)>, NetlinkError> {
        let keys = by_map(keys);
        let mut elements = Vec::new();
        for (family, map, states, foreign) in self.ask(&keys)? {
            if !foreign.is_empty() {
                self.first.delete_foreign(family, map, &foreign)?;
                report.cleaned(family, "element", foreign.len(), &format!("elements of {map}, removed"));
            }
            elements.extend(states.into_iter().map(|state| (family, state.element)));
        }
        Ok(elements)
    }

    fn ask(&mut self, keys: &BTreeMap<(Family, Map), Vec<Key>>) -> Result<Vec<Found>, NetlinkError> {
        let (mut one, mut other): (Vec<Keys<'_>>, Vec<Keys<'_>>) = Default::default();
        for (&(family, map), keys) in keys {
            let middle = if keys.len() < WORTH_A_THREAD { keys.len() } else { keys.len() / 2 };
            let (front, back) = keys.split_at_checked(middle).unwrap_or((keys, &[]));
            one.push((family, map, front));
            if !back.is_empty() {
                other.push((family, map, back));
            }
        }
        let Some(second) = self.second.as_mut().filter(|_| !other.is_empty()) else {
            one.append(&mut other);
            return ask_one(self.first, &one);
        };
        let (found, others) = thread::scope(|scope| {
            let work = || ask_one(second, &other);
            let spawned = thread::Builder::new().name("look-up".to_owned()).spawn_scoped(scope, work);
            let found = ask_one(self.first, &one);
            let others =
                spawned.ok().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (found, others)
        });
        let mut found = found?;
        // No thread could be started.
        let others = others.unwrap_or_else(|| ask_one(self.first, &other));
        found.append(&mut others?);
        Ok(found)
    }
}

fn ask_one(kernel: &mut Kernel, keys: &[Keys<'_>]) -> Result<Vec<Found>, NetlinkError> {
    let mut found = Vec::with_capacity(keys.len());
    for &(family, map, keys) in keys {
        let (states, foreign) = kernel.look_up(family, map, keys)?;
        found.push((family, map, states, foreign));
    }
    Ok(found)
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
