//! From the rules and elements on a packet's path to the fields that caused
//! them.

use std::sync::Arc;

use super::Known;
use super::answer::{Cause, Code, Decision};
use super::endpoints::{List, PortEndpoints};
use super::fields::{address_word, decision, is_internal, of_address, of_service, of_service_cidr, port_text};
use super::packet::{masquerade_all, no_detection};
use super::service::not_proxied;
use crate::evaluate::{Outcome, Packet, TraceStep, Verdict};
use crate::model::types::{Service, ServiceName, Unserved};
use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{self, Data, Key};
use crate::ruleset::maps::Map;
use crate::ruleset::rule::Statement;
use crate::ruleset::service::{Claim, all_frontends};
use crate::ruleset::target::{FrontendKey, Target};

/// The frontend that a packet meets.
pub(super) struct Serving {
    pub(super) name: ServiceName,
    pub(super) service: Arc<Service>,
    /// The position of the port in `service.ports`.
    pub(super) position: usize,
    pub(super) target: Target,
    pub(super) list: List,
}

/// Collects the decisions along the path.
pub(super) struct Story<'a> {
    known: &'a Known<'a>,
    packet: &'a Packet,
    family: Family,
    outcome: &'a Outcome,
    pub(super) decisions: Vec<Decision>,
    /// The one that led to the verdict.
    pub(super) decisive: Decision,
    pub(super) serving: Option<Serving>,
    firewall: Option<(ServiceName, FrontendKey)>,
}

impl<'a> Story<'a> {
    pub(super) fn new(known: &'a Known<'a>, packet: &'a Packet, family: Family, outcome: &'a Outcome) -> Self {
        let text = format!(
            "{} port {}/{} is no frontend of any Service: the packet goes where it was sent to",
            packet.destination, packet.port, packet.protocol
        );
        let decisive = decision(Code::NotAFrontend, text, []);
        Self { known, packet, family, outcome, decisions: Vec::new(), decisive, serving: None, firewall: None }
    }

    /// Takes the next rule of the path.
    pub(super) fn read(&mut self, step: &TraceStep) {
        let Some(found) = &step.found else { return };
        match (step.chain, found.map, found.key) {
            (_, Map::FirewallIps, Key::Target(Target::Frontend(key))) => {
                let holder = self.known.planner.holder(self.family, &Claim::Firewall(key));
                self.firewall = holder.map(|name| (name.clone(), key));
            }
            (Chain::Frontends(_), Map::Frontends(_), Key::Target(target)) => {
                self.frontend(target, Claim::Serve(target));
            }
            (Chain::LocalPolicy(_), Map::ShortCircuit(_), _) => self.short_circuit(step),
            (Chain::LocalPolicy(_), Map::LocalFrontends(_), _) => self.local_policy(),
            (Chain::EndpointsCheck(_), Map::NoEndpoints(_), Key::Target(target)) => {
                self.no_endpoint(target, found.data == Data::Verdict(element::Verdict::Drop));
            }
            (Chain::ClusterIpsCheck, Map::ServiceCidrs, Key::Prefix(_)) => self.unallocated(),
            (Chain::ClusterIpsCheck, Map::ClusterIps, _) => self.undefined_port(),
            (Chain::Masquerading, map, _) => self.masquerading(map, step),
            _ => {}
        }
    }

    /// Adds what the end of the path shows. `about` is the Service that has the
    /// destination address, if somebody knows it.
    pub(super) fn finish(&mut self, about: Option<&ServiceName>) {
        self.source_ranges();
        if let Some(about) = about {
            self.name_holder(about);
        }
        match self.outcome.verdict {
            Verdict::Pass if self.serving.is_none() => self.not_a_node_port(),
            Verdict::Dnat { .. } => {
                self.choice();
                self.affinity();
            }
            _ => {}
        }
    }

    fn push(&mut self, decision: Decision) {
        self.decisions.push(decision);
    }

    fn decide(&mut self, decision: Decision) {
        self.decisive = decision.clone();
        self.push(decision);
    }

