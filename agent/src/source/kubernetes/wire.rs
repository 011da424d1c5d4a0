//! What lists and watches consist of, in either encoding, and the readers that
//! take a response apart as it arrives.

use serde::Deserialize;
use thiserror::Error;
use vmap_proxy_compiler::model::objects::{Kind, Object, ObjectRef};

use super::encoding::Encoding;
use super::{json, protobuf};

/// No event and no item may be longer: etcd refuses objects above 1.5 MiB, and a
/// peer that never ends one must not fill the memory.
pub(super) const LONGEST: usize = 32 * 1024 * 1024;

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

/// The type of a watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
    #[serde(other)]
    Unknown,
}

/// The used parts of `metav1.Status`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
    pub(super) reason: String,
    pub(super) details: Option<StatusDetails>,
}

/// The used parts of `metav1.StatusDetails`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StatusDetails {
    /// The server's wish, in seconds.
    pub(super) retry_after_seconds: u32,
}

impl Status {
    /// Reads the body of a failed response. A proxy or an ingress controller
    /// answers with text instead of a Status.
    pub(super) fn of_failure(code: u16, body: &[u8]) -> Self {
        let status = match protobuf::is_protobuf(body) {
            true => protobuf::status(body),
            false => serde_json::from_slice(body).ok(),
        };
        let text = || String::from_utf8_lossy(body).trim().to_owned();
        let mut status = status.unwrap_or_else(|| Self { message: text(), ..Self::default() });
        if status.code == 0 {
            status.code = code;
        }
        status
    }

    /// The server's wish, in seconds.
    pub(super) fn retry_after_seconds(&self) -> u32 {
        self.details.as_ref().map_or(0, |details| details.retry_after_seconds)
    }
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
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) token: String,
}

/// Checks that a list is one of objects of this kind. The answer to another request, from a cache or a proxy, would
/// otherwise count as the news that every object is gone. The error is the defect.
pub(super) fn check_kind(expected: Kind, named: &[u8]) -> Result<(), String> {
    if named.is_empty() || named == format!("{expected}List").as_bytes() {
        return Ok(());
    }
    Err(format!("it is a {} instead of a {expected}List", named.escape_ascii()))
}

impl ListMeta {
    /// Checks that it is of a list of the API server, which has a version. The error is the defect.
    pub(super) fn check(self) -> Result<Self, String> {
        if self.resource_version.is_empty() { Err("it has no resourceVersion".to_owned()) } else { Ok(self) }
    }
}

/// A response that can't be taken apart any further.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    /// A piece grew beyond all bounds.
    #[error("an object is larger than any API server stores; check that the URL is the API server's")]
    TooLong,
    /// A list of something else.
    #[error("the list can't be used ({0}); trying again")]
    OtherKind(String),
    /// The body is not in the encoding that its header names.
    #[error("the API server announces {} and sends something else ({what})", encoding.name())]
    NotEncoded {
        /// The announced encoding.
        encoding: Encoding,
        /// The first sign of it.
        what: String,
    },
}

/// Takes a watch apart.
#[derive(Debug)]
pub(super) enum WatchReader {
    Json(json::WatchReader),
    Protobuf(protobuf::WatchReader),
}

impl WatchReader {
    /// Nothing read yet.
    pub(super) fn new(encoding: Encoding, kind: Kind) -> Self {
        match encoding {
            Encoding::Json => Self::Json(json::WatchReader::new(kind)),
            Encoding::Protobuf => Self::Protobuf(protobuf::WatchReader::new(kind)),
        }
    }

    /// The next complete event of `chunk`, which loses it. `None`: the rest is
    /// kept, and the next chunk wanted.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<Result<Frame, Unreadable>>, Malformed> {
        match self {
            Self::Json(reader) => reader.next(chunk),
            Self::Protobuf(reader) => reader.next(chunk),
        }
    }

    /// Returns whether an event is not complete yet.
    pub(super) fn is_inside_event(&self) -> bool {
        match self {
            Self::Json(reader) => reader.is_inside_event(),
            Self::Protobuf(reader) => reader.is_inside_event(),
        }
    }
}

/// Takes a list, or a page of one, apart.
#[derive(Debug)]
pub(super) enum ListReader {
    Json(json::ListReader),
    Protobuf(protobuf::ListReader),
}

impl ListReader {
    /// Nothing read yet.
    pub(super) fn new(encoding: Encoding, kind: Kind) -> Self {
        match encoding {
            Encoding::Json => Self::Json(json::ListReader::new(kind)),
            Encoding::Protobuf => Self::Protobuf(protobuf::ListReader::new(kind)),
        }
    }

    /// The next complete item of `chunk`, which loses it. `None`: the rest is
    /// kept, and the next chunk wanted.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<Result<Object, Unreadable>>, Malformed> {
        match self {
            Self::Json(reader) => reader.next(chunk),
            Self::Protobuf(reader) => reader.next(chunk),
        }
    }

    /// The metadata, at the end of the body. The error is the defect of a list
    /// that is not complete.
    pub(super) fn finish(&self) -> Result<ListMeta, String> {
        match self {
            Self::Json(reader) => reader.finish(),
            Self::Protobuf(reader) => reader.finish(),
        }
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

/// The name of an object.
pub(super) fn name_of(object: &Object) -> &str {
    match object {
        Object::Service(object) => &object.metadata.name,
        Object::EndpointSlice(object) => &object.metadata.name,
        Object::Node(object) => &object.metadata.name,
        Object::ServiceCidr(object) => &object.metadata.name,
    }
}
