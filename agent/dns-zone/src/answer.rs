//! One question answered from the zone.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use vmap_proxy_compiler::model::Protocol;

use crate::content::ServiceNames;
use crate::entry::{Addresses, Entry};
use crate::label::{self, is_label};
use crate::reverse;
use crate::zone::Zone;

/// The version of the schema that this zone follows.
const SCHEMA_VERSION: &str = "1.1.0";

/// The most labels below the domain that any name has:
/// `_port._proto.service.namespace.svc`.
const MOST_LABELS: usize = 5;

/// The type of the asked records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuestionType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports and hosts of a service.
    Srv,
    /// The names of an address.
    Ptr,
    /// Texts.
    Txt,
    /// The start of authority.
    Soa,
    /// Any other type. The zone has no records of it, but aliases apply to it.
    Other,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'z> {
    /// There are records.
    Records(Records<'z>),
    /// The name exists and has no record of the asked type (NOERROR with the SOA
    /// of the zone, whose name this is).
    NoData(Cow<'z, str>),
    /// The name does not exist (NXDOMAIN with the SOA of the zone, whose name
    /// this is).
    NameError(Cow<'z, str>),
    /// Not everything is known yet, so that no answer would be right (SERVFAIL).
    NotReady,
    /// The name is in none of the zones here.
    NotOurs,
}

/// Records of one type, in no order. Their owner is the asked name. All names
/// are in lower case and without the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records<'z> {
    /// IPv4 addresses, each once.
    A(Cow<'z, [Ipv4Addr]>),
    /// IPv6 addresses, each once.
    Aaaa(Cow<'z, [Ipv6Addr]>),
    /// Ports and hosts.
    Srv(Vec<Target>),
    /// Names of an address, in their order.
    Ptr(Vec<String>),
    /// The name is an alias of this one.
    Cname(&'z str),
    /// One text.
    Txt(&'static str),
    /// The start of authority of the zone with this name.
    Soa(Cow<'z, str>),
}

/// The data of one SRV record, and the addresses for the additional section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The port number.
    pub port: u16,
    /// The name of the host.
    pub host: String,
    /// The addresses of the host.
    pub addresses: Vec<IpAddr>,
}

impl Zone {
    /// Answers the question for a name of these labels, the leftmost first and
    /// without the root. Upper and lower case are the same.
    pub fn answer(&self, labels: &[&[u8]], question: QuestionType) -> Answer<'_> {
        if let Some(relative) = self.below_domain(labels) {
            return if self.is_complete() { self.answer_in_domain(relative, question) } else { Answer::NotReady };
        }
        match reverse::to_prefix(labels) {
            // Their ranges are not known yet.
            Some(_) if !self.is_complete() => Answer::NotReady,
            Some(prefix) => self.answer_in_reverse(prefix, question),
            None => Answer::NotOurs,
        }
    }

    /// The labels below the domain; `None` if the name is not in it.
    fn below_domain<'q>(&self, labels: &'q [&'q [u8]]) -> Option<&'q [&'q [u8]]> {
        let domain = self.domain_labels();
        let (relative, top) = labels.split_at_checked(labels.len().checked_sub(domain.len())?)?;
        let is_in = top.iter().zip(domain).all(|(label, of_domain)| label.eq_ignore_ascii_case(of_domain.as_bytes()));
        is_in.then_some(relative)
    }

    fn answer_in_domain(&self, relative: &[&[u8]], question: QuestionType) -> Answer<'_> {
        let mut buffer = [0; MOST_LABELS * label::MAX_LABEL];
        let Some(lowered) = lower(relative, &mut buffer) else { return self.name_error() };
        let (labels, count) = lowered;
        match labels.get(..count).unwrap_or_default() {
            [] if question == QuestionType::Soa => Answer::Records(Records::Soa(Cow::Borrowed(self.domain()))),
            [] | ["svc"] => self.no_data(),
            ["dns-version"] if question == QuestionType::Txt => Answer::Records(Records::Txt(SCHEMA_VERSION)),
            ["dns-version"] => self.no_data(),
            [namespace, "svc"] if self.has_namespace(namespace) => self.no_data(),
            [rest @ .., service, namespace, "svc"] => match self.entry(namespace, service) {
                Some((entry, names)) => self.answer_in_service(entry, names, rest, [*service, *namespace], question),
                None => self.name_error(),
            },
            [rest @ .., "pod"] if self.has_pod_names() => self.answer_pod(rest, question),
            _ => self.name_error(),
        }
    }

    fn no_data(&self) -> Answer<'_> {
        Answer::NoData(Cow::Borrowed(self.domain()))
    }

    fn name_error(&self) -> Answer<'_> {
        Answer::NameError(Cow::Borrowed(self.domain()))
    }

    fn answer_in_service<'z>(
        &'z self,
        entry: &'z Entry,
        names: &'z ServiceNames,
        below: &[&str],
        [service, namespace]: [&str; 2],
        question: QuestionType,
    ) -> Answer<'z> {
        let full_name = || format!("{service}.{namespace}.svc.{}", self.domain());
        match (names, below) {
            (ServiceNames::External(name), []) => Answer::Records(Records::Cname(name)),
            (ServiceNames::ClusterIp { addresses, .. }, []) => self.answer_addresses(addresses, question),
            (ServiceNames::Headless { .. }, []) => self.answer_headless(entry, question),
            (ServiceNames::Headless { .. }, [host]) if !host.starts_with('_') => {
                self.answer_host(entry.host(host), question)
            }
            (_, [protocol]) if to_protocol(protocol).is_some_and(|protocol| entry.has_ports(protocol)) => {
                self.no_data()
            }
            (_, [port, protocol]) => {
                let targets = to_port(port, protocol).map(|port| self.targets(entry, names, port, &full_name()));
                match (targets, question) {
                    (None, _) => self.name_error(),
                    (Some(targets), _) if targets.is_empty() => self.name_error(),
                    (Some(targets), QuestionType::Srv) => Answer::Records(Records::Srv(targets)),
                    (Some(_), _) => self.no_data(),
                }
            }
            _ => self.name_error(),
        }
    }

    fn answer_addresses(&self, addresses: &[IpAddr], question: QuestionType) -> Answer<'_> {
        let mut found = Addresses::default();
        addresses.iter().for_each(|address| found.push(*address));
        self.answer_found(found, question)
    }

    fn answer_headless<'z>(&'z self, entry: &'z Entry, question: QuestionType) -> Answer<'z> {
        let addresses = entry.addresses();
        match question {
            _ if addresses.is_empty() => self.name_error(),
            QuestionType::A if !addresses.ipv4.is_empty() => {
                Answer::Records(Records::A(Cow::Borrowed(&addresses.ipv4)))
            }
            QuestionType::Aaaa if !addresses.ipv6.is_empty() => {
                Answer::Records(Records::Aaaa(Cow::Borrowed(&addresses.ipv6)))
            }
            _ => self.no_data(),
        }
    }

    /// The name exists if it has an address.
    fn answer_host(&self, addresses: Addresses, question: QuestionType) -> Answer<'_> {
        if addresses.is_empty() { self.name_error() } else { self.answer_found(addresses, question) }
    }

    /// The name exists.
    fn answer_found(&self, addresses: Addresses, question: QuestionType) -> Answer<'_> {
        match question {
            QuestionType::A if !addresses.ipv4.is_empty() => Answer::Records(Records::A(Cow::Owned(addresses.ipv4))),
            QuestionType::Aaaa if !addresses.ipv6.is_empty() => {
                Answer::Records(Records::Aaaa(Cow::Owned(addresses.ipv6)))
            }
            _ => self.no_data(),
        }
    }

    fn targets(
        &self,
        entry: &Entry,
        names: &ServiceNames,
        (port, protocol): (&str, Protocol),
        full_name: &str,
    ) -> Vec<Target> {
        match names {
            ServiceNames::ClusterIp { addresses, ports } => ports
                .iter()
                .filter(|named| named.is(port, protocol))
                .map(|named| Target { port: named.port, host: full_name.to_owned(), addresses: addresses.clone() })
                .collect(),
            ServiceNames::Headless { .. } => entry
                .targets(port, protocol)
                .into_iter()
                .map(|(port, host)| {
                    let Addresses { ipv4, ipv6 } = entry.host(&host);
                    let addresses = ipv4.into_iter().map(IpAddr::V4).chain(ipv6.into_iter().map(IpAddr::V6));
                    Target { port, host: format!("{host}.{full_name}"), addresses: addresses.collect() }
                })
                .collect(),
            ServiceNames::External(_) => Vec::new(),
        }
    }

    /// `a-b-c-d.namespace.pod`: any address in any namespace, as CoreDNS answers
    /// with `pods insecure`. Namespaces are not followed here.
    fn answer_pod(&self, rest: &[&str], question: QuestionType) -> Answer<'_> {
        match rest {
            [] => self.no_data(),
            [namespace] if is_label(namespace) => self.no_data(),
            [pod, namespace] if is_label(namespace) => match label::to_address(pod) {
                Some(address) => self.answer_addresses(&[address], question),
                None => self.name_error(),
            },
            _ => self.name_error(),
        }
    }

    fn answer_in_reverse(&self, prefix: IpNet, question: QuestionType) -> Answer<'_> {
        let address = prefix.addr();
        let is_whole = prefix.prefix_len() == prefix.max_prefix_len();
        let names = if is_whole { self.names_of(address) } else { Vec::new() };
        let range = self.ranges().find(|range| range.contains(&prefix));
        let apex =
            || range.map_or_else(|| reverse::apex(address, IpNet::from(address)), |of| reverse::apex(address, of));
        match (names.is_empty(), range) {
            (false, _) if question == QuestionType::Ptr => Answer::Records(Records::Ptr(names)),
            (false, _) => Answer::NoData(Cow::Owned(apex())),
            (true, Some(_)) if is_whole => Answer::NameError(Cow::Owned(apex())),
            // There may be addresses below it.
            (true, Some(_)) => Answer::NoData(Cow::Owned(apex())),
            (true, None) => Answer::NotOurs,
        }
    }

    /// All names of an address, in their order.
    fn names_of(&self, address: IpAddr) -> Vec<String> {
        let mut names = Vec::new();
        for (service, entry, content) in self.holders(address) {
            let full_name = format!("{}.{}.svc.{}", service.name(), service.namespace(), self.domain());
            match content {
                ServiceNames::Headless { .. } => {
                    names.extend(entry.hostnames(address).into_iter().map(|host| format!("{host}.{full_name}")));
                }
                ServiceNames::ClusterIp { .. } | ServiceNames::External(_) => names.push(full_name),
            }
        }
        names.sort_unstable();
        names
    }
}

/// Up to [`MOST_LABELS`] labels in lower case, and their number.
type Lowered<'b> = ([&'b str; MOST_LABELS], usize);

/// Copies the labels in lower case; `None` if no name of the zone can have them.
fn lower<'b>(labels: &[&[u8]], buffer: &'b mut [u8]) -> Option<Lowered<'b>> {
    let mut lowered = [""; MOST_LABELS];
    let mut rest = buffer;
    if labels.len() > MOST_LABELS {
        return None;
    }
    for (place, label) in lowered.iter_mut().zip(labels) {
        let (copy, after) = rest.split_at_mut_checked(label.len())?;
        copy.copy_from_slice(label);
        copy.make_ascii_lowercase();
        *place = std::str::from_utf8(copy).ok()?;
        rest = after;
    }
    Some((lowered, labels.len()))
}

fn to_protocol(label: &str) -> Option<Protocol> {
    let name = label.strip_prefix('_')?;
    Protocol::ALL.into_iter().find(|protocol| protocol.keyword() == name)
}

fn to_port<'q>(port: &'q str, protocol: &str) -> Option<(&'q str, Protocol)> {
    Some((port.strip_prefix('_')?, to_protocol(protocol)?))
}
