//! The format of a name vector. An unknown key is an error, because a misread vector tests nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::schema::VectorError;

/// One vector: a file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NameVector {
    /// The file name without its ending.
    pub name: String,
    /// The proven behaviour, in one line.
    pub why: String,
    /// The cluster's domain.
    #[serde(default = "default_domain")]
    pub domain: String,
    /// Whether names of pods are answered.
    #[serde(default = "default_pod_names")]
    pub pod_names: bool,
    /// Manifests of the first complete list.
    pub objects: Vec<Value>,
    /// Questions after it.
    pub questions: Vec<Question>,
    /// Changes, one after the other.
    #[serde(default)]
    pub steps: Vec<NameStep>,
}

/// A change of the cluster, and questions after it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NameStep {
    /// Objects to delete.
    #[serde(default)]
    pub delete: Vec<Deleted>,
    /// Manifests to create or replace.
    #[serde(default)]
    pub apply: Vec<Value>,
    /// Questions after both.
    pub questions: Vec<Question>,
}

/// An object to delete.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deleted {
    /// `Service` or `EndpointSlice`.
    pub kind: DeletedKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The kinds with names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DeletedKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The name, without the final dot.
    pub ask: String,
    /// The type of the records.
    #[serde(rename = "type")]
    pub record_type: QueryType,
    /// All records: addresses, names, or `PORT HOST` for SRV; or `NODATA`, `NXDOMAIN`, `not ours`.
    pub answer: Expected,
}

/// The types that vectors ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum QueryType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports and hosts.
    Srv,
    /// Names of an address.
    Ptr,
    /// Texts.
    Txt,
    /// The start of authority.
    Soa,
    /// A type that the zone has no records of.
    Mx,
}

/// The expected answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// Just these records, in any order.
    Records(BTreeSet<String>),
    /// There are none, for this reason.
    None(Absence),
}

/// The reason why there are no records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Absence {
    /// The name exists.
    #[serde(rename = "NODATA")]
    NoData,
    /// The name does not exist.
    #[serde(rename = "NXDOMAIN")]
    NameError,
    /// The name is in no zone of the cluster.
    #[serde(rename = "not ours")]
    NotOurs,
}

fn default_domain() -> String {
    "cluster.local".to_owned()
}

fn default_pod_names() -> bool {
    true
}

/// Loads one file.
///
/// # Errors
/// If it cannot be read, has an unknown key, or has another name than its content.
pub fn load_file(path: &Path) -> Result<NameVector, VectorError> {
    let text = fs::read_to_string(path).map_err(|source| VectorError::Read { path: path.to_owned(), source })?;
    let vector: NameVector = serde_saphyr::from_str(&text)
        .map_err(|error| VectorError::Format { path: path.to_owned(), message: error.to_string() })?;
    if path.file_stem().is_none_or(|stem| stem != vector.name.as_str()) {
        let what = format!("name is {:?}, which is not the file's", vector.name);
        return Err(VectorError::Invalid { path: path.to_owned(), what });
    }
    Ok(vector)
}
