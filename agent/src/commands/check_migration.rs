//! `vmap-proxy check-migration`: compares the verdicts of a running kube-proxy
//! (nftables or iptables mode) with ours, over all frontends and kinds of clients.
//! It changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use ipnet::IpNet;
use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::explain::answer::{Detail, Explanation, Fate, FrontendState, Question as PacketQuestion};
use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::words::count;

use super::asked::{AskError, Asked};
use super::explain::{node_address, outside, usual_interface};
use crate::cli::CheckMigrationOptions;
use crate::migration::iptables::{self, KubeProxyChains, ParseError};
use crate::migration::nftables::KubeProxyTable;
use crate::migration::{Frontend, KubeProxy, Outcome, Packet};
use crate::netlink::SocketError;
use crate::query::protocol::{Detector, NodeAnswer};
use crate::terminal::{Paint, more, print, rendered};

/// The two differ.
const DIFFERS: u8 = 3;

/// Differences that are listed, at most; the rest are counted.
const LISTED: usize = 1000;

/// The part of its fair chance by which an endpoint's may differ: kube-proxy's are
/// rounded.
const UNEVEN: f64 = 0.02;

/// Differences in the text form, at most.
const PRINTED: usize = 50;

/// The reason why nothing was compared.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers for vmap-proxy.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The kernel can't be read.
    #[error("kube-proxy's table can't be read: {0}")]
    Kernel(#[from] SocketError),
    /// There is nothing to compare with.
    #[error(
        "there is no table kube-proxy in this network namespace: kube-proxy does not run in nftables mode here. If it runs \
         in iptables mode: (iptables-save; ip6tables-save) | vmap-proxy check-migration --iptables-save - …"
    )]
    NoKubeProxy,
    /// The rules of the iptables mode can't be read.
    #[error("{} can't be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The rules of the iptables mode can't be understood.
    #[error("the rules of kube-proxy: {0}")]
    Rules(#[from] ParseError),
    /// The comparison could not be printed.
    #[error("the comparison could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The comparison could not be written as JSON.
    #[error("the comparison could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The result.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: u32,
    node: String,
    /// Frontends of either side.
    frontends: usize,
    /// Packets that were compared: one for each frontend and kind of client.
    compared: usize,
    differences: Vec<Difference>,
    difference_count: usize,
    /// What could not be compared, and why.
    not_compared: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    /// `10.96.0.10:80/TCP`, `node port 30080/TCP`
    frontend: String,
    /// `pod`, `node` or `outside`
    client: &'static str,
    /// The Service, if ours knows one.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    kube_proxy: String,
    vmap_proxy: String,
    /// The decision of ours, with the field behind it.
    reason: String,
}

