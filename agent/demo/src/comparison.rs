//! The same agent with few and with many Services, each in a namespace of its own beside the cluster: the objects in
//! the kernel, one change, and the memory.
//!
//! Only the number of objects decides whether this is as expected. Times depend on the machine and on the build.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;

use vmap_proxy_lab::NetNs;

use crate::agent::{DemoAgent, LONG_PATIENCE};
use crate::objects::Objects;
use crate::{DemoError, Options};

/// The numbers of Services that are compared.
const SERVICES: [u32; 2] = [10, 10_000];

/// Endpoints of each Service.
const ENDPOINTS: u32 = 5;

/// Services in one manifest: as JSON it is read at once.
const IN_ONE_FILE: u32 = 250;

/// The file with the Service that changes.
const CHANGED_FILE: &str = "service-0.json";

/// The build that was measured.
pub(crate) const BUILD: &str =
    if cfg!(debug_assertions) { "debug build: its times and its memory are no benchmark" } else { "release build" };

/// The figures of one number of Services.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) services: u32,
    pub(crate) objects: Objects,
    pub(crate) elements: String,
    pub(crate) first_sync: String,
    pub(crate) change: String,
    /// In MiB; empty if it could not be read.
    pub(crate) memory: String,
}

/// Runs the agent with each number of Services.
pub(crate) fn figures(options: &Options) -> Result<Vec<Figures>, DemoError> {
    SERVICES.into_iter().map(|services| figures_of(services, options)).collect()
}

fn figures_of(services: u32, options: &Options) -> Result<Figures, DemoError> {
    let namespace = NetNs::new("comparison")?;
    // A namespace of its own has no other clients: no server is needed, and nothing of the machine changes.
    let arguments =
        ["--cluster-cidr=10.128.0.0/9", "--metrics-bind-address=", "--healthz-bind-address="].map(str::to_owned);
    let agent = DemoAgent::start(&namespace, options, files(services), &arguments, LONG_PATIENCE)?;
    let first = agent.wait_until_ready()?;
    let change = agent.replace(CHANGED_FILE, &list(&[node(), service(0, ENDPOINTS + 1)]))?;
    let figures = Figures {
        services,
        objects: Objects::count(&namespace)?,
        elements: between(&first, "(", " elements added"),
        first_sync: between(&first, " in ", " ("),
        change: between(&change, " synced in ", ":"),
        memory: peak_memory(agent.id()).unwrap_or_default(),
    };
    agent.stop()?;
    Ok(figures)
}

/// The text between two others; empty if they are not there.
fn between(text: &str, begin: &str, end: &str) -> String {
    let found = text.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    found.map(|(found, _)| found.to_owned()).unwrap_or_default()
}

/// `VmHWM` of a process.
fn peak_memory(process: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kibibytes: u32 = between(&status, "VmHWM:", "kB").trim().parse().ok()?;
    Some(format!("{} MiB", kibibytes / 1024))
}

/// The manifests, one after the other.
fn files(services: u32) -> impl Iterator<Item = (String, String)> {
    let first = (CHANGED_FILE.to_owned(), list(&[node(), service(0, ENDPOINTS)]));
    let others = (1..services).step_by(IN_ONE_FILE as usize).map(move |begin| {
        let end = (begin + IN_ONE_FILE).min(services);
        let objects: Vec<String> = (begin..end).map(|number| service(number, ENDPOINTS)).collect();
        (format!("services-from-{begin}.json"), list(&objects))
    });
    std::iter::once(first).chain(others)
}

fn list(objects: &[String]) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, objects.join(","))
}

fn node() -> String {
    r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node-1"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.11"}]}}"#
        .to_owned()
}

/// A Service and its slice, as two items of a list.
fn service(number: u32, endpoints: u32) -> String {
    let address = |base: [u8; 4], offset: u32| Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + offset);
    let (name, cluster_ip) = (format!("service-{number}"), address([10, 97, 0, 1], number));
    let mut pods = String::new();
    for slot in 0..endpoints {
        let comma = if slot > 0 { "," } else { "" };
        let pod = address([10, 128, 0, 1], number * (ENDPOINTS + 1) + slot);
        // Writing into a String doesn't fail.
        let _ = write!(pods, r#"{comma}{{"addresses":["{pod}"]}}"#);
    }
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"namespace":"default","name":"{name}"}},"spec":{{"clusterIP":"{cluster_ip}","ports":[{{"name":"http","port":80}}]}}}},
{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"namespace":"default","name":"{name}","labels":{{"kubernetes.io/service-name":"{name}"}}}},"addressType":"IPv4","endpoints":[{pods}],"ports":[{{"name":"http","port":8080}}]}}"#
    )
}
