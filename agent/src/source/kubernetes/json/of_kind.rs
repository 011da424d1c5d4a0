//! Objects that say themselves which kind they are of.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, Visitor};
use vmap_proxy_compiler::model::objects::{Kind, Object};

use crate::source::typed::ObjectOf;

/// Returns the defect of an object that names this kind, if it is another than the expected one. Items of a list
/// name none.
pub(super) fn is_other(expected: Kind, named: &str) -> Option<String> {
    (!named.is_empty() && named != expected.to_string()).then(|| format!("it is a {}", named.escape_debug()))
}

/// Reads an object of a known kind, and refuses one that names another.
pub(super) struct OfKind(pub(super) Kind);

impl<'de> DeserializeSeed<'de> for OfKind {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OfKind {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object, A::Error> {
        ObjectOf(self.0).deserialize(MapAccessDeserializer::new(Fields { map, kind: self.0 }))
    }
}

/// The fields of an object but its kind, which is compared.
struct Fields<A> {
    map: A,
    kind: Kind,
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(Key(key)) = self.map.next_key()? {
            if key != "kind" {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            // Absent and null are the same to the API server.
            let named: Option<Cow<'de, str>> = self.map.next_value()?;
            if let Some(defect) = is_other(self.kind, &named.unwrap_or_default()) {
                return Err(A::Error::custom(defect));
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}
