//! Protobuf as the API server sends it, encoded with the messages of `k8s-pb`,
//! which are generated from Kubernetes' own definitions: nothing of the agent is
//! used here.

mod convert;

use k8s_pb::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_pb::apimachinery::pkg::runtime::{RawExtension, TypeMeta, Unknown};
use prost::Message;
use prost::bytes::Bytes;
use serde_json::Value;

use super::objects::Resource;

/// In front of each wrapped object.
const MAGIC: &[u8] = b"k8s\0";

/// Encodes an object. One that Kubernetes has no form for is encoded with the
/// same metadata, and with a field that cannot be decoded.
pub(super) fn object(resource: Resource, object: &Value) -> Vec<u8> {
    convert::object(resource, object).unwrap_or_else(|_| broken_object(&object["metadata"]))
}

/// Encodes an object that has metadata, and a broken field behind it.
pub fn broken_object(metadata: &Value) -> Vec<u8> {
    let metadata = convert::metadata(metadata.clone()).unwrap_or_default();
    let mut bytes = OnlyMetadata { metadata: Some(metadata) }.encode_to_vec();
    // Field 2, one byte long, and no key begins like this.
    bytes.extend([0x12, 0x01, 0xff]);
    bytes
}

/// The first field of every object.
#[derive(Clone, PartialEq, Message)]
struct OnlyMetadata {
    #[prost(message, optional, tag = "1")]
    metadata: Option<meta::ObjectMeta>,
}

/// Every list; items that are encoded already.
#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, optional, tag = "1")]
    metadata: Option<meta::ListMeta>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    items: Vec<Bytes>,
}

/// Wraps an encoded object.
pub fn wrapped(api_version: &str, kind: &str, raw: Vec<u8>) -> Vec<u8> {
    let unknown = Unknown {
        type_meta: Some(TypeMeta { api_version: Some(api_version.to_owned()), kind: Some(kind.to_owned()) }),
        raw: Some(raw),
        content_encoding: Some(String::new()),
        content_type: Some(String::new()),
    };
    let mut bytes = Vec::with_capacity(MAGIC.len() + unknown.encoded_len());
    bytes.extend(MAGIC);
    unknown.encode_raw(&mut bytes);
    bytes
}

/// A frame of a watch around a wrapped object.
pub fn frame(event: &str, wrapped: Vec<u8>) -> Vec<u8> {
    let object = Some(RawExtension { raw: Some(wrapped) });
    let event = meta::WatchEvent { r#type: Some(event.to_owned()), object }.encode_to_vec();
    let mut bytes = u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend(event);
    bytes
}

/// A list.
pub(super) fn list(resource: Resource, version: u64, token: &str, items: Vec<Bytes>) -> Vec<u8> {
    let metadata = meta::ListMeta {
        self_link: Some(String::new()),
        resource_version: Some(version.to_string()),
        r#continue: Some(token.to_owned()),
        remaining_item_count: None,
    };
    let list = List { metadata: Some(metadata), items }.encode_to_vec();
    wrapped(resource.api_version(), &format!("{resource}List"), list)
}

/// The object of a bookmark.
pub(super) fn bookmark(resource: Resource, version: u64, ends_list: bool) -> Vec<u8> {
    let mut metadata = meta::ObjectMeta {
        resource_version: Some(version.to_string()),
        creation_timestamp: Some(meta::Time::default()),
        ..meta::ObjectMeta::default()
    };
    if ends_list {
        metadata.annotations.insert("k8s.io/initial-events-end".to_owned(), "true".to_owned());
    }
    let object = OnlyMetadata { metadata: Some(metadata) }.encode_to_vec();
    wrapped(resource.api_version(), resource.kind(), object)
}

/// A `metav1.Status` in its wrapper.
pub(super) fn status(code: u16, reason: &str, message: &str, retry_after: Option<u32>) -> Vec<u8> {
    let details = retry_after.map(|seconds| meta::StatusDetails {
        // The field has 31 bits, and JSON any number.
        retry_after_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
        ..meta::StatusDetails::default()
    });
    let status = meta::Status {
        metadata: Some(meta::ListMeta::default()),
        status: Some("Failure".to_owned()),
        message: Some(message.to_owned()),
        reason: Some(reason.to_owned()),
        details,
        code: Some(code.into()),
    };
    wrapped("v1", "Status", status.encode_to_vec())
}
