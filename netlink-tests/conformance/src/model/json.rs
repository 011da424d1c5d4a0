//! Reading fields of manifests. A field of the wrong type counts as absent.

use serde_json::Value;

/// The string at a JSON pointer.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}

/// The boolean at a JSON pointer.
pub(super) fn flag(value: &Value, pointer: &str) -> Option<bool> {
    value.pointer(pointer)?.as_bool()
}

/// The port number at a JSON pointer. 0 means "none" wherever Kubernetes has a
/// port, so it counts as absent.
pub(super) fn port(value: &Value, pointer: &str) -> Option<u16> {
    let number = value.pointer(pointer)?.as_u64()?;
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// The elements of the list at a JSON pointer; none if there is no list.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The strings of the list at a JSON pointer.
pub(super) fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(value, pointer).iter().filter_map(Value::as_str).collect()
}

/// The value of a label. Label keys hold slashes, so they are no JSON pointers.
pub(super) fn label<'a>(manifest: &'a Value, key: &str) -> Option<&'a str> {
    manifest.pointer("/metadata/labels")?.get(key)?.as_str()
}

/// `metadata.creationTimestamp`. Kubernetes writes it in UTC with whole seconds,
/// so the texts sort like the times. An absent one sorts before all others.
pub(super) fn created(manifest: &Value) -> &str {
    text(manifest, "/metadata/creationTimestamp").unwrap_or_default()
}