/// Compares, and prints the differences.
///
/// # Errors
/// If either side can't be read.
pub fn check_migration(options: CheckMigrationOptions) -> Result<ExitCode, Error> {
    let mut asked = Asked::open(options.source)?;
    let node = asked.node()?;
    let own = own_frontends(&mut asked)?;
    let mut report = Report { version: 1, node: node.name.clone(), ..Report::default() };
    let rules = match options.iptables_save.is_empty() {
        true => of_nftables()?,
        false => of_iptables(&options.iptables_save, &node)?,
    };
    for (family, rules) in &rules {
        compare_family(&mut asked, &node, (*family, rules), &own, &mut report)?;
    }
    print(&rendered(options.output, &report, text)?)?;
    Ok(if report.difference_count == 0 { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// What kube-proxy has in the kernel.
fn of_nftables() -> Result<Vec<(Family, KubeProxy)>, Error> {
    let mut rules = Vec::new();
    for family in crate::netlink::families() {
        rules.extend(KubeProxyTable::read(family)?.map(|table| (family, KubeProxy::Nftables(table))));
    }
    if rules.is_empty() { Err(Error::NoKubeProxy) } else { Ok(rules) }
}

/// What kube-proxy has in files, or in the text at standard input.
fn of_iptables(paths: &[PathBuf], node: &NodeAnswer) -> Result<Vec<(Family, KubeProxy)>, Error> {
    let mut text = String::new();
    for path in paths {
        let read = match path.as_os_str() == "-" {
            true => io::read_to_string(io::stdin()),
            false => std::fs::read_to_string(path),
        };
        text.push_str(&read.map_err(|source| Error::Unreadable { path: path.clone(), source })?);
        text.push('\n');
    }
    let local: Vec<IpAddr> = node.addresses.iter().chain(&node.interface_addresses).copied().collect();
    let of_family = |mut chains: KubeProxyChains| {
        chains.set_local_addresses(local.clone());
        (chains.family(), KubeProxy::Iptables(Box::new(chains)))
    };
    Ok(iptables::parse(&text)?.into_iter().map(of_family).collect())
}

/// The frontends that we serve, refuse or drop.
fn own_frontends(asked: &mut Asked) -> Result<BTreeSet<Frontend>, AskError> {
    let mut own = BTreeSet::new();
    asked.each_service(None, Detail::Frontends, |service| {
        let frontends = service.ports.iter().flat_map(|port| &port.frontends);
        let ours = frontends.filter(|one| !matches!(one.state, FrontendState::Denied | FrontendState::NotProgrammed));
        own.extend(ours.map(|one| Frontend { address: one.address, protocol: one.protocol, port: one.port }));
    })?;
    Ok(own)
}

fn compare_family(
    asked: &mut Asked,
    node: &NodeAnswer,
    (family, rules): (Family, &KubeProxy),
    own: &BTreeSet<Frontend>,
    report: &mut Report,
) -> Result<(), AskError> {
    let is_of_family = |frontend: &&Frontend| frontend.address.is_none_or(|address| Family::of(address) == family);
    let frontends: BTreeSet<Frontend> =
        rules.all().into_iter().chain(own.iter().filter(is_of_family).copied()).collect();
    let clients = clients(node, family);
    let node_address = node_address(node, family).ok();
    for frontend in frontends {
        let Some(address) = frontend.address.or(node_address) else {
            note(report, format!("{}: this node has no {family} address", name(&frontend)));
            continue;
        };
        report.frontends += 1;
        if rules.has_source_ranges(&frontend) {
            note(report, format!("{}: loadBalancerSourceRanges are not compared", name(&frontend)));
        }
        for (client, source) in &clients {
            if *client == "outside" && rules.has_source_ranges(&frontend) {
                continue;
            }
            let is_own = *client == "node";
            let destination = SocketAddr::new(address, frontend.port);
            let interface = (!is_own).then(|| usual_interface(node, *source));
            let packet = Packet {
                source: *source,
                is_own,
                interface: interface.clone(),
                destination,
                protocol: frontend.protocol,
            };
            let outcome = rules.outcome(&frontend, &packet);
            if let Some(unknown) = &outcome.unknown {
                note(report, format!("{} from {client}: {unknown} is not understood", name(&frontend)));
                continue;
            }
            let question = PacketQuestion {
                source: *source,
                destination: address,
                protocol: frontend.protocol,
                port: frontend.port,
                interface,
            };
            let ours = asked.packet(&question, None)?;
            report.compared += 1;
            if let Some(difference) = difference(&frontend, client, &outcome, &ours) {
                report.difference_count += 1;
                if report.differences.len() < LISTED {
                    report.differences.push(difference);
                }
            }
        }
    }
    Ok(())
}

fn note(report: &mut Report, what: String) {
    if report.not_compared.len() < LISTED {
        report.not_compared.push(what);
    }
}

/// A pod of this node, this node itself, and a client outside.
fn clients(node: &NodeAnswer, family: Family) -> Vec<(&'static str, IpAddr)> {
    let of_family = |range: &&IpNet| Family::of(range.addr()) == family;
    let detected = node.rules.iter().filter_map(|rules| match &rules.detector {
        Some(Detector::Source(range)) => Some(range),
        _ => None,
    });
    let range = node.pod_cidrs.iter().chain(detected).find(of_family);
    let mut clients = vec![("outside", outside(family))];
    // The last address but one: hardly a pod has it.
    clients.extend(range.and_then(|range| Some(("pod", range.hosts().next_back()?))));
    clients.extend(node_address(node, family).ok().map(|address| ("node", address)));
    clients
}

fn name(frontend: &Frontend) -> String {
    match frontend.address {
        Some(address) => format!("{}/{}", SocketAddr::new(address, frontend.port), frontend.protocol),
        None => format!("node port {}/{}", frontend.port, frontend.protocol),
    }
}

/// What one side does with a packet.
#[derive(Debug, PartialEq, Eq)]
struct Side {
    verdict: &'static str,
    /// Endpoints, and whether each sees an address of this node.
    endpoints: BTreeMap<SocketAddr, bool>,
}

impl Side {
    fn of_kube_proxy(outcome: &Outcome) -> Self {
        let verdict = match (outcome.endpoints.is_empty(), outcome.drops, outcome.rejects) {
            (false, ..) => "reaches",
            (true, true, _) => "dropped",
            (true, false, true) => "refused",
            (true, false, false) => "not touched",
        };
        Self { verdict, endpoints: outcome.endpoints.clone() }
    }

    fn of_ours(ours: &Explanation) -> Self {
        let verdict = match ours.verdict {
            Fate::Dnat | Fate::Inconsistent => "reaches",
            Fate::Drop => "dropped",
            Fate::Reject => "refused",
            Fate::Pass => "not touched",
        };
        let endpoints = ours.endpoints.iter();
        let endpoints = endpoints.map(|one| (SocketAddr::new(one.address, one.port), one.masqueraded)).collect();
        Self { verdict, endpoints }
    }

    /// In words, with only the endpoints that the other side treats otherwise.
    fn text(&self, other: &Self) -> String {
        let mut text = self.verdict.to_owned();
        let differing = self.endpoints.iter().filter(|(endpoint, way)| other.endpoints.get(endpoint) != Some(way));
        let named: Vec<String> = differing
            .take(4)
            .map(|(endpoint, masqueraded)| {
                format!("{endpoint} ({})", if *masqueraded { "masqueraded" } else { "source kept" })
            })
            .collect();
        if !named.is_empty() {
            let _ = write!(text, " {}", named.join(", "));
        } else if !self.endpoints.is_empty() {
            let _ = write!(text, " {}", count(self.endpoints.len(), "endpoint"));
        }
        text
    }
}

fn difference(frontend: &Frontend, client: &'static str, outcome: &Outcome, ours: &Explanation) -> Option<Difference> {
    let (theirs, own) = (Side::of_kube_proxy(outcome), Side::of_ours(ours));
    // A long answer is cut, and only its length can be compared.
    let is_same = match ours.endpoint_count > ours.endpoints.len() {
        true => theirs.endpoints.len() == ours.endpoint_count && theirs.verdict == own.verdict,
        false => theirs == own,
    };
    let uneven =
        outcome.chances.iter().find(|(_, chance)| (**chance * ours.endpoint_count as f64 - 1.0).abs() > UNEVEN);
    let uneven = uneven.filter(|_| is_same);
    if is_same && uneven.is_none() {
        return None;
    }
    let (mut kube_proxy, mut vmap_proxy) = (theirs.text(&own), own.text(&theirs));
    if let Some((endpoint, chance)) = uneven {
        let fair = 1.0 / ours.endpoint_count as f64;
        for (text, chance) in [(&mut kube_proxy, *chance), (&mut vmap_proxy, fair)] {
            let _ = write!(text, ", {endpoint} by {:.1} %", chance * 100.0);
        }
    }
    let causes: Vec<String> = ours.decision.causes.iter().map(ToString::to_string).collect();
    let reason = match causes.is_empty() {
        true => ours.decision.text.clone(),
        false => format!("{} ({})", ours.decision.text, causes.join("; ")),
    };
    Some(Difference {
        frontend: name(frontend),
        client,
        service: ours.service.as_ref().map(|port| format!("{}/{}", port.namespace, port.name)),
        kube_proxy,
        vmap_proxy,
        reason,
    })
}

fn text(report: &Report, paint: Paint) -> String {
    let Report { node, frontends, compared, difference_count, .. } = report;
    let mut text = String::new();
    let line = format!("{} of node {node}, {} compared", count(*frontends, "frontend"), count(*compared, "packet"));
    let _ = writeln!(text, "{}", paint.heading(&line));
    if *difference_count == 0 {
        let _ = writeln!(text, "{}", paint.good("kube-proxy and vmap-proxy do the same with each."));
    } else {
        let _ = writeln!(text, "{}", paint.bad(&format!("{difference_count} differ:")));
    }
    for one in report.differences.iter().take(PRINTED) {
        let service = one.service.as_ref().map(|service| format!(", Service {service}")).unwrap_or_default();
        let _ = writeln!(text, "\n{}", paint.heading(&format!("{} from {}{service}", one.frontend, one.client)));
        let _ = writeln!(text, "  kube-proxy  {}", paint.warning(&one.kube_proxy));
        let _ = writeln!(text, "  vmap-proxy  {}", paint.warning(&one.vmap_proxy));
        let _ = writeln!(text, "  because     {}", crate::logging::escape::escaped(&one.reason));
    }
    if *difference_count > PRINTED {
        let _ = write!(text, "\n{}", more(*difference_count, PRINTED, ""));
    }
    if !report.not_compared.is_empty() {
        let _ = writeln!(text, "\nNot compared");
        for line in report.not_compared.iter().take(PRINTED) {
            let _ = writeln!(text, "  {}", crate::logging::escape::escaped(line));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_names_the_endpoints_that_the_other_treats_otherwise() {
        let endpoint = |text: &str| text.parse::<SocketAddr>().unwrap();
        let side = |endpoints: &[(&str, bool)]| Side {
            verdict: "reaches",
            endpoints: endpoints.iter().map(|(one, masqueraded)| (endpoint(one), *masqueraded)).collect(),
        };
        let one = side(&[("10.244.1.5:80", true), ("10.244.1.6:80", false)]);
        let other = side(&[("10.244.1.5:80", false), ("10.244.1.6:80", false)]);
        assert_eq!(one.text(&other), "reaches 10.244.1.5:80 (masqueraded)");
        assert_eq!(other.text(&one), "reaches 10.244.1.5:80 (source kept)");
        assert_eq!(one.text(&one), "reaches 2 endpoints");
    }
}
