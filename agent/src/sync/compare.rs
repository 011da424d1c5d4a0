//! Reads the kernel's tables for a comparison. Foreign objects and changes in
//! them are removed or undone on the way: once our own rules are correct again,
//! nothing refers to them.

use std::collections::BTreeMap;

use arcstr::ArcStr;
use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::plan::KernelState;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::skeleton::{SkeletonConfig, rules};
use vmap_proxy_compiler::ruleset::{Family, LAYOUT, TABLE};

use super::affinity::learned_of;
use super::replace::Carry;
use super::report::{Cleaned, SyncReport};
use super::{SyncError, Syncer};
use crate::lists::some_of;
use crate::netlink::{Contents, ForeignKind, ForeignObject, Kernel, NetlinkError, OwnTable, TableState};

/// A map with more elements than this is looked up element by element instead
/// of being listed. The time of a listing grows with the square of their number
/// (half a minute for 500,000), that of look-ups does not. A listing is also in
/// memory as a whole: 50,000 elements are 18 MiB.
pub(crate) const MAX_LISTED: u32 = 8_192;

/// Maximum number of foreign objects of one kind that are named; the rest are
/// counted.
const NAMED: usize = 3;

/// Maps that are looked up, and how many elements each has, where the kernel
/// reports it.
pub(super) type LookedUp = PerFamily<BTreeMap<Map, Option<u32>>>;

/// What is special about a reading, after others have failed.
#[derive(Default)]
pub(super) struct Reading {
    /// Large maps are listed too.
    pub(super) list_all: bool,
    /// Tables in which an element of another program closes a loop: they are to be replaced.
    pub(super) looped: PerFamily<bool>,
}

/// The kernel's state.
#[derive(Default)]
pub(super) struct Read {
    pub(super) states: PerFamily<KernelState>,
    /// Maps that are too large to be listed.
    pub(super) looked_up: LookedUp,
    /// Objects to remove when our own rules are correct again.
    pub(super) foreign: PerFamily<Vec<ForeignObject>>,
    /// Whether a table is there that can't be changed in place.
    pub(super) outdated: PerFamily<bool>,
    /// The processes that own tables of ours, which nobody else can change.
    pub(super) owned: PerFamily<Option<String>>,
    /// Whether there is a stand-in.
    pub(super) stand_ins: PerFamily<bool>,
    /// The learned entries of a table that is being replaced.
    pub(super) carry: Carry,
}

impl Syncer {
    /// Reads both tables. One that another process owns is left out, as long as
    /// there is another. Large maps are left out, to be looked up, unless all
    /// are to be listed.
    pub(super) fn read_kernel(&mut self, reading: &Reading, report: &mut SyncReport) -> Result<Read, SyncError> {
        let mut read = Read::default();
        for family in Family::ALL {
            if self.enabled[family] {
                self.read_table(family, reading, &mut read, report)?;
            }
        }
        self.owned = read.owned.clone();
        if self.writable().values().any(|writable| *writable) {
            return Ok(read);
        }
        match self.owned_tables().pop() {
            Some(error) => Err(error),
            None => Ok(read),
        }
    }

