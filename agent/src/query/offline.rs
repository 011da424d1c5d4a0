//! The state that manifest files make, without an agent and without the kernel:
//! the addresses on the node's interfaces are assumed to be those of its Node
//! object.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;
use vmap_proxy_compiler::model::convert::parse_address;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{ProxyConfig, Store};
use vmap_proxy_compiler::plan::Planner;

use super::answer::State;
use super::journal::Journal;
use crate::files::read;
use crate::source::manifests::{ManifestSource, SourceError};
use crate::yaml;

/// The state that manifests make.
#[derive(Debug)]
pub struct Offline {
    store: Store,
    planner: Planner,
    journal: Journal,
    manifests: ManifestSource,
}

impl Offline {
    /// Reads and compiles the manifests. What cannot be used of them is logged.
    ///
    /// # Errors
    /// If a path can't be read.
    pub fn read(manifests: Vec<PathBuf>, proxy: ProxyConfig) -> Result<Self, SourceError> {
        let manifests = ManifestSource::new(manifests, &proxy.node_name);
        let (changes, problems) = manifests.read_once()?;
        for problem in problems {
            tracing::warn!("{problem}");
        }
        let mut store = Store::new(proxy.node_name.clone());
        changes.into_iter().for_each(|change| store.take(change.checked));
        let names: Vec<ServiceName> = store.dirty().cloned().collect();
        names.iter().for_each(|name| store.renew_digest(name));
        let planner = vmap_proxy_compiler::program(proxy, &mut store);
        Ok(Self { store, planner, journal: Journal::default(), manifests })
    }

    /// The state, to be asked.
    pub fn state(&self) -> State<'_> {
        let (store, planner, journal) = (&self.store, &self.planner, &self.journal);
        State { store, planner, ready: true, pending: false, digest: store.digest(), journal }
    }

    /// The addresses of a Pod, from a Pod object; none if the files have none. A proxy
    /// does not follow these, so the files are read once more.
    pub fn pod_addresses(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        let found = self.manifests.files().into_iter().find_map(|file| {
            let (_, text) = read::read(&file).ok()?;
            let documents = yaml::split(&text);
            documents.into_iter().find_map(|document| {
                let value: Value = serde_saphyr::from_str_with_options(&text[document.range], yaml::options()).ok()?;
                addresses_in(&value, namespace, name)
            })
        });
        found.unwrap_or_default()
    }
}

/// The addresses of a Pod in one object, or in the items of a list.
fn addresses_in(object: &Value, namespace: &str, name: &str) -> Option<Vec<IpAddr>> {
    let text = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    if let Some(items) = object.get("items").and_then(Value::as_array) {
        return items.iter().find_map(|item| addresses_in(item, namespace, name));
    }
    if text(object, "/metadata/namespace").unwrap_or_else(|| "default".to_owned()) != namespace {
        return None;
    }
    if text(object, "/kind")? != "Pod" || text(object, "/metadata/name")? != name {
        return None;
    }
    let others = object.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    let texts = text(object, "/status/podIP").into_iter().chain(others.filter_map(|one| text(one, "/ip")));
    let addresses: Vec<IpAddr> = texts.filter_map(|text| parse_address(&text)).collect();
    (!addresses.is_empty()).then_some(addresses)
}
