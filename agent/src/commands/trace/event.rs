//! Trace events in terms of Services, policies and reasons.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use nix::net::if_::if_indextoname;
use serde::Serialize;
use vmap_proxy_compiler::model::{Family, Protocol};
use vmap_proxy_compiler::ruleset::TABLE;
use vmap_proxy_compiler::ruleset::target::FrontendKey;
use vmap_proxy_wire::nf_tables::trace_event::{TraceEvent, TraceKind, TracePacket, TraceVerdict};

use super::filter::MARK;
use crate::netlink::NetlinkError;
use crate::query::owners::{Owner, Owners};
use crate::terminal::Paint;

/// One line of the trace.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    version: u32,
    /// The packet, from 1 on.
    packet: u64,
    /// What happened.
    pub(super) event: &'static str,
    /// In one sentence.
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Owner>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<String>,
}

/// A packet that is traced.
struct Traced {
    number: u64,
    /// Its headers when they were last shown.
    shown: Option<TracePacket>,
}

/// Packets by the kernel's numbers.
pub(super) struct Packets {
    /// Our side table: only packets that it marked are shown, because others may
    /// trace, too.
    side_table: String,
    owners: Owners,
    packets: HashMap<u32, Traced>,
    count: u64,
}

/// Packets that are remembered at most. The kernel's numbers come again.
const REMEMBERED: usize = 4096;

impl Packets {
    pub(super) fn new(side_table: String, owners: Owners) -> Self {
        Self { side_table, owners, packets: HashMap::new(), count: 0 }
    }

    /// The number of packets so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The lines of an event.
    ///
    /// # Errors
    /// If the kernel's elements can't be read.
    pub(super) fn lines(&mut self, event: &TraceEvent<'_>) -> Result<Vec<Line>, NetlinkError> {
        if event.table == self.side_table {
            if event.chain == MARK && event.kind == TraceKind::Rule {
                self.begin(event.id);
            }
            return Ok(self.headers(event)?.into_iter().collect());
        }
        if !self.packets.contains_key(&event.id) {
            return Ok(Vec::new());
        }
        let mut lines: Vec<Line> = self.headers(event)?.into_iter().collect();
        lines.extend(self.verdict(event));
        Ok(lines)
    }

    /// A packet was marked. A number that comes again is another packet.
    fn begin(&mut self, id: u32) {
        if self.packets.len() >= REMEMBERED {
            self.packets.clear();
        }
        self.count += 1;
        self.packets.insert(id, Traced { number: self.count, shown: None });
    }

    /// The line of new or changed headers.
    fn headers(&mut self, event: &TraceEvent<'_>) -> Result<Option<Line>, NetlinkError> {
        let Some(packet) = event.packet else { return Ok(None) };
        let Some(traced) = self.packets.get_mut(&event.id) else { return Ok(None) };
        let before = traced.shown.replace(packet);
        let number = traced.number;
        let is_first = before.is_none();
        if before == Some(packet) {
            return Ok(None);
        }
        let service = match is_first {
            true => self.owner(&packet)?,
            false => None,
        };
        let to = at(packet.destination, packet.ports.map(|(_, to)| to));
        let text = match before {
            None => first_text(&packet, event.input, service.as_ref()),
            Some(before) if before.destination != packet.destination || before.ports != packet.ports => {
                format!("translated: now to {to}")
            }
            Some(_) => format!("now from {}", packet.source),
        };
        Ok(Some(Line {
            event: if is_first { "packet" } else { "translated" },
            source: packet.ports.map(|(from, _)| SocketAddr::new(packet.source, from)),
            destination: packet.ports.map(|(_, to)| SocketAddr::new(packet.destination, to)),
            protocol: packet.protocol,
            service,
            ..Line::new(number, text)
        }))
    }

    fn owner(&mut self, packet: &TracePacket) -> Result<Option<Owner>, NetlinkError> {
        let (Some(protocol), Some((_, port))) = (packet.protocol, packet.ports) else { return Ok(None) };
        let frontend = FrontendKey { address: packet.destination, protocol, port };
        self.owners.find(Family::of(packet.destination), [frontend])?;
        Ok(self.owners.of(&frontend).cloned())
    }

    fn verdict(&self, event: &TraceEvent<'_>) -> Option<Line> {
        let number = self.packets.get(&event.id)?.number;
        let is_ours = event.table == TABLE;
        let text = match (is_ours, event.verdict) {
            (true, verdict) => meaning(event.chain, verdict, event.kind)?,
            (false, TraceVerdict::Drop) => {
                let family = event.family.map_or("inet", Family::keyword);
                let by = if event.kind == TraceKind::Policy { "the policy of chain" } else { "a rule of chain" };
                format!("dropped by {by} {} of table {family} {}, which is not ours", event.chain, event.table)
            }
            // What others accept goes on.
            (false, _) => return None,
        };
        let verdict = match event.verdict {
            TraceVerdict::Accept => "accept".to_owned(),
            TraceVerdict::Drop => "drop".to_owned(),
            TraceVerdict::Continue => "continue".to_owned(),
            TraceVerdict::Return => "return".to_owned(),
            TraceVerdict::Jump(chain) => format!("jump {chain}"),
            TraceVerdict::Goto(chain) => format!("goto {chain}"),
            TraceVerdict::Other => "other".to_owned(),
        };
        Some(Line {
            event: if event.verdict == TraceVerdict::Drop { "drop" } else { "rule" },
            table: Some(event.table.to_owned()),
            chain: Some(event.chain.to_owned()),
            verdict: Some(verdict),
            ..Line::new(number, text)
        })
    }
}