    fn read_table(
        &mut self,
        family: Family,
        reading: &Reading,
        read: &mut Read,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        let stand_in = self.kernel.read_table(OwnTable::StandIn, family)?;
        let table = self.kernel.read_table(OwnTable::Main, family)?;
        let owners = [&table, &stand_in].into_iter().flatten().filter_map(TableState::owner);
        if let Some(port) = { owners }.find(|owner| *owner != self.kernel.port()) {
            read.owned[family] = Some(owner(port));
            return Ok(());
        }
        read.stand_ins[family] = stand_in.is_some();
        let table = table.filter(|table| !(table.is_dormant() && stand_in.is_some()));
        if table.is_none() && stand_in.is_some() {
            // An agent has been killed between switching the old table off and deleting it.
            self.kernel.delete_table(OwnTable::Main, family)?;
        }
        let loops = reading.looped[family].then(|| "an element that leads back to its chain".to_owned());
        if let Some(table) = &table
            && let Some(what) = incompatible(table, family, self.kernel.is_flush_proof()).or(loops)
        {
            note_outdated(family, table, &what, self.kernel.is_flush_proof(), report);
            read.outdated[family] = true;
            return self.read_earlier(OwnTable::Main, table, family, read);
        }
        if let Some(stand_in) = &stand_in {
            self.read_earlier(OwnTable::StandIn, stand_in, family, read)?;
        }
        let Some(table) = table else { return Ok(()) };
        self.clean_objects(family, &table, report)?;
        if table.is_orphan() {
            self.kernel.adopt_table(family)?;
        }
        read.foreign[family] = table.foreign().to_vec();
        let skeleton = self.planner.skeleton(self.store.node(), family);
        let largest = if reading.list_all { u32::MAX } else { self.max_listed };
        let (state, looked_up) = (&mut read.states[family], &mut read.looked_up[family]);
        let mut another = None;
        let mut counted = BTreeMap::new();
        let to_list = note_table(&table, family, &skeleton, largest, (state, &mut counted));
        looked_up.extend(counted.into_iter().map(|(map, count)| (map, Some(count))));
        for map in to_list {
            let contents = if table.count(map).is_some() || is_always_listed(map) {
                let (elements, foreign) = self.kernel.read_contents(family, map)?;
                Some(Contents { elements, foreign })
            } else {
                small_contents(&self.kernel, &mut another, largest, (family, map))?
            };
            match contents {
                Some(contents) => take_contents(&mut self.kernel, (family, map), contents, state, report)?,
                None => _ = looked_up.insert(map, None),
            }
        }
        Ok(())
    }

    /// Undoes foreign changes to the table as such, and disables foreign
    /// chains.
    fn clean_objects(
        &mut self,
        family: Family,
        table: &TableState,
        report: &mut SyncReport,
    ) -> Result<(), NetlinkError> {
        if table.is_dormant() {
            self.kernel.wake_table(family, table)?;
            report.cleaned(family, "flags", 1, "the flag dormant, which switches the table off, was taken away");
        }
        let policies = table.wrong_policies();
        if !policies.is_empty() {
            self.kernel.restore_policies(family, &policies)?;
            report.cleaned(
                family,
                "policy",
                policies.len(),
                &format!("policy of {}, set back to accept", some_of(&policies, NAMED)),
            );
        }
        self.kernel.disarm_foreign(family, table.foreign())?;
        for kind in ["chain", "set", "object", "flowtable"] {
            let objects: Vec<_> = table.foreign().iter().filter(|object| group(object.kind) == kind).collect();
            if !objects.is_empty() {
                report.cleaned(family, kind, objects.len(), &format!("{}, removed", some_of(&objects, NAMED)));
            }
        }
        Ok(())
    }
}

/// Notes the chains and maps of a table. Returns the maps to list, with those whose
/// size is not known; larger ones are to be looked up.
pub(super) fn note_table(
    table: &TableState,
    family: Family,
    skeleton: &SkeletonConfig,
    largest: u32,
    (state, looked_up): (&mut KernelState, &mut BTreeMap<Map, u32>),
) -> Vec<Map> {
    state.exists = true;
    for chain in table.chain_names().filter_map(Chain::parse) {
        state.chains.insert(chain, table.chain_matches(chain, family, &rules(skeleton, chain)));
    }
    let mut to_list = Vec::new();
    for map in Map::all().filter(|map| table.map_matches(*map, family)) {
        state.maps.push(map);
        match table.count(map) {
            Some(count) if count > largest && !is_always_listed(map) => {
                looked_up.insert(map, count);
            }
            _ => to_list.push(map),
        }
    }
    to_list
}

/// The contents of a map whose number of elements the kernel does not report,
/// before 6.16; `None` if it is too large to be listed. They are read on `another`
/// socket, because a listing that is given up costs the socket.
fn small_contents(
    kernel: &Kernel,
    another: &mut Option<Kernel>,
    largest: u32,
    (family, map): (Family, Map),
) -> Result<Option<Contents>, NetlinkError> {
    let mut reader = match another.take() {
        Some(reader) => reader,
        None => kernel.open_another()?,
    };
    let contents = reader.read_contents_up_to(usize::try_from(largest).unwrap_or(usize::MAX), family, map)?;
    if contents.is_some() {
        *another = Some(reader);
    }
    Ok(contents)
}

