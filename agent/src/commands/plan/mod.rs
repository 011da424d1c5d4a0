//! `vmap-proxy plan`: what manifests, a configuration or this version of the
//! program would change on this node, or compared with other manifests. It
//! changes nothing.

mod forecast;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::process::ExitCode;

use arcstr::ArcStr;
use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::model::checked::{CheckedChange, Content};
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_compiler::model::{Family, NodeInfo, ProxyConfig, Store};
use vmap_proxy_compiler::plan::{Action, Planner, Transaction};
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::service::port_of_comment;
use vmap_proxy_compiler::ruleset::target::Target;
use vmap_proxy_compiler::words::count;

use crate::cli::{PlanFrom, PlanOptions};
use crate::netlink::{Kernel, NetlinkError, default_addresses, local_addresses};
use crate::process;
use crate::query::offline::Offline;
use crate::source::manifests::{ManifestSource, SourceError};
use crate::sync::preview::{self, Found};
use crate::terminal::{Paint, more, print, rendered};
use forecast::{Forecast, Sizes};
use words::ServiceChanges;

/// Something would change.
const CHANGES: u8 = 3;

/// Services and transactions in the text form, at most.
const PRINTED: usize = 50;

/// The reason why there is no plan.
#[derive(Debug, Error)]
pub enum Error {
    /// The manifests could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The kernel can't be read.
    #[error("the kernel can't be read: {0}")]
    Kernel(#[from] NetlinkError),
    /// The addresses of this machine can't be read.
    #[error("the addresses of this machine can't be read: {0}")]
    Runtime(#[source] io::Error),
    /// The plan could not be printed.
    #[error("the plan could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The plan could not be written as JSON.
    #[error("the plan could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What would change.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: u32,
    node: String,
    /// What the plan starts from.
    from: String,
    /// Tables that would be replaced as a whole, and why.
    replaced: Vec<String>,
    /// Objects in our tables that are not ours, and would be removed.
    foreign: Vec<String>,
    /// Elements of maps too large to be listed that no object asks for; they
    /// would be removed, and are in no transaction here.
    surplus: u32,
    services: Vec<ServicePlan>,
    transactions: Vec<Forecast>,
    added: usize,
    removed: usize,
    /// Operations on tables, chains, rules and maps.
    objects: usize,
    /// The operations in nft's language, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    operations: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ServicePlan {
    /// `namespace/name`; `node` for the node's own elements.
    name: String,
    changes: Vec<String>,
    added: usize,
    removed: usize,
}

/// Prints the plan.
///
/// # Errors
/// If files or the kernel can't be read.
pub fn plan(options: PlanOptions) -> Result<ExitCode, Error> {
    let PlanOptions { manifests, proxy, from, flush_proof, operations, output } = options;
    let mut store = read(manifests, &proxy)?;
    let mut report = Report { version: 1, node: proxy.node_name.clone(), ..Report::default() };
    let mut kernel = None;
    let (mut planner, found) = match from {
        PlanFrom::Kernel => {
            report.from = "the kernel of this node".to_owned();
            take_addresses(&mut store, &proxy)?;
            let planner = Planner::new(*proxy, store.node());
            let kernel = kernel.insert(Kernel::open()?);
            let found = preview::read(kernel, &planner, &store, &crate::netlink::families(), flush_proof)?;
            (planner, found)
        }
        PlanFrom::Files { manifests, proxy: before } => {
            report.from = "other manifests".to_owned();
            assume_addresses(&mut store);
            let planner = Planner::new(*proxy, store.node());
            let programmed = Offline::read(manifests, *before)?;
            let found = preview::of_planner(programmed.state().planner, &planner, &store);
            (planner, found)
        }
    };
    note_tables(&found, &mut report);
    let mut transactions = Vec::new();
    let families = if kernel.is_some() { crate::netlink::families() } else { Family::ALL.to_vec() };
    report.surplus = preview::transactions(kernel.as_mut(), &mut planner, &mut store, found, |mut transaction| {
        transaction.operations.retain(|operation| families.contains(&operation.family));
        if !transaction.operations.is_empty() {
            transactions.push(transaction);
        }
    })?;
    let changes = changes_of(&transactions);
    if operations {
        let all = transactions.iter().flat_map(|transaction| &transaction.operations);
        report.operations = all.map(ToString::to_string).collect();
    }
    let sizes = Sizes::of(&planner);
    report.transactions = transactions.iter().map(|transaction| sizes.forecast(transaction)).collect();
    for forecast in &report.transactions {
        report.added += forecast.added;
        report.removed += forecast.removed;
        report.objects += forecast.objects;
    }
    report.services = changes
        .into_iter()
        .map(|(name, changes)| ServicePlan {
            name: name.to_string(),
            changes: changes.words(),
            added: changes.added,
            removed: changes.removed,
        })
        .collect();
    let is_change = !report.transactions.is_empty() || !report.replaced.is_empty() || report.surplus > 0;
    print(&rendered(output, &report, text)?)?;
    Ok(if is_change { ExitCode::from(CHANGES) } else { ExitCode::SUCCESS })
}

fn read(manifests: Vec<std::path::PathBuf>, proxy: &ProxyConfig) -> Result<Store, SourceError> {
    let (changes, problems) = ManifestSource::new(manifests, &proxy.node_name).read_once()?;
    for problem in problems {
        tracing::warn!("{problem}");
    }
    let mut store = Store::new(proxy.node_name.clone());
    changes.into_iter().for_each(|change| store.take(change.checked));
    Ok(store)
}

/// The addresses of this machine, as the agent would have them.
fn take_addresses(store: &mut Store, proxy: &ProxyConfig) -> Result<(), Error> {
    let runtime = process::event_loop().map_err(Error::Runtime)?;
    let (own, default): (Vec<IpAddr>, Vec<IpAddr>) =
        runtime.block_on(async { Ok::<_, NetlinkError>((local_addresses().await?, default_addresses().await?)) })?;
    if store.node().addresses.is_empty() {
        tracing::warn!("no manifest holds Node {}: this machine's default addresses stand in", proxy.node_name);
        let object = ObjectRef { kind: Kind::Node, namespace: String::new(), name: proxy.node_name.clone() };
        let node = NodeInfo { addresses: default, ..store.node().clone() };
        store.take(CheckedChange::of(object, Content::Node(node)));
    }
    store.set_interface_addresses(own);
    Ok(())
}

/// Without the machine, the addresses on its interfaces are those of the Node.
fn assume_addresses(store: &mut Store) {
    if store.node().interface_addresses.is_empty() {
        store.set_interface_addresses(store.node().addresses.clone());
    }
}

fn note_tables(found: &Found, report: &mut Report) {
    let replaced = found.replaced.iter().filter_map(|(family, why)| Some((family, why.as_ref()?)));
    report.replaced = replaced.map(|(family, why)| format!("table {} vmap-proxy: {why}", family.keyword())).collect();
    report.foreign.clone_from(&found.foreign);
}

/// The changes by Service. An element that nobody wants any more has no owner:
/// its comment names the Service, or another element of its frontend does.
fn changes_of(transactions: &[Transaction]) -> BTreeMap<ArcStr, ServiceChanges> {
    let operations = || transactions.iter().flat_map(|transaction| &transaction.operations);
    let mut owners: HashMap<(Family, Target), ArcStr> = HashMap::new();
    for operation in operations() {
        let Some((element, target)) = element(&operation.action) else { continue };
        let of_comment = || {
            let [namespace, name, _] = port_of_comment(element.comment.as_ref()?)?;
            Some(format!("{namespace}/{name}").into())
        };
        if let (Some(target), Some(owner)) = (target, operation.owner.clone().or_else(of_comment)) {
            owners.insert((operation.family, target), owner);
        }
    }
    let mut changes: BTreeMap<ArcStr, ServiceChanges> = BTreeMap::new();
    for operation in operations() {
        let target = element(&operation.action).and_then(|(_, target)| target);
        let of_target = || owners.get(&(operation.family, target?)).cloned();
        if let Some(owner) = operation.owner.clone().or_else(of_target) {
            changes.entry(owner).or_default().note(&operation.action);
        }
    }
    changes
}

/// The element of an operation, and the frontend that it is about.
fn element(action: &Action) -> Option<(&Element, Option<Target>)> {
    let (Action::AddElement(element) | Action::DeleteElement(element)) = action else { return None };
    let target = match element.key {
        Key::Target(target) | Key::Slot(target, _) => Some(target),
        Key::SourceRange(frontend, _) => Some(Target::Frontend(frontend)),
        _ => None,
    };
    Some((element, target))
}

fn text(report: &Report, paint: Paint) -> String {
    let mut text = String::new();
    let line = format!("Plan for node {}, from {}", report.node, report.from);
    let _ = writeln!(text, "{}", paint.heading(&line));
    for line in &report.replaced {
        let line = format!("replaced as a whole, without a gap (another serves meanwhile): {line}");
        let _ = writeln!(text, "  {}", paint.warning(&line));
    }
    for line in &report.foreign {
        let _ = writeln!(text, "  {}", paint.warning(&format!("removed: {line}")));
    }
    if report.surplus > 0 {
        let line = format!("removed: {} of large maps that no object asks for", count(report.surplus, "element"));
        let _ = writeln!(text, "  {}", paint.warning(&line));
    }
    if report.transactions.is_empty() && report.replaced.is_empty() && report.surplus == 0 {
        let _ = writeln!(text, "{}", paint.good("Nothing would change."));
        return text;
    }
    for service in report.services.iter().take(PRINTED) {
        let name = match service.name.as_str() {
            "node" => "The node itself".to_owned(),
            name => format!("Service {name}"),
        };
        let line = format!("{name}: {} added, {} removed", count(service.added, "element"), service.removed);
        let _ = writeln!(text, "\n{}", paint.heading(&line));
        for change in &service.changes {
            let _ = writeln!(text, "  {}", crate::logging::escape::escaped(change));
        }
    }
    push_more(&mut text, report.services.len(), " Services");
    let _ = writeln!(text, "\nTransactions");
    for (number, forecast) in report.transactions.iter().enumerate().take(PRINTED) {
        let _ = writeln!(text, "  {}. {forecast}", number + 1);
    }
    push_more(&mut text, report.transactions.len(), " transactions");
    let Report { added, removed, objects, .. } = report;
    let _ = writeln!(
        text,
        "\nTotal: {} added, {removed} removed, {} on tables, chains, rules and maps",
        count(*added, "element"),
        count(*objects, "operation")
    );
    for operation in &report.operations {
        let _ = writeln!(text, "{}", crate::logging::escape::escaped(operation));
    }
    text
}

fn push_more(text: &mut String, count: usize, what: &str) {
    if count > PRINTED {
        let _ = write!(text, "\n{}", more(count, PRINTED, what));
    }
}

#[cfg(test)]
mod tests;