fn at(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

fn first_text(packet: &TracePacket, input: Option<u32>, service: Option<&Owner>) -> String {
    let (from, to) = packet.ports.unzip();
    let protocol = packet.protocol.map(|protocol| format!("/{protocol}")).unwrap_or_default();
    let way = match input {
        Some(index) => if_indextoname(index).map_or_else(
            |_| format!("arrives on interface {index}"),
            |name| format!("arrives on {}", name.to_string_lossy()),
        ),
        None => "sent by this node".to_owned(),
    };
    let service = service.map_or_else(
        || "no Service has this destination".to_owned(),
        |owner| format!("Service {}/{} port {}", owner.namespace, owner.name, owner.port),
    );
    format!("{} -> {}{protocol}, {way}: {service}", at(packet.source, from), at(packet.destination, to))
}

/// The meaning of a verdict in one of our chains; `None` for steps that decide
/// nothing.
fn meaning(chain: &str, verdict: TraceVerdict<'_>, kind: TraceKind) -> Option<String> {
    let base = ["nodeport-short-circuit-", "short-circuit-", "nodeport-"]
        .into_iter()
        .find_map(|prefix| chain.strip_prefix(prefix))
        .unwrap_or(chain);
    let text = match (base, verdict) {
        ("reject-chain", TraceVerdict::Drop) => {
            "refused (ICMP port unreachable): no endpoint is ready, or the Service has no such port".to_owned()
        }
        ("cluster-ips-check", TraceVerdict::Drop) => {
            "dropped: the address is in a range of Services, and no Service has it".to_owned()
        }
        ("service-endpoints-check" | "endpoints-check", TraceVerdict::Drop) => {
            "dropped: a Local policy, and no endpoint on this node".to_owned()
        }
        (_, TraceVerdict::Drop) if base.starts_with("firewall") || base.starts_with("source-ranges") => {
            "dropped: the client is in none of spec.loadBalancerSourceRanges".to_owned()
        }
        (_, TraceVerdict::Drop) => format!("dropped in chain {chain}"),
        (_, TraceVerdict::Goto(to)) => goto_meaning(to)?,
        (_, TraceVerdict::Accept) if base.starts_with("lb-") => "an endpoint was drawn".to_owned(),
        (_, TraceVerdict::Accept) if base.starts_with("sticky-") => {
            "the client is remembered (session affinity): its endpoint stays".to_owned()
        }
        ("masquerading", TraceVerdict::Accept) if kind == TraceKind::Rule => {
            "masqueraded: the endpoint sees an address of this node".to_owned()
        }
        _ => return None,
    };
    Some(text)
}

fn goto_meaning(chain: &str) -> Option<String> {
    let spread = |rest: &str| match rest.strip_prefix("max-") {
        Some(most) => format!("at most {most} endpoints"),
        None if rest == "1" => "1 endpoint".to_owned(),
        None => format!("{rest} endpoints"),
    };
    if let Some((kind, rest)) = ["lb-", "sticky-"].into_iter().find_map(|kind| Some((kind, chain.split_once(kind)?.1)))
    {
        let affinity = if kind == "sticky-" { ", with session affinity" } else { "" };
        return Some(format!("served by {}{affinity}", spread(rest)));
    }
    match chain {
        "local-policy" | "nodeport-local-policy" => Some("externalTrafficPolicy: Local decides".to_owned()),
        "reject-chain" => Some("no endpoint is ready, or the Service has no such port".to_owned()),
        _ => None,
    }
}

impl Line {
    fn new(packet: u64, text: String) -> Self {
        Self {
            version: 1,
            packet,
            event: "",
            text,
            source: None,
            destination: None,
            protocol: None,
            service: None,
            table: None,
            chain: None,
            verdict: None,
        }
    }

    /// For people.
    pub(super) fn text(&self, paint: Paint) -> String {
        let number = format!("#{}", self.packet);
        let mut line = format!("{number:<4} ");
        let place = self.chain.as_ref().map(|chain| format!(" [{chain}]")).unwrap_or_default();
        let _ = match self.event {
            "packet" => write!(line, "{}", paint.heading(&self.text)),
            "drop" => write!(line, "  {}{}", paint.bad(&self.text), paint.faint(&place)),
            "translated" => write!(line, "  {}", paint.good(&self.text)),
            _ => write!(line, "  {}{}", crate::logging::escape::escaped(&self.text), paint.faint(&place)),
        };
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_explained() {
        let meaning = |chain, verdict| meaning(chain, verdict, TraceKind::Rule);
        assert_eq!(meaning("services", TraceVerdict::Goto("lb-3")).unwrap(), "served by 3 endpoints");
        assert_eq!(
            meaning("nodeports", TraceVerdict::Goto("nodeport-sticky-max-7")).unwrap(),
            "served by at most 7 endpoints, with session affinity"
        );
        assert!(meaning("nodeport-lb-2", TraceVerdict::Accept).unwrap().contains("drawn"));
        assert!(meaning("firewall-check", TraceVerdict::Drop).unwrap().contains("loadBalancerSourceRanges"));
        assert_eq!(meaning("filter-forward", TraceVerdict::Accept), None);
    }
}
