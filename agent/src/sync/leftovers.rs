//! Removes elements that nothing wants and that a comparison could not see.
//!
//! Large maps are looked up instead of listed (decision 10). That does not find
//! elements of which no object is known any more, such as those of a Service
//! that was deleted while no agent ran. The kernel's counts show that there are
//! some (Linux 6.16 and newer), but not which. So these maps are listed after the
//! comparison, by another thread on another socket, while changes go on
//! (decision 96).
//!
//! Until they are removed, packets follow the leftovers as they did before the
//! start. A change that needs the place of one removes that one first.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;
use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::plan::{Action, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::words::count;

use super::background::Counts;
use super::compare::is_always_listed;
use super::look_up::by_map;
use super::report::SyncReport;
use super::{Attempt, Syncer};
use crate::netlink::{CommitError, ForeignElement, Kernel, NetlinkError, SocketError, StopFlag};

/// Maximum number of listings of one map in a search. Commits and resizes during
/// a listing may hide elements from it.
const MAX_LISTINGS: usize = 5;

/// After this number of searches in a row that a repair cut off, a repair lists
/// the maps itself, and changes wait for it: somebody who changes our tables
/// again and again must not keep elements there.
const MAX_CUT_OFF: u32 = 3;

/// A hash of a family, a map and a key, seeded at random.
type Place = u64;

/// What was committed since a search began.
#[derive(Debug, Default)]
struct Changes {
    /// Added elements: they are wanted.
    added: HashSet<Place>,
    /// Deleted elements: a listing need not see them.
    deleted: HashSet<Place>,
}

/// The same, for both threads.
#[derive(Debug, Clone, Default)]
struct Meanwhile(Arc<Mutex<Changes>>);

/// Elements that nothing wants.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// The maps in which the last comparison may have left some.
    pub(super) suspects: PerFamily<BTreeSet<Map>>,
    search: Option<Search>,
    /// The number of searches in a row that a repair cut off.
    cut_off: u32,
}

/// A search for them, and their removal.
#[derive(Debug)]
struct Search {
    begun: Instant,
    hasher: RandomState,
    meanwhile: Meanwhile,
    /// Ends its thread.
    stop: StopFlag,
    step: Step,
    /// The number of removed elements, foreign ones too.
    removed: usize,
    /// Whether a map changed so fast that elements may have been missed.
    is_complete: bool,
}

#[derive(Debug)]
enum Step {
    /// The thread lists the maps.
    Listing(oneshot::Receiver<Result<Found, NetlinkError>>),
    Listed(Result<Found, NetlinkError>),
    /// What remains to be removed, in this order.
    Removing(VecDeque<Transaction>),
}

/// The result of the listings.
#[derive(Debug, Default)]
struct Found {
    elements: Vec<(Family, Element)>,
    foreign: Vec<(Family, Map, ForeignElement)>,
    /// Maps in which others may be hidden.
    unsettled: usize,
}

/// What the thread compares a map with.
struct Wanted {
    family: Family,
    map: Map,
    /// In ascending order.
    places: Vec<Place>,
    /// The number of other elements, where the kernel reports it.
    others: Option<usize>,
}

/// The work of the thread.
struct Listing {
    kernel: Kernel,
    hasher: RandomState,
    wanted: Vec<Wanted>,
    meanwhile: Meanwhile,
}