    fn frontend(&mut self, target: Target, claim: Claim) {
        if self.serving.as_ref().is_some_and(|serving| serving.target == target) {
            return;
        }
        let Some(name) = self.known.planner.holder(self.family, &claim).cloned() else { return };
        let Some(compiled) = self.known.planner.compiled(&name, self.family) else { return };
        let service = compiled.service.clone();
        let Some(served) = all_frontends(&service).into_iter().find(|served| served.target == target) else { return };
        let Some(port) = service.ports.get(served.position) else { return };

        let mut causes = self.known.of_frontend(&name, &service, port, target);
        let what = match target {
            Target::Frontend(key) => format!("{} is {}", key.address, address_word(&service, key.address)),
            Target::NodePort(key) => {
                causes.extend(self.known.node_port_addresses(self.family));
                format!("{}/{} is the NodePort", key.port, key.protocol)
            }
        };
        let text = format!("{what} of Service {name}, {}", port_text(port));
        self.decide(decision(Code::Frontend, text, causes));

        let mut list = List::Cluster;
        if is_internal(&service, target) && served.is_local {
            list = List::Local;
            let cause = of_service(&name, "spec.internalTrafficPolicy", "Local");
            let text = "traffic to the cluster IP must stay on this node";
            self.push(decision(Code::InternalPolicyLocal, text, [cause]));
        }
        self.serving = Some(Serving { name, service, position: served.position, target, list });
    }

    fn external_policy(&self) -> Vec<Cause> {
        let name = self.serving.as_ref().map(|serving| &serving.name);
        name.into_iter().map(|name| of_service(name, "spec.externalTrafficPolicy", "Local")).collect()
    }

    fn short_circuit(&mut self, step: &TraceStep) {
        let mut causes = self.external_policy();
        let is_node = step.rule.0.iter().any(|statement| matches!(statement, Statement::FibLocal(_)));
        let (code, who) = if is_node {
            (Code::ExternalPolicyLocalNode, "this node itself")
        } else {
            causes.push(self.known.detection(self.family));
            (Code::ExternalPolicyLocalPod, "recognized as a pod")
        };
        let text =
            format!("the client is {who}, so all endpoints of the cluster serve it in spite of the policy Local");
        self.push(decision(code, text, causes));
    }

    fn local_policy(&mut self) {
        let causes = self.external_policy();
        if let Some(serving) = &mut self.serving {
            serving.list = List::Local;
        }
        let text = "external traffic must stay on this node, and keeps its source address";
        self.push(decision(Code::ExternalPolicyLocal, text, causes));
    }

    fn no_endpoint(&mut self, target: Target, drops: bool) {
        self.frontend(target, Claim::NoEndpoint(target));
        let Some(serving) = &mut self.serving else { return };
        let name = serving.name.clone();
        let Some(port) = serving.service.ports.get(serving.position) else { return };
        if drops {
            serving.list = List::Local;
            let is_internal = is_internal(&serving.service, target);
            let policy = if is_internal { "internalTrafficPolicy" } else { "externalTrafficPolicy" };
            let text = format!(
                "Service {name} {} has no endpoint on this node, and {policy} is Local: the packet is dropped",
                port_text(port)
            );
            self.decide(decision(Code::NoLocalEndpoint, text, [of_service(&name, format!("spec.{policy}"), "Local")]));
            return;
        }
        let Some(entry) = self.known.store.get(&name) else { return };
        let service = serving.service.clone();
        let Some(port) = service.ports.get(serving.position) else { return };
        let decision = PortEndpoints::of(self.known, (&name, entry), port, self.family).none_at_all();
        self.decide(decision);
    }

    fn unallocated(&mut self) {
        let destination = self.packet.destination;
        let holds = |(name, ranges): (&str, &[ipnet::IpNet])| {
            let range = ranges.iter().find(|range| range.contains(&destination))?;
            Some(of_service_cidr(name, range))
        };
        let causes: Vec<Cause> = self.known.store.named_service_cidrs().filter_map(holds).take(1).collect();
        let text = format!("{destination} is in a service range, and no Service has it: the packet is dropped");
        self.decide(decision(Code::Unallocated, text, causes));
    }

    fn undefined_port(&mut self) {
        let Packet { destination, port, protocol, .. } = self.packet;
        let text = format!("{destination} is a cluster IP, and its Service has no port {port}/{protocol}: refused");
        self.decide(decision(Code::UndefinedPort, text, []));
    }

