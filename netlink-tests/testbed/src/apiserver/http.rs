//! Requests, as far as the double reads them.

use std::collections::HashMap;

use super::objects::{Key, Resource};

/// The query parameters of a request, decoded.
#[derive(Debug, Default)]
pub(super) struct Query(HashMap<String, String>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (decode(key), decode(value)))
                .collect(),
        )
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(super) fn is_true(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1"))
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        let code = (byte == b'%').then(|| rest.get(..2)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &rest[2..];
            }
            None => bytes.push(if byte == b'+' { b' ' } else { byte }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The request that a path stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Collection(Resource),
    Object(Resource, Key),
    Events,
    Version,
    Nothing,
}

impl Target {
    pub(super) fn of(path: &str) -> Self {
        if path == "/version" {
            return Self::Version;
        }
        if path.starts_with("/apis/events.k8s.io/v1/") {
            return Self::Events;
        }
        for resource in Resource::ALL {
            if path == resource.path() {
                return Self::Collection(resource);
            }
            if let Some(name) = path.strip_prefix(resource.path()).and_then(|rest| rest.strip_prefix('/')) {
                return Self::Object(resource, (String::new(), name.to_owned()));
            }
            let (root, plural) = resource.path().rsplit_once('/').unwrap_or_default();
            let in_namespace = path.strip_prefix(root).and_then(|rest| rest.strip_prefix("/namespaces/"));
            let parts: Vec<_> = in_namespace.map(|rest| rest.split('/').collect()).unwrap_or_default();
            if let [namespace, found, name] = parts[..]
                && found == plural
            {
                return Self::Object(resource, (namespace.to_owned(), name.to_owned()));
            }
        }
        Self::Nothing
    }
}