impl Meanwhile {
    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leftovers {
    /// A repair begins, which sees to everything. Returns whether it has to list
    /// all maps.
    pub(super) fn cut_off(&mut self) -> bool {
        self.cut_off += u32::from(self.search.take().is_some());
        self.cut_off >= MAX_CUT_OFF
    }

    /// A transaction is committed meanwhile.
    pub(super) fn note(&mut self, transaction: &Transaction) {
        let Some(search) = &mut self.search else { return };
        let mut meanwhile = search.meanwhile.lock();
        for operation in &transaction.operations {
            let place_of = |element: &Element| place(&search.hasher, operation.family, element.map, element.key);
            match &operation.action {
                Action::AddElement(element) => _ = meanwhile.added.insert(place_of(element)),
                Action::DeleteElement(element) => _ = meanwhile.deleted.insert(place_of(element)),
                _ => {}
            }
        }
    }

    /// Returns when the next removal can begin; never if there is nothing to
    /// remove. May be dropped and called again.
    pub(super) async fn found(&mut self) {
        let Some(search) = &mut self.search else { return std::future::pending().await };
        if let Step::Listing(listed) = &mut search.step {
            // Without an answer the thread has panicked, which it has reported.
            search.step = Step::Listed(listed.await.unwrap_or_else(|_| Err(SocketError::AnswerLost.into())));
        }
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

impl Syncer {
    /// Whether elements are sought or removed that nothing wants. The slow
    /// comparison waits meanwhile.
    pub fn seeks_leftovers(&self) -> bool {
        self.leftovers.search.is_some()
    }

    /// Returns when [`Self::remove_leftovers`] has something to do; never if
    /// [nothing is sought](Self::seeks_leftovers). May be dropped and called
    /// again.
    pub async fn leftovers_found(&mut self) {
        self.leftovers.found().await;
    }

    /// Begins to list the maps in which a comparison may have left elements. `counts`
    /// are the kernel's, as far as they are known, and become those of the wanted
    /// elements: the kernel has more in these maps until the end of the search.
    pub(super) fn seek_leftovers(&mut self, counts: Option<&mut Counts>) {
        let suspects = mem::take(&mut self.leftovers.suspects);
        if suspects.values().all(BTreeSet::is_empty) {
            self.leftovers.cut_off = 0;
            return;
        }
        let hasher = RandomState::new();
        let mut wanted = self.wanted(&hasher, &suspects);
        if let Some(counts) = counts {
            wanted.iter_mut().for_each(|wanted| wanted.count_others(counts));
        }
        match begin_search(hasher, wanted) {
            Ok(search) => self.leftovers.search = Some(search),
            Err(error) => warn_of_leftovers(&error),
        }
    }

    /// The wanted elements of these maps.
    fn wanted(&self, hasher: &RandomState, suspects: &PerFamily<BTreeSet<Map>>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (family, suspects) in suspects.iter() {
            let mut places: BTreeMap<Map, Vec<Place>> = suspects.iter().map(|map| (*map, Vec::new())).collect();
            for (name, _) in self.planner.all_compiled(family) {
                for element in self.planner.elements_of(name, family) {
                    if let Some(places) = places.get_mut(&element.map) {
                        places.push(place(hasher, family, element.map, element.key));
                    }
                }
            }
            for (map, mut places) in places {
                places.sort_unstable();
                places.dedup();
                wanted.push(Wanted { family, map, places, others: None });
            }
        }
        wanted
    }

    /// Commits a transaction of a change. If the kernel refuses it, and what it adds
    /// is left over there, that is removed, and the transaction is tried again.
    pub(super) fn commit_change(
        &mut self,
        transaction: &mut Transaction,
        report: &mut SyncReport,
    ) -> Result<(), CommitError> {
        match self.commit(transaction, report) {
            Err(error @ CommitError::Refused { .. }) if self.seeks_leftovers() => {
                if self.make_room(transaction)? {
                    self.commit(transaction, report)
                } else {
                    Err(error)
                }
            }
            outcome => outcome,
        }
    }

    /// Removes elements that are where a transaction adds its own, and that it does
    /// not replace. Returns whether there were any.
    fn make_room(&mut self, transaction: &Transaction) -> Result<bool, CommitError> {
        let (mut added, mut deleted) = (Vec::new(), HashSet::new());
        for operation in &transaction.operations {
            match &operation.action {
                Action::AddElement(element) if !is_always_listed(element.map) => {
                    added.push((operation.family, element.map, element.key));
                }
                Action::DeleteElement(element) => _ = deleted.insert((operation.family, element.map, element.key)),
                _ => {}
            }
        }
        let mut in_the_way = Vec::new();
        for ((family, map), keys) in by_map(added.into_iter().filter(|key| !deleted.contains(key))) {
            let (elements, foreign) = self.kernel.look_up(family, map, &keys)?;
            if !foreign.is_empty() {
                return Ok(false);
            }
            in_the_way.extend(elements.into_iter().map(|state| (family, state.element)));
        }
        let mut removals = self.planner.removal(in_the_way);
        // They were never counted as ours.
        let mut apart = SyncReport::default();
        for removal in &mut removals {
            self.commit(removal, &mut apart)?;
        }
        if let Some(search) = &mut self.leftovers.search {
            search.removed += apart.removed;
        }
        Ok(!removals.is_empty())
    }

    /// Removes a part of what was found, once it [is](Self::leftovers_found).
    /// If the kernel refuses, the next sync compares and repairs.
    pub fn remove_leftovers(&mut self) -> Attempt {
        let begun = Instant::now();
        let mut report = SyncReport::default();
        let outcome = self.remove_some(&mut report);
        self.damaged |= outcome.is_err();
        report.duration = begun.elapsed();
        let failure = match outcome {
            // The repair finds out why.
            Err(CommitError::Refused { .. }) | Ok(()) => None,
            Err(CommitError::Netlink(error)) => Some(error.into()),
        };
        Attempt { report, failure }
    }

    fn remove_some(&mut self, report: &mut SyncReport) -> Result<(), CommitError> {
        let Some(search) = &mut self.leftovers.search else { return Ok(()) };
        if let Step::Listed(found) = &mut search.step {
            match mem::replace(found, Ok(Found::default())) {
                Ok(found) => self.plan_removal(found, report)?,
                Err(error) => {
                    warn_of_leftovers(&error);
                    self.leftovers.search = None;
                    return Ok(());
                }
            }
        }
        let Some(search) = &mut self.leftovers.search else { return Ok(()) };
        let Step::Removing(removals) = &mut search.step else { return Ok(()) };
        if let Some(mut removal) = removals.pop_front() {
            let meanwhile = search.meanwhile.lock();
            removal.operations.retain(|operation| match &operation.action {
                Action::DeleteElement(element) => {
                    !meanwhile.added.contains(&place(&search.hasher, operation.family, element.map, element.key))
                }
                _ => true,
            });
            drop(meanwhile);
            self.commit(&mut removal, report)?;
        }
        self.end_search(report);
        Ok(())
    }

    /// Removes foreign elements, and plans the removal of the others.
    fn plan_removal(&mut self, found: Found, report: &mut SyncReport) -> Result<(), NetlinkError> {
        let Some(search) = &mut self.leftovers.search else { return Ok(()) };
        let mut foreign: BTreeMap<(Family, Map), Vec<ForeignElement>> = BTreeMap::new();
        for (family, map, element) in found.foreign {
            let key = element.known_key(family, map);
            let added = &search.meanwhile.lock().added;
            if key.is_none_or(|key| !added.contains(&place(&search.hasher, family, map, key))) {
                foreign.entry((family, map)).or_default().push(element);
            }
        }
        search.is_complete = found.unsettled == 0;
        search.removed += foreign.values().map(Vec::len).sum::<usize>();
        search.step = Step::Removing(self.planner.removal(found.elements).into());
        for ((family, map), elements) in foreign {
            self.kernel.delete_foreign(family, map, &elements)?;
            report.cleaned(family, "element", elements.len(), &format!("elements of {map}, removed"));
        }
        Ok(())
    }

    /// Counts what was removed, and ends a search that has nothing to remove any more.
    fn end_search(&mut self, report: &mut SyncReport) {
        let Leftovers { search, cut_off, .. } = &mut self.leftovers;
        if let Some(search) = search {
            search.removed += report.removed;
        }
        let is_done = |search: &mut Search| matches!(&search.step, Step::Removing(removals) if removals.is_empty());
        let Some(done) = search.take_if(is_done) else { return };
        *cut_off = 0;
        let (removed, took) = (done.removed, done.begun.elapsed().as_secs_f64());
        report.removed_leftovers = removed > 0;
        match removed {
            0 => tracing::debug!("no element of an earlier state was left over (listed within {took:.1} s)"),
            _ => tracing::info!(
                "removed {} of an earlier state, {took:.1} s after the comparison with the kernel",
                count(removed, "element")
            ),
        }
        if !done.is_complete {
            tracing::info!(
                "elements of an earlier state may still be there, since the maps changed while they were listed; they \
                 are removed after the next comparison with the kernel"
            );
        }
    }
}

/// Starts the thread that lists these maps.
fn begin_search(hasher: RandomState, wanted: Vec<Wanted>) -> Result<Search, NetlinkError> {
    let meanwhile = Meanwhile::default();
    let kernel = Kernel::open()?;
    let stop = kernel.stop_flag();
    let (tell, listed) = oneshot::channel();
    let listing = Listing { kernel, hasher: hasher.clone(), wanted, meanwhile: meanwhile.clone() };
    // Nobody may want the result any more.
    let work = move || _ = tell.send(listing.run());
    let started = thread::Builder::new().name("leftovers".to_owned()).spawn(work);
    started.map_err(|source| SocketError::System { call: "clone", source })?;
    let (begun, step) = (Instant::now(), Step::Listing(listed));
    Ok(Search { begun, hasher, meanwhile, stop, step, removed: 0, is_complete: true })
}

fn warn_of_leftovers(error: &NetlinkError) {
    tracing::warn!(
        "elements that no Service has any more may be in large maps, and stay until the next comparison with the kernel: \
         {error}"
    );
}

impl Wanted {
    /// Takes the number of other elements from the kernel's, which becomes that of the wanted ones.
    fn count_others(&mut self, counts: &mut Counts) {
        let Some(count) = counts[self.family].get_mut(&self.map) else { return };
        let found = usize::try_from(*count).ok();
        self.others = found.and_then(|found| found.checked_sub(self.places.len()));
        *count = i64::try_from(self.places.len()).unwrap_or(i64::MAX);
    }
}

impl Listing {
    fn run(mut self) -> Result<Found, NetlinkError> {
        let mut found = Found::default();
        for wanted in mem::take(&mut self.wanted) {
            if wanted.others != Some(0) {
                self.list(&wanted, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Lists a map, once more if elements were hidden.
    fn list(&mut self, wanted: &Wanted, found: &mut Found) -> Result<(), NetlinkError> {
        let Wanted { family, map, places, others: number } = wanted;
        let mut seen = vec![false; places.len()];
        let mut others = HashSet::new();
        for _ in 0..MAX_LISTINGS {
            let hasher = &self.hasher;
            let mut is_new = |place: Place| match places.binary_search(&place) {
                Ok(position) => {
                    seen[position] = true;
                    false
                }
                Err(_) => others.insert(place),
            };
            let undisturbed = self.kernel.list_contents(*family, *map, &mut |contents| {
                let elements = contents.elements.into_iter().map(|state| state.element);
                let elements = elements.filter(|one| is_new(place(hasher, *family, *map, one.key)));
                found.elements.extend(elements.map(|one| (*family, one)));
                for one in contents.foreign {
                    let place = match one.known_key(*family, *map) {
                        Some(key) => place(hasher, *family, *map, key),
                        None => hasher.hash_one((family, map, &one.key, &one.key_end)),
                    };
                    if is_new(place) {
                        found.foreign.push((*family, *map, one));
                    }
                }
            })?;
            let meanwhile = self.meanwhile.lock();
            if number.is_some_and(|number| others.difference(&meanwhile.added).count() >= number) {
                return Ok(());
            }
            // Whatever hides left-over elements hides wanted ones just as well.
            let is_hidden = |(place, seen): &(&Place, &bool)| !**seen && !meanwhile.deleted.contains(place);
            let hidden = places.iter().zip(&seen).filter(is_hidden).count();
            if hidden == 0 && (undisturbed || !places.is_empty()) {
                return Ok(());
            }
            tracing::debug!("{} {map} changed while it was listed: {hidden} wanted elements hidden", family.keyword());
        }
        found.unsettled += 1;
        Ok(())
    }
}

fn place(hasher: &RandomState, family: Family, map: Map, key: Key) -> Place {
    hasher.hash_one((family, map, key))
}