    /// The Service that has the destination address, where the path shows none.
    fn name_holder(&mut self, about: &ServiceName) {
        let Some(entry) = self.known.store.get(about) else { return };
        if let Some(unserved) = entry.unserved() {
            return self.name_unserved(about, unserved);
        }
        let Some(service) = &entry.service[self.family] else { return };
        if self.serving.is_some() || !matches!(self.decisive.code, Code::UndefinedPort | Code::NotAFrontend) {
            return;
        }
        let Packet { destination, port, protocol, .. } = self.packet;
        let ports: Vec<String> = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        let word = address_word(service, *destination);
        let has_port = service.ports.iter().any(|own| (own.port, own.protocol) == (*port, *protocol));
        let why = if has_port {
            format!("{destination} is {word} of Service {about}, but that is not programmed")
        } else {
            let ports = ports.join(", ");
            format!("{destination} is {word} of Service {about}, which has no port {port}/{protocol}, only {ports}")
        };
        self.decisive.text = why + self.consequence();
        self.decisive.causes.insert(0, of_address(about, service, *destination));
        self.decisions.retain(|decision| decision.code != self.decisive.code);
        self.push(self.decisive.clone());
    }

    /// A Service without rules that has the destination address.
    fn name_unserved(&mut self, about: &ServiceName, unserved: &Unserved) {
        let is_open = matches!(self.decisive.code, Code::Unallocated | Code::UndefinedPort | Code::NotAFrontend);
        let destination = self.packet.destination;
        let Some((_, field)) = unserved.addresses.iter().find(|(address, _)| *address == destination) else { return };
        if self.serving.is_some() || !is_open {
            return;
        }
        let Decision { code, text, mut causes } = not_proxied(about, &unserved.reason);
        let text = format!("{destination} is an address of Service {about}, but {text}{}", self.consequence());
        causes.push(of_service(about, *field, destination));
        // The range that has the packet dropped.
        causes.append(&mut self.decisive.causes);
        self.decisions.retain(|decision| decision.code != self.decisive.code);
        self.decide(decision(code, text, causes));
    }

