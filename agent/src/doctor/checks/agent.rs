//! The running agent has everything programmed, and hears from the API server.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmap_proxy_compiler::ruleset::TABLE;
use vmap_proxy_compiler::words::count;

use crate::doctor::facts::{Agent, AgentFact, Facts};
use crate::doctor::{Finding, Severity};
use crate::lists::some_of;
use crate::query::protocol::{SILENCE, StatusAnswer};

/// Services that one finding names.
const NAMED: usize = 5;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    if let AgentFact::None(socket) = &facts.agent {
        return vec![no_agent(socket, facts.chains.iter().any(|chain| chain.table == TABLE))];
    }
    if let AgentFact::Silent(error) = &facts.agent {
        let remedy = "see whether it runs and is of this version: vmap-proxy status, and its log";
        return vec![Finding::new(
            Severity::Warning,
            "agent",
            format!("not checked, because it does not answer: {error}"),
            remedy,
        )];
    }
    let Some(Agent { status, without_endpoints }) = facts.agent.answer() else { return Vec::new() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let findings = [
        out_of_step(status),
        refused(status),
        too_large(status),
        contested(status),
        silent(status, now),
        version(status),
        match without_endpoints {
            Ok(services) => idle(services),
            Err(error) => Some(idle_unknown(error)),
        },
    ];
    findings.into_iter().flatten().collect()
}

/// A node may be examined before there is an agent. Rules without one are a
/// warning: they follow no change.
fn no_agent(socket: &Path, has_rules: bool) -> Finding {
    let remedy = "start it, or name its socket with --socket";
    let (severity, what) = match has_rules {
        true => (Severity::Warning, "its rules are there, and follow no change"),
        false => (Severity::Note, "there are no rules of it either, so Services are not served by vmap-proxy"),
    };
    Finding::new(severity, "agent", format!("none answers at {}: {what}", socket.display()), remedy)
}

/// Services may be without endpoints by intent.
fn idle(without_endpoints: &[String]) -> Option<Finding> {
    let number = without_endpoints.len();
    let finding =
        format!("a port of {} has no endpoint, so clients are refused: {number} in all", names(without_endpoints)?);
    let remedy = "vmap-proxy explain --to svc:NAMESPACE/NAME answers why";
    Some(Finding::new(Severity::Note, "Services without endpoints", finding, remedy))
}

fn idle_unknown(error: &str) -> Finding {
    let finding = format!("not checked, because the agent did not list them: {error}");
    Finding::new(Severity::Note, "Services without endpoints", finding, "vmap-proxy get services lists all")
}

fn out_of_step(agent: &StatusAnswer) -> Option<Finding> {
    let finding = match (agent.ready, agent.failure()) {
        (false, _) => "it waits for the first complete list of objects; until then nothing is programmed".to_owned(),
        (true, Some(failure)) => format!("its last sync failed: {failure}"),
        (true, None) => return None,
    };
    Some(Finding::new(Severity::Error, "agent", finding, "read its log; vmap-proxy journal has the last syncs"))
}

fn refused(agent: &StatusAnswer) -> Option<Finding> {
    let finding = format!(
        "the kernel refused {}; rules of an earlier state stay, where there were any",
        names(&agent.quarantined)?
    );
    let remedy = "vmap-proxy journal has the kernel's reasons; please report them";
    Some(Finding::new(Severity::Error, "quarantined Services", finding, remedy))
}

fn too_large(agent: &StatusAnswer) -> Option<Finding> {
    let services = count(agent.too_large, "Service");
    let finding = format!("not programmed, because of too many elements: {services}");
    let remedy = "the agent's log names them; make several Services of each";
    (agent.too_large > 0).then(|| Finding::new(Severity::Error, "large Services", finding, remedy))
}

fn contested(agent: &StatusAnswer) -> Option<Finding> {
    let contested = agent.contested.iter();
    let lines: Vec<String> = contested
        .map(|one| format!("{} ({}; {} has it, it {})", one.service, one.frontend, one.holder, one.why()))
        .collect();
    let finding = format!("another Service has an address and port of {}", names(&lines)?);
    let remedy = "give one of the two another port or address";
    Some(Finding::new(Severity::Warning, "contested Services", finding, remedy))
}

