//! An independent model of the schema: every record of a cluster is written out,
//! as a zone file would list them, and the names that exist follow from the
//! records. It shares no code with the zone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

const DOMAIN: &str = "cluster.local";

/// Record types of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Type {
    A,
    Aaaa,
    Srv,
    Ptr,
    Cname,
    Txt,
    Soa,
}

/// All records of a cluster, by name and type, as texts.
#[derive(Debug, Default)]
pub(crate) struct Model {
    records: BTreeMap<String, BTreeMap<Type, BTreeSet<String>>>,
    /// Names that exist without a record.
    existing: BTreeSet<String>,
}

impl Model {
    /// The records of these objects: Services and EndpointSlices, each once.
    pub(crate) fn new(objects: &[Value]) -> Self {
        let mut model = Self::default();
        model.add("dns-version.cluster.local", Type::Txt, "TXT 1.1.0");
        model.add(DOMAIN, Type::Soa, "SOA cluster.local");
        for empty in ["svc", "pod"] {
            model.exist(&format!("{empty}.{DOMAIN}"));
        }
        for service in objects.iter().filter(|object| object["kind"] == "Service") {
            model.add_service(service, objects);
        }
        model
    }

    /// Every name with a record.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.records.keys()
    }

    fn add(&mut self, name: &str, of: Type, text: impl Into<String>) {
        self.records.entry(name.to_owned()).or_default().entry(of).or_default().insert(text.into());
        self.exist(name);
    }

    /// A name exists, and so does each name above it.
    fn exist(&mut self, name: &str) {
        let mut rest = name;
        while rest.ends_with(DOMAIN) {
            self.existing.insert(rest.to_owned());
            let Some((_, above)) = rest.split_once('.') else { break };
            rest = above;
        }
    }

    fn add_address(&mut self, name: &str, address: &str) {
        let of = if address.contains(':') { Type::Aaaa } else { Type::A };
        self.add(name, of, address);
    }

    fn add_service(&mut self, service: &Value, objects: &[Value]) {
        let (namespace, name) = identity(service);
        let spec = &service["spec"];
        let full = format!("{name}.{namespace}.svc.{DOMAIN}");
        self.exist(&format!("{namespace}.svc.{DOMAIN}"));
        if spec["type"] == "ExternalName" {
            self.add(&full, Type::Cname, format!("CNAME {}", text(&spec["externalName"])));
        } else if spec["clusterIP"] == "None" {
            let publish = spec["publishNotReadyAddresses"] == true;
            let slices = objects.iter().filter(|object| {
                object["kind"] == "EndpointSlice"
                    && object["metadata"]["labels"]["kubernetes.io/service-name"] == name
                    && object["metadata"]["namespace"] == namespace
            });
            self.add_headless(&full, &slices.collect::<Vec<_>>(), publish);
        } else {
            self.exist(&full);
            let addresses: Vec<&str> = list(&spec["clusterIPs"]).iter().map(text).collect();
            for address in &addresses {
                self.add_address(&full, address);
                self.add(&reverse(address), Type::Ptr, full.clone());
            }
            let sorted: BTreeSet<&str> = addresses.into_iter().collect();
            for port in list(&spec["ports"]) {
                let target = format!("{} {full} ({})", port["port"], join(sorted.iter().copied()));
                self.add(&format!("{}.{full}", port_labels(port)), Type::Srv, target);
            }
        }
    }

    fn add_headless(&mut self, full: &str, slices: &[&Value], publish: bool) {
        // First all host names, whose addresses the targets then show.
        let mut hosts: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for slice in slices {
            for endpoint in ready(slice, publish) {
                let address = text(&endpoint["addresses"][0]);
                hosts.entry(host_label(endpoint)).or_default().insert(address);
                self.add_address(full, address);
                self.add(&reverse(address), Type::Ptr, format!("{}.{full}", host_label(endpoint)));
            }
        }
        for (host, addresses) in &hosts {
            for address in addresses {
                self.add_address(&format!("{host}.{full}"), address);
            }
        }
        for slice in slices {
            for (endpoint, port) in ready(slice, publish)
                .flat_map(|endpoint| list(&slice["ports"]).iter().map(move |port| (endpoint, port)))
            {
                let host = host_label(endpoint);
                let addresses = join(hosts[&host].iter().copied());
                let target = format!("{} {host}.{full} ({addresses})", port["port"]);
                self.add(&format!("{}.{full}", port_labels(port)), Type::Srv, target);
            }
        }
    }

    /// The answer to a question, in the words of `support::ask`.
    pub(crate) fn ask(&self, name: &str, of: Type) -> String {
        let name = name.to_lowercase();
        let is_reverse = name.ends_with(".arpa");
        if !is_reverse && name != DOMAIN && !name.ends_with(&format!(".{DOMAIN}")) {
            return "not ours".to_owned();
        }
        let records = self.records.get(&name);
        if let Some(records) = records.and_then(|records| records.get(&of).or_else(|| records.get(&Type::Cname))) {
            return join(records.iter().map(String::as_str));
        }
        if records.is_some() || self.existing.contains(&name) {
            return "NODATA".to_owned();
        }
        if is_reverse { "not ours".to_owned() } else { "NXDOMAIN".to_owned() }
    }
}

fn identity(object: &Value) -> (&str, &str) {
    (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn join<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    texts.collect::<Vec<_>>().join(", ")
}

fn ready(slice: &Value, publish: bool) -> impl Iterator<Item = &Value> {
    list(&slice["endpoints"]).iter().filter(move |endpoint| publish || endpoint["conditions"]["ready"] != false)
}

fn host_label(endpoint: &Value) -> String {
    match endpoint["hostname"].as_str() {
        Some(hostname) => hostname.to_owned(),
        // The generated addresses neither begin nor end with colons.
        None => text(&endpoint["addresses"][0]).replace(['.', ':'], "-"),
    }
}

fn port_labels(port: &Value) -> String {
    format!("_{}._{}", text(&port["name"]), text(&port["protocol"]).to_lowercase())
}

fn reverse(address: &str) -> String {
    match address.parse() {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let digits: String = address.octets().iter().map(|octet| format!("{octet:02x}")).collect();
            digits.chars().rev().flat_map(|digit| [digit, '.']).collect::<String>() + "ip6.arpa"
        }
        Err(_) => String::new(),
    }
}
