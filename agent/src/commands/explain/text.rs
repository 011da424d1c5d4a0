//! Explanations for people.

use std::fmt::Write as _;
use std::net::SocketAddr;

use vmap_proxy_compiler::explain::answer::{
    Decision, EndpointLeftOut, EndpointUse, Explanation, Fate, FrontendAnswer, PortAnswer, PortName, ServiceAnswer,
};
use vmap_proxy_compiler::words::count;

use super::live::{KernelAlone, WithNext};
use super::place::UPLINK;
use crate::query::kernel::KernelAnswer;
use crate::query::lines::{frontend_text, state_text};
use crate::terminal::{Paint, columns, more};

/// Endpoints of a kind that are printed; the JSON form has more.
const PRINTED: usize = 20;

fn port_name(port: &PortName) -> String {
    let PortName { namespace, name, port_name, protocol, port } = port;
    let label = if port_name.is_empty() { String::new() } else { format!(" {port_name}") };
    format!("Service {namespace}/{name} port{label} {port}/{protocol}")
}

/// One packet; `doubt` ends the verdict on one that gets through.
pub(super) fn packet(answer: &WithNext<'_, Explanation>, doubt: &str, paint: Paint) -> String {
    let WithNext { answer, next } = answer;
    let mut text = String::new();
    let packet = &answer.packet;
    let to = SocketAddr::new(packet.destination, packet.port);
    // The name stands for any interface.
    let way = match packet.interface.as_deref() {
        None => "sent by the node".to_owned(),
        Some(UPLINK) => "arrives at the node".to_owned(),
        Some(name) => format!("arrives on {name}"),
    };
    let line = format!("{} -> {to}/{} on node {}, {way}", packet.source, packet.protocol, answer.node);
    let _ = writeln!(text, "{}\n", paint.heading(&line));

    let _ = writeln!(text, "Verdict  {}", verdict(answer, doubt, paint));
    push_decision(&mut text, "Because  ", &answer.decision, paint);
    push_next(&mut text, next.as_deref());
    let others: Vec<&Decision> = answer.decisions.iter().filter(|one| **one != answer.decision).collect();
    push_decisions(&mut text, "Then", &others, paint);
    push_endpoints(&mut text, &answer.endpoints, answer.endpoint_count, true);
    push_unused(&mut text, &answer.unused, answer.unused_count);
    push_decisions(&mut text, "Notes", &answer.notes.iter().collect::<Vec<_>>(), paint);
    if !answer.path.is_empty() {
        let _ = writeln!(text, "\nPath");
        let rows: Vec<Vec<String>> = answer
            .path
            .iter()
            .map(|step| {
                let found = match (&step.map, &step.element) {
                    (Some(map), Some(element)) => format!("{map} {{ {element} }}"),
                    _ => step.rule.clone(),
                };
                vec![step.hook.clone(), step.chain.clone(), found]
            })
            .collect();
        text.push_str(&columns("  ", &rows));
    }
    text
}

/// Good news only without a doubt.
fn reached(text: &str, doubt: &str, paint: Paint) -> String {
    let text = format!("{text}{doubt}");
    if doubt.is_empty() { paint.good(&text) } else { paint.warning(&text) }
}

fn verdict(answer: &Explanation, doubt: &str, paint: Paint) -> String {
    let service = answer.service.as_ref().map(port_name).unwrap_or_default();
    match answer.verdict {
        Fate::Dnat => reached(&format!("reaches {} of {service}", endpoint_text(answer.endpoint_count)), doubt, paint),
        Fate::Drop => paint.bad("dropped, without an answer"),
        Fate::Reject => paint.bad("refused (port unreachable)"),
        Fate::Pass => paint.warning(&format!("not touched: it goes where it was sent to{doubt}")),
        Fate::Inconsistent => paint.bad("depends on chance: the rule set is damaged"),
    }
}

fn endpoint_text(number: usize) -> String {
    if number == 1 { "the only endpoint".to_owned() } else { format!("one of {number} endpoints") }
}

fn push_decision(text: &mut String, label: &str, decision: &Decision, paint: Paint) {
    let indent = " ".repeat(label.len());
    let _ = writeln!(text, "{label}{}", crate::logging::escape::escaped(&decision.text));
    for cause in &decision.causes {
        let _ = writeln!(text, "{indent}  {}", paint.faint(&cause.to_string()));
    }
}

fn push_next(text: &mut String, next: Option<&str>) {
    if let Some(next) = next {
        let _ = writeln!(text, "Next     {}", crate::logging::escape::escaped(next));
    }
}

fn push_decisions(text: &mut String, heading: &str, decisions: &[&Decision], paint: Paint) {
    if decisions.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{heading}");
    for decision in decisions.iter().take(PRINTED) {
        push_decision(text, "  ", decision, paint);
    }
    text.push_str(&more(decisions.len(), PRINTED, ""));
}

fn push_endpoints(text: &mut String, endpoints: &[EndpointUse], count: usize, with_source: bool) {
    if endpoints.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nEndpoints");
    let row = |one: &EndpointUse| {
        let mut row = vec![SocketAddr::new(one.address, one.port).to_string(), format!("1 in {}", one.one_in)];
        row.push(if one.local { "this node" } else { "other node" }.to_owned());
        if with_source {
            row.push(if one.masqueraded { "masqueraded" } else { "source kept" }.to_owned());
        }
        row.push(one.cause.as_ref().map_or("no slice lists it any more".to_owned(), ToString::to_string));
        row
    };
    text.push_str(&columns("  ", &endpoints.iter().take(PRINTED).map(row).collect::<Vec<_>>()));
    text.push_str(&more(count, PRINTED, ""));
}