fn silent(agent: &StatusAnswer, now: Duration) -> Option<Finding> {
    let (resource, received) = agent.longest_silent()?;
    let age = now.saturating_sub(Duration::from_millis(received));
    let finding = format!(
        "the agent heard nothing about {resource} for {} s, so its rules may be behind: {}",
        age.as_secs(),
        agent.source
    );
    let remedy = "check the API server and the way to it; the agent's log has the reason";
    (age > SILENCE).then(|| Finding::new(Severity::Error, "API server", finding, remedy))
}

fn version(agent: &StatusAnswer) -> Option<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let finding = format!("it is of version {}, this program of {own}", agent.program);
    (agent.program != own).then(|| Finding::new(Severity::Note, "agent", finding, ""))
}

/// The first of some names; `None` if there is none.
fn names(all: &[String]) -> Option<String> {
    (!all.is_empty()).then(|| some_of(all, NAMED))
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::plan::claims::Reason;
    use vmap_proxy_wire::nf_tables::all_chains::{AnyChain, AnyFamily};

    use super::*;
    use crate::query::protocol::ContestedLine;

    #[test]
    fn what_the_agent_lacks_is_found() {
        let now = Duration::from_secs(1_000_000);
        let contested = |number: usize| ContestedLine {
            service: format!("shop/b-{number}"),
            frontend: "10.96.0.10 port 80/TCP".to_owned(),
            holder: "shop/a".to_owned(),
            reason: Some(Reason::Name),
        };
        let agent = StatusAnswer {
            program: "0.0.0".to_owned(),
            quarantined: vec!["shop/cart".to_owned()],
            too_large: 1,
            contested: (0..7).map(contested).collect(),
            source: "the API server".to_owned(),
            last_received: [("services".to_owned(), 840_000_000), ("nodes".to_owned(), 999_000_000)].into(),
            ..StatusAnswer::default()
        };
        assert!(out_of_step(&agent).unwrap().finding.contains("first complete list"));
        assert!(refused(&agent).unwrap().finding.contains("shop/cart"));
        assert!(too_large(&agent).unwrap().finding.ends_with(": 1 Service"));
        assert!(
            contested_text(&agent).contains("shop/b-0 (10.96.0.10 port 80/TCP; shop/a has it, it comes first by name")
        );
        assert!(contested_text(&agent).ends_with("and 2 more"));
        assert!(silent(&agent, now).unwrap().finding.contains("about services for 160000 s"));
        assert_eq!(version(&agent).unwrap().severity, Severity::Note);
        let healthy =
            StatusAnswer { program: env!("CARGO_PKG_VERSION").to_owned(), ready: true, ..StatusAnswer::default() };
        let healthy = Agent { status: healthy, without_endpoints: Ok(Vec::new()) };
        assert_eq!(check(&with(healthy.clone())), []);
        let without_endpoints = (0..6).map(|number| format!("shop/a-{number}")).collect();
        let agent = Agent { without_endpoints: Ok(without_endpoints), ..healthy.clone() };
        let findings = check(&with(agent));
        assert_eq!((findings.len(), findings[0].severity), (1, Severity::Note));
        assert!(findings[0].finding.contains("shop/a-4 and 1 more has no endpoint"), "{findings:?}");
        assert!(findings[0].finding.ends_with("6 in all"), "{findings:?}");
        assert_eq!(check(&Facts::default()), []);

        let older = Agent { without_endpoints: Err("unknown question".to_owned()), ..healthy };
        let findings = check(&with(older));
        assert_eq!((findings.len(), findings[0].severity), (1, Severity::Note));
        let silent = AgentFact::Silent("no answer".to_owned());
        let findings = check(&Facts { agent: silent, ..Facts::default() });
        assert_eq!((findings.len(), findings[0].severity), (1, Severity::Warning));
    }

    fn with(agent: Agent) -> Facts {
        Facts { agent: AgentFact::Answers(Box::new(agent)), ..Facts::default() }
    }

    #[test]
    fn rules_without_an_agent_are_a_warning() {
        let none = Facts { agent: AgentFact::None("/run/s".into()), ..Facts::default() };
        assert_eq!(check(&none)[0].severity, Severity::Note);
        let chain = AnyChain { family: AnyFamily(2), table: TABLE.to_owned(), name: "c".to_owned(), base: None };
        let findings = check(&Facts { chains: vec![chain], ..none });
        assert_eq!((findings.len(), findings[0].severity), (1, Severity::Warning));
        assert!(findings[0].finding.contains("none answers at /run/s"), "{findings:?}");
    }

    fn contested_text(agent: &StatusAnswer) -> String {
        contested(agent).unwrap().finding
    }
}