fn take_contents(
    kernel: &mut Kernel,
    (family, map): (Family, Map),
    Contents { elements, foreign }: Contents,
    state: &mut KernelState,
    report: &mut SyncReport,
) -> Result<(), NetlinkError> {
    if !foreign.is_empty() {
        kernel.delete_foreign(family, map, &foreign)?;
        report.cleaned(family, "element", foreign.len(), &format!("elements of {map}, removed"));
    }
    // Learned entries belong to the packets.
    if map.is_dynamic() {
        let learned = elements.iter().filter_map(|state| learned_of(&state.element));
        state.learned.extend(learned.map(|(number, _)| number));
        return Ok(());
    }
    // One text for all elements that carry it.
    let mut previous: Option<ArcStr> = None;
    for listed in elements {
        let mut element = listed.element;
        if element.comment.is_some() && element.comment == previous {
            element.comment.clone_from(&previous);
        }
        previous.clone_from(&element.comment);
        state.elements.insert(element);
    }
    Ok(())
}

/// Foreign objects are counted in these groups.
fn group(kind: ForeignKind) -> &'static str {
    match kind {
        ForeignKind::BaseChain | ForeignKind::Chain => "chain",
        ForeignKind::Set => "set",
        ForeignKind::Object(_) => "object",
        ForeignKind::Flowtable => "flowtable",
    }
}

/// Intervals can't be looked up. The firewall is compared as a whole, before
/// anything else. Which number a list has, and under which clients are
/// remembered, is known only from the kernel; and a frontend that is left over
/// must not have clients remembered under a number that another list gets.
pub(super) fn is_always_listed(map: Map) -> bool {
    map.is_interval()
        || map.is_dynamic()
        || matches!(
            map,
            Map::FirewallIps
                | Map::SourceRanges
                | Map::SourceRangeMarkers
                | Map::NodePortIps
                | Map::AffinityTimeouts
                | Map::AffinityLists(..)
        )
}

/// Logs that a table is to be replaced. If it is of our layout, another program
/// has changed it, which is counted.
fn note_outdated(family: Family, table: &TableState, what: &str, flush_proof: bool, report: &mut SyncReport) {
    // Our own configuration decides about the flag persist.
    if table.layout_matches() && table.is_persistent() == flush_proof {
        report.cleaned(family, "table", 1, &format!("table with a foreign change ({what}), replaced"));
    }
    tracing::warn!(
        "table {} {TABLE} is of another version of vmap-proxy, or somebody changed it ({what}): it is replaced, and \
         serves until its replacement does",
        family.keyword()
    );
}

/// The difference that can't be put right in place: the layout number, the flag
/// `persist`, or a map or base chain that exists and differs from the desired one.
pub(super) fn incompatible(table: &TableState, family: Family, flush_proof: bool) -> Option<String> {
    if table.is_persistent() != flush_proof {
        let which = if flush_proof { "lacks" } else { "has" };
        return Some(format!("it {which} the flag persist, see nftables.flushProof"));
    }
    if !table.layout_matches() {
        return Some(format!("{}, this version makes {LAYOUT}", table.layout()));
    }
    let map = table.map_names().filter_map(Map::parse).find(|map| !table.map_matches(*map, family));
    if let Some(map) = map {
        return Some(format!("map {map}"));
    }
    let chain = table.chain_names().filter_map(Chain::parse).find(|chain| !table.base_matches(*chain));
    chain.map(|chain| format!("chain {chain}"))
}

/// The process that a netlink socket belongs to. The kernel numbers the first
/// socket of a process like the process itself.
fn owner(port: u32) -> String {
    match std::fs::read(format!("/proc/{port}/comm")) {
        Ok(name) => format!("process {port} ({})", String::from_utf8_lossy(&name).trim_end().escape_debug()),
        Err(_) => format!("another process (netlink port {port})"),
    }
}

impl SyncReport {
    pub(super) fn cleaned(&mut self, family: Family, kind: &'static str, count: usize, description: &str) {
        self.cleaned.push(Cleaned { family, kind, count, description: description.to_owned() });
    }
}
