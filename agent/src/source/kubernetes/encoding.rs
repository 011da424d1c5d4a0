//! The two encodings of the API, and which of them a response has.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The media type of Kubernetes' protobuf, `clientConnection.contentType`'s
/// default.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";

/// An encoding of objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// `application/vnd.kubernetes.protobuf`. A server that does not have it
    /// answers in JSON.
    #[default]
    Protobuf,
    /// `application/json`
    Json,
}

impl Encoding {
    /// The first encoding that a list of media types names, as `contentType` and
    /// `acceptContentTypes` do. `None` if it names neither.
    pub fn first_of(types: &str) -> Option<Self> {
        types.split(',').find_map(|name| match name.split(';').next()?.trim() {
            PROTOBUF => Some(Self::Protobuf),
            JSON | "*/*" => Some(Self::Json),
            _ => None,
        })
    }

    /// The `Accept` header of a request.
    pub(super) fn accept(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf, application/json",
            Self::Json => JSON,
        }
    }

    /// The encoding of a response with these headers. Whatever is not protobuf
    /// is read as JSON.
    pub(super) fn of_response(headers: &HeaderMap) -> Self {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match content_type.split(';').next().map(str::trim) {
            Some(PROTOBUF) => Self::Protobuf,
            _ => Self::Json,
        }
    }

    /// The other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Protobuf => Self::Json,
            Self::Json => Self::Protobuf,
        }
    }

    /// Its name in log lines.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Protobuf => "protobuf",
            Self::Json => "JSON",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_media_type_counts() {
        assert_eq!(Encoding::first_of(PROTOBUF), Some(Encoding::Protobuf));
        assert_eq!(Encoding::first_of("application/cbor, application/json;as=Table"), Some(Encoding::Json));
        assert_eq!(
            Encoding::first_of("application/vnd.kubernetes.protobuf;stream=watch,*/*"),
            Some(Encoding::Protobuf)
        );
        assert_eq!((Encoding::first_of("application/cbor"), Encoding::first_of("")), (None, None));
    }

    #[test]
    fn a_response_is_json_unless_it_is_protobuf() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            Encoding::of_response(&headers)
        };
        assert_eq!(of("application/vnd.kubernetes.protobuf;stream=watch"), Encoding::Protobuf);
        assert_eq!(of("application/json"), Encoding::Json);
        assert_eq!(of("text/plain"), Encoding::Json);
        assert_eq!(Encoding::of_response(&HeaderMap::new()), Encoding::Json);
    }
}
