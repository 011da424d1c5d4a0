//! `vmap-proxy verify`: compares the kernel with what the agent has programmed,
//! element by element and rule by rule. It changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::model::digest::Digest;
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::skeleton::SkeletonConfig;
use vmap_proxy_compiler::words::count;
use vmap_proxy_wire::message::Writer;
use vmap_proxy_wire::nf_tables::OwnTable;
use vmap_proxy_wire::nf_tables::elements::write_element;

use super::asked::{AskError, Asked};
use super::read_back::read_back;
use crate::cli::VerifyOptions;
use crate::netlink::{Kernel, NetlinkError, TableState};
use crate::query::protocol::{NodeAnswer, ServiceDigest};
use crate::sync::MAX_LISTED;
use crate::terminal::{Paint, print, rendered};

/// The kernel differs.
const DIFFERS: u8 = 1;

/// Maximum number of differences in the report; the rest are counted.
const NAMED: usize = 100;

/// The reason why nothing could be compared.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The kernel can't be read.
    #[error("the kernel can't be read: {0}")]
    Kernel(#[from] NetlinkError),
    /// The report could not be printed.
    #[error("the report could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The report could not be written as JSON.
    #[error("the report could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The result of a comparison.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: u32,
    node: String,
    /// Elements that were compared.
    elements: usize,
    /// A digest of everything that is wanted, whatever the order; 16 hexadecimal
    /// digits.
    digest: String,
    /// The same of what the kernel has under these keys.
    kernel_digest: String,
    /// The digest of the Services and endpoints, the same on every node that
    /// was told the same.
    state_digest: String,
    /// That of each Service, if it was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<ServiceDigest>,
    differences: Vec<Difference>,
    difference_count: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Difference {
    /// The Service, `node`, or `rules`.
    owner: String,
    table: &'static str,
    /// One sentence.
    what: String,
}

/// Compares, and prints the differences.
///
/// # Errors
/// If no agent answers, or the kernel can't be read.
pub fn verify(options: &VerifyOptions) -> Result<ExitCode, Error> {
    let mut asked = Asked::agent(&options.socket)?;
    let node = asked.node()?;
    let mut comparison = Comparison::new()?;
    comparison.tables(&node)?;
    comparison.elements(&mut asked)?;
    comparison.surplus()?;
    let mut report = comparison.report(node.name);
    report.state_digest = asked.status()?.digest;
    if options.digests {
        report.services = asked.digests()?;
    }
    print(&rendered(options.output, &report, text)?)?;
    Ok(if report.difference_count == 0 { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

struct Comparison {
    kernel: Kernel,
    tables: BTreeMap<Family, TableState>,
    tally: Tally,
    differences: BTreeSet<Difference>,
}

/// The sums over all elements.
#[derive(Default)]
struct Tally {
    /// Keys of shared elements that were counted, and the number of all keys.
    shared: HashSet<(Family, Map, Key)>,
    counts: HashMap<(Family, Map), u32>,
    /// Keys of maps that are small enough to be listed.
    listed: HashSet<(Family, Map, Key)>,
    elements: usize,
    /// Of the wanted elements, and of the kernel's.
    digests: [u64; 2],
    /// The owners of what differs.
    suspects: BTreeSet<String>,
}

/// A wanted element, and the kernel's under the same key.
struct Pair<'a> {
    owner: &'a str,
    wanted: Element,
    found: Option<Element>,
}

impl Comparison {
    fn new() -> Result<Self, NetlinkError> {
        let (tables, tally, differences) = (BTreeMap::new(), Tally::default(), BTreeSet::new());
        Ok(Self { kernel: Kernel::open()?, tables, tally, differences })
    }

    fn differ(&mut self, family: Family, owner: &str, what: String) {
        self.differences.insert(Difference { owner: owner.to_owned(), table: family.keyword(), what });
    }

    /// The chains and the declarations.
    fn tables(&mut self, node: &NodeAnswer) -> Result<(), NetlinkError> {
        let families = crate::netlink::families();
        for of_family in &node.rules {
            let family = of_family.family;
            let Some(table) = self.kernel.read_table(OwnTable::Main, family)? else {
                // The node may lack a family.
                if families.contains(&family) {
                    self.differ(family, "rules", "there is no table vmap-proxy".to_owned());
                }
                continue;
            };
            let skeleton = SkeletonConfig::from(of_family);
            let mut wrong: Vec<String> = table.foreign().iter().map(|object| format!("{object} is not ours")).collect();
            wrong.extend(table.wrong_chains(&skeleton).map(|(chain, fault)| format!("chain {chain} {fault}")));
            let maps = Map::all().filter(|map| !table.map_matches(*map, family));
            wrong.extend(maps.map(|map| format!("map {map} is missing or declared otherwise")));
            wrong.into_iter().for_each(|what| self.differ(family, "rules", what));
            self.tables.insert(family, table);
        }
        Ok(())
    }

    /// All elements. Whoever differs is asked about again: a sync may have come in
    /// between.
    fn elements(&mut self, asked: &mut Asked) -> Result<(), Error> {
        let (tables, tally) = (&self.tables, Mutex::new(Tally::default()));
        read_back::<Error>(asked, &[], |kernel, group| {
            // A family that the node does not have.
            let Some(table) = tables.get(&group.family) else { return Ok(()) };
            let Some((map, wanted)) = group.read() else { return Ok(()) };
            let is_small = table.count(map).is_none_or(|count| count <= MAX_LISTED);
            let pairs = pairs(kernel, group.family, map, wanted)?;
            let digests: Vec<[u64; 2]> = pairs.iter().map(|pair| pair.digests(group.family)).collect();
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            pairs.iter().zip(digests).for_each(|(pair, digests)| tally.add(group.family, pair, digests, is_small));
            Ok(())
        })?;
        self.tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        for owner in std::mem::take(&mut self.tally.suspects) {
            self.again(asked, &owner)?;
        }
        Ok(())
    }

    /// Asks the agent once more about one owner, and compares it at once.
    fn again(&mut self, asked: &mut Asked, owner: &str) -> Result<(), Error> {
        for group in asked.elements_of(owner)? {
            if !self.tables.contains_key(&group.family) {
                continue;
            }
            let Some((map, wanted)) = group.read() else { continue };
            for Pair { wanted, found, .. } in pairs(&mut self.kernel, group.family, map, wanted)? {
                let wanted_text = render::element(&wanted);
                let what = match found {
                    None => format!("{map} lacks {wanted_text}"),
                    Some(other) if other != wanted => {
                        format!("{map} has {}, and {wanted_text} is wanted", render::element(&other))
                    }
                    Some(_) => continue,
                };
                self.differ(group.family, owner, what);
            }
        }
        Ok(())
    }

    /// Elements that nobody wants.
    fn surplus(&mut self) -> Result<(), NetlinkError> {
        let families: Vec<Family> = self.tables.keys().copied().collect();
        for family in families {
            for map in Map::all().filter(|map| !map.is_dynamic()) {
                let number = self.tables.get(&family).and_then(|table| table.count(map));
                let wanted = self.tally.counts.get(&(family, map)).copied().unwrap_or(0);
                if number.is_some_and(|number| number > MAX_LISTED) {
                    if let Some(more) = number.and_then(|number| number.checked_sub(wanted)).filter(|more| *more > 0) {
                        self.differ(
                            family,
                            "nobody",
                            format!("{map} has {} that nobody wants", count(more, "element")),
                        );
                    }
                    continue;
                }
                let (states, foreign) = self.kernel.read_contents(family, map)?;
                for state in
                    states.iter().filter(|state| !self.tally.listed.contains(&(family, map, state.element.key)))
                {
                    let what = format!("{map} has {}, which nobody wants", render::element(&state.element));
                    self.differences.insert(Difference { owner: "nobody".to_owned(), table: family.keyword(), what });
                }
                if !foreign.is_empty() {
                    self.differ(family, "nobody", format!("{map} has {}", count(foreign.len(), "foreign element")));
                }
            }
        }
        Ok(())
    }

    fn report(self, node: String) -> Report {
        let [wanted, kernels] = self.tally.digests;
        Report {
            version: 1,
            node,
            elements: self.tally.elements,
            digest: format!("{wanted:016x}"),
            kernel_digest: format!("{kernels:016x}"),
            state_digest: String::new(),
            services: Vec::new(),
            difference_count: self.differences.len(),
            differences: self.differences.into_iter().take(NAMED).collect(),
        }
    }
}

impl Tally {
    fn add(&mut self, family: Family, pair: &Pair<'_>, digests: [u64; 2], is_small: bool) {
        let Element { map, key, .. } = pair.wanted;
        let is_new = !map.is_shared() || self.shared.insert((family, map, key));
        if !is_new {
            return;
        }
        *self.counts.entry((family, map)).or_default() += 1;
        if is_small {
            self.listed.insert((family, map, key));
        }
        self.elements += 1;
        for (sum, digest) in self.digests.iter_mut().zip(digests) {
            *sum = sum.wrapping_add(digest);
        }
        if pair.found.as_ref() != Some(&pair.wanted) && !self.suspects.contains(pair.owner) {
            self.suspects.insert(pair.owner.to_owned());
        }
    }
}

impl Pair<'_> {
    /// Of the wanted element, and of the kernel's; 0 if that is missing.
    fn digests(&self, family: Family) -> [u64; 2] {
        let wanted = digest(family, &self.wanted);
        let found = match &self.found {
            Some(found) if *found == self.wanted => wanted,
            Some(found) => digest(family, found),
            None => 0,
        };
        [wanted, found]
    }
}

/// The wanted elements of one map beside the kernel's. Prefixes can't be looked
/// up.
fn pairs<'a>(
    kernel: &mut Kernel,
    family: Family,
    map: Map,
    mut wanted: Vec<(&'a str, Element)>,
) -> Result<Vec<Pair<'a>>, NetlinkError> {
    if map.is_shared() {
        let mut seen = HashSet::new();
        wanted.retain(|(_, element)| seen.insert(element.key));
    }
    let (states, _) = if map.is_interval() {
        kernel.read_contents(family, map)?
    } else {
        let keys: Vec<Key> = wanted.iter().map(|(_, element)| element.key).collect();
        kernel.look_up(family, map, &keys)?
    };
    let mut found: HashMap<Key, Element> = states.into_iter().map(|state| (state.element.key, state.element)).collect();
    let pair = |(owner, wanted): (&'a str, Element)| Pair { owner, found: found.remove(&wanted.key), wanted };
    Ok(wanted.into_iter().map(pair).collect())
}

/// The digest of one element; the sum over all elements does not depend on
/// their order.
fn digest(family: Family, element: &Element) -> u64 {
    let mut writer = Writer::default();
    write_element(&mut writer, element);
    Digest::default().text(family.keyword()).text(element.map.name()).bytes(writer.bytes()).finish()
}

fn text(report: &Report, paint: Paint) -> String {
    let Report { node, elements, digest, state_digest, difference_count, .. } = report;
    if *difference_count == 0 {
        let line = format!(
            "The kernel of node {node} has all {elements} elements and rules, and no others; digest {digest}, of the \
             state {state_digest}"
        );
        return paint.good(&line);
    }
    let mut text = paint.bad(&format!("The kernel of node {node} differs: {}", count(*difference_count, "difference")));
    text.push('\n');
    for Difference { owner, table, what } in &report.differences {
        let _ = writeln!(text, "  {}", paint.warning(&format!("{owner}: table {table}: {what}")));
    }
    if let Some(more) = difference_count.checked_sub(report.differences.len()).filter(|more| *more > 0) {
        let _ = writeln!(text, "  and {more} more");
    }
    text
}