fn push_unused(text: &mut String, unused: &[EndpointLeftOut], count: usize) {
    if unused.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nNot used");
    let row = |one: &EndpointLeftOut| {
        vec![SocketAddr::new(one.address, one.port).to_string(), one.text.clone(), one.cause.to_string()]
    };
    text.push_str(&columns("  ", &unused.iter().take(PRINTED).map(row).collect::<Vec<_>>()));
    text.push_str(&more(count, PRINTED, ""));
}

/// The kernel's decision, under an agent's answer or alone.
pub(super) fn kernel(answer: &KernelAnswer, with_agent: bool, paint: Paint) -> String {
    let mut text = String::from("\n");
    let agrees = answer.differences.is_empty();
    let line = match (agrees, with_agent) {
        (true, true) => paint.good("Kernel   has the same rules"),
        (true, false) => paint.good("Kernel   has the rules of this configuration"),
        (false, _) => paint.bad("Kernel   differs"),
    };
    let _ = writeln!(text, "{line}");
    for difference in &answer.differences {
        let _ = writeln!(text, "  {}", paint.warning(difference));
    }
    if let Some(endpoint) = answer.remembered {
        let _ = writeln!(text, "  this client is remembered, and goes to {endpoint}");
    }
    // Connections that hang in spite of right rules are the question that remains.
    text.push_str(
        "  other programs' chains are not part of this answer: `vmap-proxy doctor` lists those in the way, and \
         `vmap-proxy trace` follows real packets\n",
    );
    text
}

/// The answer of the kernel alone.
pub(super) fn kernel_alone(alone: &KernelAlone<'_>, doubt: &str, paint: Paint) -> String {
    let KernelAlone { packet, kernel: answer, next, .. } = alone;
    let mut text = String::new();
    let to = SocketAddr::new(packet.destination, packet.port);
    let line = format!("{} -> {to}/{} by the kernel's elements", packet.source, packet.protocol);
    let _ = writeln!(text, "{}\n", paint.heading(&line));
    let owner = answer.owner.as_ref().map(|owner| format!(" of {owner}")).unwrap_or_default();
    let verdict = match answer.verdict {
        Fate::Dnat => reached(&format!("reaches {}{owner}", endpoint_text(answer.endpoints.len())), doubt, paint),
        Fate::Drop => paint.bad(&format!("dropped, without an answer{owner}")),
        Fate::Reject => paint.bad(&format!("refused (port unreachable){owner}")),
        Fate::Pass => paint.warning(&format!("not touched: it goes where it was sent to{doubt}")),
        Fate::Inconsistent => paint.bad("depends on chance: the elements are damaged"),
    };
    let _ = writeln!(text, "Verdict  {verdict}");
    push_next(&mut text, next.as_deref());
    let row = |endpoint: &SocketAddr| {
        let source = if answer.masqueraded.contains(endpoint) { "masqueraded" } else { "source kept" };
        vec![endpoint.to_string(), source.to_owned()]
    };
    if !answer.endpoints.is_empty() {
        let _ = writeln!(text, "\nEndpoints");
        text.push_str(&columns("  ", &answer.endpoints.iter().take(PRINTED).map(row).collect::<Vec<_>>()));
        text.push_str(&more(answer.endpoints.len(), PRINTED, ""));
    }
    text + &kernel(answer, false, paint)
}

/// One Service.
pub(super) fn service(answer: &WithNext<'_, ServiceAnswer>, paint: Paint) -> String {
    let WithNext { answer, next } = answer;
    let mut text = String::new();
    let line = format!("Service {}/{} on node {}", answer.namespace, answer.name, answer.node);
    let _ = writeln!(text, "{}\n", paint.heading(&line));
    let programmed = if answer.programmed { paint.good("programmed") } else { paint.bad("not programmed") };
    let _ = writeln!(text, "State    {programmed}");
    for reason in &answer.reasons {
        push_decision(&mut text, "Because  ", reason, paint);
    }
    push_next(&mut text, next.as_deref());
    for port in &answer.ports {
        push_port(&mut text, port, paint);
    }
    text
}

fn push_port(text: &mut String, port: &PortAnswer, paint: Paint) {
    let _ = writeln!(text, "\n{}", paint.heading(&port_name(&port.port)));
    let row = |one: &FrontendAnswer| {
        let local = one.local_endpoints.map(|number| format!(", {number} on this node")).unwrap_or_default();
        let endpoints = count(one.cluster_endpoints, "endpoint") + &local;
        vec![frontend_text(one), state_text(one).into_owned(), endpoints, one.cause.to_string()]
    };
    text.push_str(&columns("  ", &port.frontends.iter().map(row).collect::<Vec<_>>()));
    push_endpoints(text, &port.endpoints, port.endpoint_count, false);
    push_unused(text, &port.unused, port.unused_count);
    push_decisions(text, "Notes", &port.notes.iter().collect::<Vec<_>>(), paint);
}
