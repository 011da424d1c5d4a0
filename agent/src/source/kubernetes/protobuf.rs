//! The protobuf of lists and watches (`application/vnd.kubernetes.protobuf`).
//!
//! A watch is a sequence of frames: a length of four bytes (big endian), and a
//! `metav1.WatchEvent` of that length. Every object, also a list, is wrapped: the
//! bytes `k8s\0`, then a `runtime.Unknown` with the kind and the encoded object.
//! Source: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf/doc.go`.
//!
//! The wrappers are read in place, and an object goes from the receive buffer
//! into [`messages`], which name only the used fields. Decision 76.

mod convert;
mod fields;
mod messages;
mod split;

use prost::Message;
use vmap_proxy_compiler::model::objects::{Kind, Object, ObjectRef};

use self::fields::{Defect, Fields, Value};
use self::messages::Meta;
use self::split::{Frames, Items};
use super::encoding::Encoding;
use super::wire::{EventType, Frame, ListMeta, Malformed, Status, StatusDetails, Unreadable, name_of};

/// In front of each wrapped object.
const MAGIC: &[u8; 4] = b"k8s\0";

/// Fields of `runtime.Unknown`.
mod unknown {
    pub(super) const TYPE_META: u64 = 1;
    pub(super) const RAW: u64 = 2;
}

/// On the bookmark that ends a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A watch.
#[derive(Debug)]
pub(super) struct WatchReader {
    kind: Kind,
    frames: Frames,
}

impl WatchReader {
    /// Nothing read yet.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, frames: Frames::default() }
    }

    /// The next complete event of `chunk`, which loses it.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<Result<Frame, Unreadable>>, Malformed> {
        match self.frames.next(chunk)? {
            Some(bytes) => frame(self.kind, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Returns whether an event is not complete yet.
    pub(super) fn is_inside_event(&self) -> bool {
        self.frames.is_inside_frame()
    }
}

/// A list, or a page of one.
#[derive(Debug)]
pub(super) struct ListReader {
    kind: Kind,
    items: Items,
}

impl ListReader {
    /// Nothing read yet.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, items: Items::new(kind) }
    }

    /// The next complete item of `chunk`, which loses it.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<Result<Object, Unreadable>>, Malformed> {
        Ok(self.items.next(chunk)?.map(|bytes| object(self.kind, bytes)))
    }

    /// The metadata, at the end of the body.
    pub(super) fn finish(&self) -> Result<ListMeta, String> {
        let meta = messages::ListMeta::decode(self.items.list_meta()?).map_err(|error| error.to_string())?;
        ListMeta { resource_version: meta.resource_version, token: meta.continue_token }.check()
    }
}

/// Returns whether a body is a wrapped object.
pub(super) fn is_protobuf(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// Reads a wrapped Status; `None` if it is broken.
pub(super) fn status(body: &[u8]) -> Option<Status> {
    let status = messages::Status::decode(Wrapped::read(body).ok()?.raw).ok()?;
    Some(status_of(status))
}

fn status_of(status: messages::Status) -> Status {
    let retry_after = status.details.map(|details| details.retry_after_seconds);
    Status {
        code: u16::try_from(status.code).unwrap_or(0),
        message: status.message,
        reason: status.reason,
        details: retry_after.map(|seconds| StatusDetails { retry_after_seconds: u32::try_from(seconds).unwrap_or(0) }),
    }
}

/// An object without its wrapper.
struct Wrapped<'a> {
    /// Empty if the server does not name it.
    kind: &'a [u8],
    raw: &'a [u8],
}

impl<'a> Wrapped<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(unknown) = bytes.strip_prefix(MAGIC) else {
            let start = bytes.get(..4).unwrap_or(bytes).escape_ascii();
            return Err(broken(format!("an object begins with \"{start}\" instead of \"k8s\\x00\"")));
        };
        let mut wrapped = Self { kind: &[], raw: &[] };
        for field in Fields(unknown) {
            match field.map_err(|error| broken(format!("the wrapper of an object: {error}")))? {
                (unknown::TYPE_META, Value::Bytes(type_meta)) => wrapped.kind = kind_of(type_meta)?,
                (unknown::RAW, Value::Bytes(raw)) => wrapped.raw = raw,
                _ => {}
            }
        }
        Ok(wrapped)
    }
}

/// The kind in a `runtime.TypeMeta`.
fn kind_of(type_meta: &[u8]) -> Result<&[u8], Malformed> {
    const KIND: u64 = 2;
    let mut kind: &[u8] = &[];
    for field in Fields(type_meta) {
        let field = field.map_err(|error| broken(format!("the kind of an object: {error}")))?;
        if let (KIND, Value::Bytes(bytes)) = field {
            kind = bytes;
        }
    }
    Ok(kind)
}

/// Reads one event of a watch.
fn frame(kind: Kind, event: &[u8]) -> Result<Result<Frame, Unreadable>, Malformed> {
    let (event_type, bytes) = event_of(event)?;
    if event_type == EventType::Unknown {
        return Ok(Ok(Frame::Unknown));
    }
    let wrapped = Wrapped::read(bytes)?;
    Ok(body(kind, event_type, &wrapped))
}

