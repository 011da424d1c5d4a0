//! The two encodings of answers, chosen by the request's `Accept` header.

use axum::http::{HeaderMap, header};

/// The media type of protobuf.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// An encoding of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    /// The first media type in the `Accept` header that is served, as the API
    /// server chooses. `None`: 406.
    pub(super) fn accepted(headers: &HeaderMap, has_protobuf: bool) -> Option<Self> {
        let Some(accept) = headers.get(header::ACCEPT) else { return Some(Self::Json) };
        accept.to_str().ok()?.split(',').find_map(|name| match name.split(';').next()?.trim() {
            PROTOBUF if has_protobuf => Some(Self::Protobuf),
            "application/json" | "application/*" | "*/*" => Some(Self::Json),
            _ => None,
        })
    }

    /// The `Content-Type` of an answer.
    pub(super) fn content_type(self, is_watch: bool) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf if is_watch => "application/vnd.kubernetes.protobuf;stream=watch",
            Self::Protobuf => PROTOBUF,
        }
    }
}
