//! `vmap-proxy verify`: compares the kernel with what the agent has programmed,
//! element by element and rule by rule. It changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::model::digest::Digest;
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::Key;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::skeleton::{SkeletonConfig, rules};
use vmap_proxy_wire::nf_tables::OwnTable;

use super::asked::{AskError, Asked};
use crate::cli::VerifyOptions;
use crate::netlink::{Kernel, NetlinkError, TableState};
use crate::query::protocol::{ElementLine, NodeAnswer, ServiceDigest};
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
    let mut after = None;
    loop {
        let page = asked.elements(None, after)?;
        let suspects = comparison.page(&page.elements)?;
        for owner in suspects {
            comparison.again(&mut asked, &owner)?;
        }
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
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
    /// Keys of shared elements that were counted, and the number of all keys.
    shared: HashSet<(Family, Map, Key)>,
    counts: HashMap<(Family, Map), u32>,
    /// Keys of maps that are small enough to be listed.
    listed: HashSet<(Family, Map, Key)>,
    elements: usize,
    digests: [u64; 2],
    differences: BTreeSet<Difference>,
}

impl Comparison {
    fn new() -> Result<Self, NetlinkError> {
        Ok(Self {
            kernel: Kernel::open()?,
            tables: BTreeMap::new(),
            shared: HashSet::new(),
            counts: HashMap::new(),
            listed: HashSet::new(),
            elements: 0,
            digests: [0; 2],
            differences: BTreeSet::new(),
        })
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
            let names: BTreeSet<&str> = table.chain_names().collect();
            let fixed = Chain::FIXED.into_iter().filter(|chain| !names.contains(chain.to_string().as_str()));
            wrong.extend(fixed.map(|chain| format!("chain {chain} is missing")));
            for chain in names.iter().filter_map(|name| Chain::parse(name)) {
                if !table.chain_matches(chain, family, &rules(&skeleton, chain)) {
                    wrong.push(format!("chain {chain} has other rules"));
                }
            }
            let maps = Map::all().filter(|map| !table.map_matches(*map, family));
            wrong.extend(maps.map(|map| format!("map {map} is missing or declared otherwise")));
            wrong.into_iter().for_each(|what| self.differ(family, "rules", what));
            self.tables.insert(family, table);
        }
        Ok(())
    }

    /// Compares a page; returns the owners of what differs, to be asked again: a
    /// sync may have come in between.
    fn page(&mut self, lines: &[ElementLine]) -> Result<BTreeSet<String>, NetlinkError> {
        let mut suspects = BTreeSet::new();
        for (family, map, lines) in by_map(lines) {
            // A family that the node does not have.
            if !self.tables.contains_key(&family) {
                continue;
            }
            let found = self.found(family, map, &lines)?;
            let is_small =
                self.tables.get(&family).and_then(|table| table.count(map)).is_none_or(|count| count <= MAX_LISTED);
            for line in lines {
                let is_new = !map.is_shared() || self.shared.insert((family, map, line.key));
                if !is_new {
                    continue;
                }
                *self.counts.entry((family, map)).or_default() += 1;
                if is_small {
                    self.listed.insert((family, map, line.key));
                }
                self.elements += 1;
                self.digests[0] = self.digests[0].wrapping_add(digest(family, map, &line.text));
                let kernels = found.get(&line.key);
                if let Some(text) = kernels {
                    self.digests[1] = self.digests[1].wrapping_add(digest(family, map, text));
                }
                if kernels != Some(&line.text) {
                    suspects.insert(line.owner.clone());
                }
            }
        }
        Ok(suspects)
    }

    /// Asks the agent once more about one owner, and compares it at once.
    fn again(&mut self, asked: &mut Asked, owner: &str) -> Result<(), Error> {
        let lines = if owner == "node" {
            asked.elements(None, None)?.elements.into_iter().filter(|line| line.owner == "node").collect()
        } else {
            asked.elements(Some(owner), None)?.elements
        };
        for (family, map, lines) in by_map(&lines) {
            if !self.tables.contains_key(&family) {
                continue;
            }
            let found = self.found(family, map, &lines)?;
            for line in lines {
                let what = match found.get(&line.key) {
                    None => format!("{map} lacks {}", line.text),
                    Some(text) if *text != line.text => format!("{map} has {text}, and {} is wanted", line.text),
                    Some(_) => continue,
                };
                self.differ(family, owner, what);
            }
        }
        Ok(())
    }

    /// The kernel's elements under these keys. Prefixes cannot be looked up.
    fn found(
        &mut self,
        family: Family,
        map: Map,
        lines: &[&ElementLine],
    ) -> Result<HashMap<Key, String>, NetlinkError> {
        let (states, _) = if map.is_interval() {
            self.kernel.read_contents(family, map)?
        } else {
            let keys: Vec<Key> = lines.iter().map(|line| line.key).collect();
            self.kernel.look_up(family, map, &keys)?
        };
        Ok(states.into_iter().map(|state| (state.element.key, render::element(&state.element))).collect())
    }

    /// Elements that nobody wants.
    fn surplus(&mut self) -> Result<(), NetlinkError> {
        let families: Vec<Family> = self.tables.keys().copied().collect();
        for family in families {
            for map in Map::all().filter(|map| !map.is_dynamic()) {
                let count = self.tables.get(&family).and_then(|table| table.count(map));
                let wanted = self.counts.get(&(family, map)).copied().unwrap_or(0);
                if count.is_some_and(|count| count > MAX_LISTED) {
                    if let Some(more) = count.and_then(|count| count.checked_sub(wanted)).filter(|more| *more > 0) {
                        self.differ(family, "nobody", format!("{map} has {more} elements that nobody wants"));
                    }
                    continue;
                }
                let (states, foreign) = self.kernel.read_contents(family, map)?;
                for state in states.iter().filter(|state| !self.listed.contains(&(family, map, state.element.key))) {
                    let what = format!("{map} has {}, which nobody wants", render::element(&state.element));
                    self.differences.insert(Difference { owner: "nobody".to_owned(), table: family.keyword(), what });
                }
                if !foreign.is_empty() {
                    self.differ(family, "nobody", format!("{map} has {} foreign elements", foreign.len()));
                }
            }
        }
        Ok(())
    }

    fn report(self, node: String) -> Report {
        let [wanted, kernels] = self.digests;
        Report {
            version: 1,
            node,
            elements: self.elements,
            digest: format!("{wanted:016x}"),
            kernel_digest: format!("{kernels:016x}"),
            state_digest: String::new(),
            services: Vec::new(),
            difference_count: self.differences.len(),
            differences: self.differences.into_iter().take(NAMED).collect(),
        }
    }
}

fn by_map(lines: &[ElementLine]) -> Vec<(Family, Map, Vec<&ElementLine>)> {
    let mut grouped: BTreeMap<(Family, Map), Vec<&ElementLine>> = BTreeMap::new();
    for line in lines {
        // A newer agent may have maps that this program does not know.
        if let Some(map) = Map::parse(&line.map) {
            grouped.entry((line.family, map)).or_default().push(line);
        }
    }
    grouped.into_iter().map(|((family, map), lines)| (family, map, lines)).collect()
}

/// The digest of one element; the sum over all elements does not depend on
/// their order.
fn digest(family: Family, map: Map, text: &str) -> u64 {
    Digest::default().text(family.keyword()).text(map.name()).text(text).finish()
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
    let mut text = paint.bad(&format!("The kernel of node {node} differs: {difference_count} differences"));
    text.push('\n');
    for Difference { owner, table, what } in &report.differences {
        let _ = writeln!(text, "  {}", paint.warning(&format!("{owner}: table {table}: {what}")));
    }
    if let Some(more) = difference_count.checked_sub(report.differences.len()).filter(|more| *more > 0) {
        let _ = writeln!(text, "  and {more} more");
    }
    text
}