    fn consequence(&self) -> &'static str {
        match self.outcome.verdict {
            Verdict::Reject => ": the packet is refused",
            Verdict::Drop => ": the packet is dropped",
            _ => ": the packet goes where it was sent to",
        }
    }

    fn source_ranges(&mut self) {
        let Some((name, key)) = self.firewall.clone() else { return };
        let compiled = self.known.planner.compiled(&name, self.family);
        let Some(service) = compiled.map(|compiled| &compiled.service) else { return };
        let source = self.packet.source;
        let ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
        let allowing = service.source_ranges.iter().find(|range| range.contains(&source));
        let field = "spec.loadBalancerSourceRanges";
        let denied = self.serving.is_none() && matches!(self.outcome.verdict, Verdict::Drop);
        if denied {
            let text = format!(
                "{source} is in none of the source ranges of Service {name} ({}): the packet to {key} is dropped",
                ranges.join(", ")
            );
            self.decisive = decision(Code::SourceRangesDeny, text, [of_service(&name, field, ranges.join(","))]);
            self.decisions.insert(0, self.decisive.clone());
            self.serving = served_by(&name, service, Target::Frontend(key));
            return;
        }
        let (text, value) = match allowing {
            Some(range) => (format!("{source} is in the source range {range} of Service {name}"), range.to_string()),
            None => {
                (format!("{source} is an address of Service {name}, and its ranges admit this node"), ranges.join(","))
            }
        };
        self.decisions.insert(0, decision(Code::SourceRangesAllow, text, [of_service(&name, field, value)]));
    }

    /// The port may be a NodePort that this address does not serve.
    fn not_a_node_port(&mut self) {
        let target = self.node_port();
        let claims = [Claim::Serve(target), Claim::NoEndpoint(target)];
        let holder = claims.iter().find_map(|claim| self.known.planner.holder(self.family, claim)).cloned();
        let Some(name) = holder.filter(|_| self.known.host.is_local(self.packet.destination)) else { return };
        let Some(compiled) = self.known.planner.compiled(&name, self.family) else { return };
        let Some(serving) = served_by(&name, &compiled.service, target) else { return };
        let Some(port) = serving.service.ports.get(serving.position) else { return };
        let mut causes = self.known.node_port_addresses(self.family);
        causes.extend(self.known.of_frontend(&name, &serving.service, port, target));
        let Packet { destination, port: number, protocol, .. } = self.packet;
        let text = format!(
            "{number}/{protocol} is a NodePort of Service {name}, but {destination} is not an address that serves \
             NodePorts: the packet goes where it was sent to"
        );
        self.decide(decision(Code::NotANodePortAddress, text, causes));
    }

    fn node_port(&self) -> Target {
        let Packet { protocol, port, .. } = *self.packet;
        Target::NodePort(crate::ruleset::target::NodePortKey { protocol, port })
    }

    /// How the endpoints were chosen.
    fn choice(&mut self) {
        let Some(serving) = &self.serving else { return };
        let Some(entry) = self.known.store.get(&serving.name) else { return };
        let Some(port) = serving.service.ports.get(serving.position) else { return };
        let choice = PortEndpoints::of(self.known, (&serving.name, entry), port, self.family).choice(serving.list);
        let behind = self.decisions.iter().position(|decision| is_about_source(decision.code));
        if let Some(choice) = choice {
            self.decisions.insert(behind.unwrap_or(self.decisions.len()), choice);
        }
    }

    fn affinity(&mut self) {
        let Some(seconds) = self.outcome.remembered.map(|remembered| remembered.seconds) else { return };
        let Some(serving) = &self.serving else { return };
        let text = format!("a client stays with its endpoint until it has made no connection for {seconds} s");
        let cause = of_service(&serving.name, "spec.sessionAffinity", "ClientIP");
        self.push(decision(Code::Affinity, text, [cause]));
    }

    fn masquerading(&mut self, map: Map, step: &TraceStep) {
        let masquerades = step.rule.0.last() == Some(&Statement::Masquerade);
        let detection = || self.known.detection(self.family);
        let policy = |value: &str| {
            let name = self.serving.as_ref().map(|serving| &serving.name);
            name.map(|name| of_service(name, "spec.externalTrafficPolicy", value))
        };
        let decision = match (map, masquerades) {
            (Map::ClusterIps, true) if self.known.planner.config().masquerade_all => {
                decision(Code::MasqueradeAll, "all traffic to cluster IPs is masqueraded", [masquerade_all()])
            }
            (Map::ClusterIps, true) => decision(
                Code::MasqueradeNotFromPod,
                "the client is not recognized as a pod, so the endpoint sees an address of this node",
                [detection()],
            ),
            (Map::ClusterIps, false) => {
                let text = match no_detection(self.known, self.family) {
                    true => "the endpoint sees the client's address: no setting recognizes pods",
                    false => "the client is recognized as a pod, so the endpoint sees its address",
                };
                decision(Code::SourceKept, text, [detection()])
            }
            (Map::HairpinConnections, true) => decision(
                Code::MasqueradeHairpin,
                format!("where {} reaches itself, it sees an address of this node", self.packet.source),
                [],
            ),
            (Map::Masquerade(_), true) => decision(
                Code::MasqueradeExternal,
                "external traffic may go to any node, so the endpoint sees an address of this node",
                policy("Cluster"),
            ),
            (Map::LocalPolicy(_), true) => decision(
                Code::MasqueradeFromNode,
                "the node itself is the client, so the endpoint sees an address of this node",
                policy("Local"),
            ),
            (Map::LocalPolicy(_), false) => {
                decision(Code::SourceKept, "the endpoint sees the client's address", policy("Local"))
            }
            _ => return,
        };
        // The paths to several endpoints share most rules.
        if !self.decisions.contains(&decision) {
            self.push(decision);
        }
    }
}

fn is_about_source(code: Code) -> bool {
    code.is_masquerading() || code == Code::SourceKept
}

fn served_by(name: &ServiceName, service: &Arc<Service>, target: Target) -> Option<Serving> {
    let served = all_frontends(service).into_iter().find(|served| served.target == target)?;
    Some(Serving {
        name: name.clone(),
        service: service.clone(),
        position: served.position,
        target,
        list: List::Cluster,
    })
}