/// Reads a `metav1.WatchEvent` down to the bytes of its wrapped object.
fn event_of(event: &[u8]) -> Result<(EventType, &[u8]), Malformed> {
    const TYPE: u64 = 1;
    const OBJECT: u64 = 2;
    /// Of `runtime.RawExtension`.
    const RAW: u64 = 1;
    let is_broken = |error: Defect| broken(format!("an event: {error}"));
    let mut event_type = None;
    let mut object: &[u8] = &[];
    for field in Fields(event) {
        match field.map_err(is_broken)? {
            (TYPE, Value::Bytes(name)) => event_type = Some(type_of(name)),
            (OBJECT, Value::Bytes(extension)) => {
                for field in Fields(extension) {
                    if let (RAW, Value::Bytes(raw)) = field.map_err(is_broken)? {
                        object = raw;
                    }
                }
            }
            _ => {}
        }
    }
    let event_type = event_type.ok_or_else(|| broken("an event has no type".to_owned()))?;
    Ok((event_type, object))
}

fn type_of(name: &[u8]) -> EventType {
    match name {
        b"ADDED" => EventType::Added,
        b"MODIFIED" => EventType::Modified,
        b"DELETED" => EventType::Deleted,
        b"BOOKMARK" => EventType::Bookmark,
        b"ERROR" => EventType::Error,
        _ => EventType::Unknown,
    }
}

fn body(kind: Kind, event: EventType, wrapped: &Wrapped<'_>) -> Result<Frame, Unreadable> {
    match event {
        EventType::Error => match messages::Status::decode(wrapped.raw) {
            Ok(status) => Ok(Frame::Error(status_of(status))),
            Err(error) => Err(Unreadable { object: None, version: None, what: error.to_string() }),
        },
        EventType::Unknown => Ok(Frame::Unknown),
        _ if !wrapped.kind.is_empty() && wrapped.kind != kind.to_string().as_bytes() => {
            let what = format!("it is a {}", wrapped.kind.escape_ascii());
            Err(Unreadable { object: None, version: None, what })
        }
        EventType::Added | EventType::Modified => object(kind, wrapped.raw).map(Frame::Apply),
        EventType::Deleted => {
            let meta = meta(kind, wrapped.raw)?;
            if meta.name.is_empty() {
                return Err(Unreadable { object: None, version: None, what: NAMELESS.to_owned() });
            }
            let object = ObjectRef { kind, namespace: meta.namespace, name: meta.name };
            Ok(Frame::Delete { object, version: meta.resource_version })
        }
        EventType::Bookmark => {
            let meta = meta(kind, wrapped.raw)?;
            let ends_list = meta.annotations.get(INITIAL_EVENTS_END).is_some_and(|value| value == "true");
            Ok(Frame::Bookmark { version: meta.resource_version, ends_list })
        }
    }
}

const NAMELESS: &str = "metadata.name is empty";

/// Decodes an object.
fn object(kind: Kind, bytes: &[u8]) -> Result<Object, Unreadable> {
    let object = match kind {
        Kind::Service => messages::Service::decode(bytes).map(|message| Object::Service(message.into())),
        Kind::EndpointSlice => {
            messages::EndpointSlice::decode(bytes).map(|message| Object::EndpointSlice(message.into()))
        }
        Kind::Node => messages::Node::decode(bytes).map(|message| Object::Node(message.into())),
        Kind::ServiceCidr => messages::ServiceCidr::decode(bytes).map(|message| Object::ServiceCidr(message.into())),
    };
    match object {
        Ok(object) if name_of(&object).is_empty() => Err(unreadable(kind, bytes, NAMELESS.to_owned())),
        Ok(object) => Ok(object),
        Err(error) => Err(unreadable(kind, bytes, error.to_string())),
    }
}

/// Decodes nothing but the metadata.
fn meta(kind: Kind, bytes: &[u8]) -> Result<messages::ObjectMeta, Unreadable> {
    match Meta::decode(bytes) {
        Ok(meta) => Ok(meta.metadata.unwrap_or_default()),
        Err(error) => Err(unreadable(kind, bytes, error.to_string())),
    }
}

/// The identity of an object is all that precedes the defect, since the server
/// writes the metadata first.
fn unreadable(kind: Kind, bytes: &[u8], what: String) -> Unreadable {
    let mut meta = Meta::default();
    // The defect is known already; the fields in front of it have been merged.
    let _ = meta.merge(bytes);
    let meta = meta.metadata.unwrap_or_default();
    let named = !meta.name.is_empty();
    Unreadable {
        object: named.then_some(ObjectRef { kind, namespace: meta.namespace, name: meta.name }),
        version: Some(meta.resource_version).filter(|version| !version.is_empty()),
        what,
    }
}

fn broken(what: String) -> Malformed {
    Malformed::NotEncoded { encoding: Encoding::Protobuf, what }
}

#[cfg(test)]
mod tests;
