//! The JSON of lists and watches.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use vmap_proxy_compiler::model::objects::{Kind, Object, ObjectRef};

use crate::source::typed::ObjectOf;

/// One event of a watch.
#[expect(clippy::large_enum_variant, reason = "taken apart at once; nearly all are the large one")]
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// An object exists, or has changed.
    Apply(Object),
    /// An object is gone, or no longer matches the selectors.
    Delete { object: ObjectRef, version: String },
    /// The position of the watch.
    Bookmark { version: String, ends_list: bool },
    /// The watch can't go on.
    Error(Status),
    /// A kind of event that a later API may have.
    Unknown,
}

/// The used parts of `metav1.Status`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
    pub(super) reason: String,
}

/// An event or item that can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The object, if it is known.
    pub(super) object: Option<ObjectRef>,
    /// Its version: the watch goes on behind it.
    pub(super) version: Option<String>,
    /// The defect.
    pub(super) what: String,
}

/// The metadata of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) token: String,
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
    metadata: Metadata,
}

/// Reads one line of a watch.
pub(super) fn frame(kind: Kind, line: &[u8]) -> Result<Frame, Unreadable> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let frame = FrameOf(kind).deserialize(&mut deserializer).and_then(|frame| deserializer.end().map(|()| frame));
    frame.map_err(|error| {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Envelope {
            object: Meta,
        }
        let meta = serde_json::from_slice::<Envelope>(line).unwrap_or_default().object.metadata;
        unreadable(kind, meta, &error)
    })
}

/// Reads one item of a list.
pub(super) fn item(kind: Kind, item: &[u8]) -> Result<Object, Unreadable> {
    let object = ObjectOf(kind).deserialize(&mut serde_json::Deserializer::from_slice(item)).and_then(named);
    object.map_err(|error| {
        let meta = serde_json::from_slice::<Meta>(item).unwrap_or_default().metadata;
        unreadable(kind, meta, &error)
    })
}

/// Reads the metadata of a list.
pub(super) fn list_meta(rest: &[u8]) -> Result<ListMeta, serde_json::Error> {
    #[derive(Deserialize)]
    struct List {
        metadata: ListMeta,
    }
    Ok(serde_json::from_slice::<List>(rest)?.metadata)
}

fn unreadable(kind: Kind, meta: Metadata, error: &serde_json::Error) -> Unreadable {
    let named = !meta.name.is_empty();
    let object = named.then_some(ObjectRef { kind, namespace: meta.namespace, name: meta.name });
    Unreadable {
        object,
        version: Some(meta.resource_version).filter(|version| !version.is_empty()),
        what: error.to_string(),
    }
}

fn named(object: Object) -> Result<Object, serde_json::Error> {
    let name = match &object {
        Object::Service(object) => &object.metadata.name,
        Object::EndpointSlice(object) => &object.metadata.name,
        Object::Node(object) => &object.metadata.name,
        Object::ServiceCidr(object) => &object.metadata.name,
    };
    if name.is_empty() { Err(serde_json::Error::custom("metadata.name is empty")) } else { Ok(object) }
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

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "UPPERCASE")]
enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
    #[serde(other)]
    Unknown,
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
                Frame::Apply(named(ObjectOf(kind).deserialize(deserializer)?).map_err(D::Error::custom)?)
            }
            EventType::Deleted => {
                let meta = Meta::deserialize(deserializer)?.metadata;
                if meta.name.is_empty() {
                    return Err(D::Error::custom("metadata.name is empty"));
                }
                let object = ObjectRef { kind, namespace: meta.namespace, name: meta.name };
                Frame::Delete { object, version: meta.resource_version }
            }
            EventType::Bookmark => {
                let meta = Meta::deserialize(deserializer)?.metadata;
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

/// The version of an object, to watch on from.
pub(super) fn version_of(object: &Object) -> &str {
    match object {
        Object::Service(object) => &object.metadata.resource_version,
        Object::EndpointSlice(object) => &object.metadata.resource_version,
        Object::Node(object) => &object.metadata.resource_version,
        Object::ServiceCidr(object) => &object.metadata.resource_version,
    }
}
