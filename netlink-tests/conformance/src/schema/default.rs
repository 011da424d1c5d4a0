//! The default node: a vector shows only what matters to it.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Probe, Step, Vector, VectorNode};

/// `default.yaml`, which `docs/vectors.md` shows.
const TEXT: &str = include_str!("default.yaml");

/// A vector as it stands in its file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct VectorFile {
    name: String,
    why: String,
    node: Option<VectorNode>,
    config: Option<Map<String, Value>>,
    objects: Vec<Value>,
    packets: Vec<Probe>,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    node: VectorNode,
    config: Map<String, Value>,
    /// The Node object of `node`.
    object: Value,
}

impl TryFrom<VectorFile> for Vector {
    type Error = serde_saphyr::Error;

    /// Without `node` it is the default node's, whose object comes first; without `config` it has the default's.
    fn try_from(file: VectorFile) -> Result<Self, Self::Error> {
        let VectorFile { name, why, node, config, mut objects, packets, steps } = file;
        let default: Defaults = serde_saphyr::from_str(TEXT)?;
        let node = node.unwrap_or_else(|| {
            objects.insert(0, default.object);
            default.node
        });
        Ok(Self { name, why, node, config: config.unwrap_or(default.config), objects, packets, steps })
    }
}
