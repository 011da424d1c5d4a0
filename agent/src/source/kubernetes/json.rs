//! The JSON of lists and watches.

mod of_kind;
mod split;

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use vmap_proxy_compiler::model::objects::{Kind, Object, ObjectRef};

use self::of_kind::{OfKind, is_other};
use self::split::{Items, Lines};
use super::encoding::Encoding;
use super::wire::{self, EventType, Frame, ListMeta, Malformed, Status, Unreadable, name_of};

/// A watch: one event a line.
#[derive(Debug)]
pub(super) struct WatchReader {
    kind: Kind,
    start: Start,
    lines: Lines,
}

impl WatchReader {
    /// Nothing read yet.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, start: Start::default(), lines: Lines::default() }
    }

    /// The next complete event of `chunk`, which loses it.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<Result<Frame, Unreadable>>, Malformed> {
        self.start.check(chunk)?;
        while let Some(line) = self.lines.next(chunk)? {
            if !line.trim_ascii().is_empty() {
                return Ok(Some(frame(self.kind, line)));
            }
        }
        Ok(None)
    }

    /// Returns whether an event is not complete yet.
    pub(super) fn is_inside_event(&self) -> bool {
        self.lines.is_inside_line()
    }
}

/// A list, or a page of one.
#[derive(Debug)]
pub(super) struct ListReader {
    kind: Kind,
    start: Start,
    items: Items,
}

impl ListReader {
    /// Nothing read yet.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, start: Start::default(), items: Items::default() }
    }

    /// The next complete item of `chunk`, which loses it.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<Result<Object, Unreadable>>, Malformed> {
        self.start.check(chunk)?;
        Ok(self.items.next(chunk)?.map(|text| item(self.kind, text)))
    }

    /// The metadata, at the end of the body.
    pub(super) fn finish(&self) -> Result<ListMeta, String> {
        list_meta(self.kind, self.items.rest())
    }
}

/// Every answer of the API begins with a brace.
#[derive(Debug, Default)]
struct Start {
    is_seen: bool,
}

impl Start {
    fn check(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        if self.is_seen {
            return Ok(());
        }
        match chunk.trim_ascii_start().first() {
            None => {}
            Some(b'{') => self.is_seen = true,
            Some(byte) => {
                let what = format!("it begins with the byte {byte:#04x}");
                return Err(Malformed::NotEncoded { encoding: Encoding::Json, what });
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    resource_version: String,
    annotations: Option<Annotations>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    /// On the bookmark that ends a streaming list.
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    kind: String,
    metadata: Metadata,
}

impl Meta {
    /// The metadata, if it is of an object of this kind.
    fn of<E: serde::de::Error>(self, kind: Kind) -> Result<Metadata, E> {
        match is_other(kind, &self.kind) {
            Some(other) => Err(E::custom(other)),
            None => Ok(self.metadata),
        }
    }
}

/// Reads one line of a watch.
fn frame(kind: Kind, line: &[u8]) -> Result<Frame, Unreadable> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let frame = FrameOf(kind).deserialize(&mut deserializer).and_then(|frame| deserializer.end().map(|()| frame));
    frame.map_err(|error| {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Envelope {
            object: Meta,
        }
        let meta = serde_json::from_slice::<Envelope>(line).unwrap_or_default().object;
        unreadable(kind, meta, &error)
    })
}

/// Reads one item of a list.
fn item(kind: Kind, item: &[u8]) -> Result<Object, Unreadable> {
    let object = OfKind(kind).deserialize(&mut serde_json::Deserializer::from_slice(item)).and_then(named);
    object.map_err(|error| unreadable(kind, serde_json::from_slice(item).unwrap_or_default(), &error))
}

/// Reads the metadata of a list.
fn list_meta(kind: Kind, rest: &[u8]) -> Result<ListMeta, String> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        kind: String,
        metadata: ListMeta,
    }
    let list: List = serde_json::from_slice(rest).map_err(|error| error.to_string())?;
    wire::check_kind(kind, list.kind.as_bytes())?;
    list.metadata.check()
}

/// An object of another kind is none that is known by its name.
fn unreadable(kind: Kind, meta: Meta, error: &serde_json::Error) -> Unreadable {
    let (meta, what) = match meta.of::<serde_json::Error>(kind) {
        Ok(meta) => (meta, error.to_string()),
        // Without the place, so that the line is the same each time.
        Err(other) => (Metadata::default(), other.to_string()),
    };
    let named = !meta.name.is_empty();
    let object = named.then_some(ObjectRef { kind, namespace: meta.namespace, name: meta.name });
    Unreadable { object, version: Some(meta.resource_version).filter(|version| !version.is_empty()), what }
}

fn named(object: Object) -> Result<Object, serde_json::Error> {
    if name_of(&object).is_empty() { Err(serde_json::Error::custom("metadata.name is empty")) } else { Ok(object) }
}

/// `{"type": …, "object": …}`; the server writes the type first, which lets
/// the object go straight into its own type.
struct FrameOf(Kind);

impl<'de> DeserializeSeed<'de> for FrameOf {
    type Value = Frame;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Frame, D::Error> {
        deserializer.deserialize_map(self)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Type,
    Object,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for FrameOf {
    type Value = Frame;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a watch event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Frame, A::Error> {
        let mut event = None;
        let mut frame = None;
        let mut early = None;
        while let Some(field) = map.next_key::<Field>()? {
            match (field, event) {
                (Field::Type, _) => event = Some(map.next_value::<EventType>()?),
                (Field::Object, Some(event)) => frame = Some(map.next_value_seed(BodyOf(self.0, event))?),
                (Field::Object, None) => early = Some(map.next_value::<Value>()?),
                (Field::Other, _) => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match (frame, event, early) {
            (Some(frame), ..) => Ok(frame),
            (None, Some(event), Some(object)) => BodyOf(self.0, event).deserialize(object).map_err(A::Error::custom),
            (None, None, _) => Err(A::Error::missing_field("type")),
            (None, Some(_), None) => Err(A::Error::missing_field("object")),
        }
    }
}

struct BodyOf(Kind, EventType);

impl<'de> DeserializeSeed<'de> for BodyOf {
    type Value = Frame;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Frame, D::Error> {
        let Self(kind, event) = self;
        Ok(match event {
            EventType::Added | EventType::Modified => {
                Frame::Apply(named(OfKind(kind).deserialize(deserializer)?).map_err(D::Error::custom)?)
            }
            EventType::Deleted => {
                let meta = Meta::deserialize(deserializer)?.of::<D::Error>(kind)?;
                if meta.name.is_empty() {
                    return Err(D::Error::custom("metadata.name is empty"));
                }
                let object = ObjectRef { kind, namespace: meta.namespace, name: meta.name };
                Frame::Delete { object, version: meta.resource_version }
            }
            EventType::Bookmark => {
                let meta = Meta::deserialize(deserializer)?.of::<D::Error>(kind)?;
                let ends_list = meta.annotations.is_some_and(|annotations| annotations.initial_events_end == "true");
                Frame::Bookmark { version: meta.resource_version, ends_list }
            }
            EventType::Error => Frame::Error(Status::deserialize(deserializer)?),
            EventType::Unknown => {
                IgnoredAny::deserialize(deserializer)?;
                Frame::Unknown
            }
        })
    }
}

#[cfg(test)]
mod tests;
