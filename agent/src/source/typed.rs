//! From a kind to the type that holds its objects.

use serde::de::{Deserialize, DeserializeSeed, Deserializer};
use vmap_proxy_compiler::model::objects::{Kind, Object};

/// Deserialises an object of a known kind straight into its slim type; fields
/// that the type does not name are skipped and cost no memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct ObjectOf(pub(super) Kind);

impl<'de> DeserializeSeed<'de> for ObjectOf {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        Ok(match self.0 {
            Kind::Service => Object::Service(Deserialize::deserialize(deserializer)?),
            Kind::EndpointSlice => Object::EndpointSlice(Deserialize::deserialize(deserializer)?),
            Kind::Node => Object::Node(Deserialize::deserialize(deserializer)?),
            Kind::ServiceCidr => Object::ServiceCidr(Deserialize::deserialize(deserializer)?),
        })
    }
}
