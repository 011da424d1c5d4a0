use super::messages::{ListMeta as ListMetaMessage, ObjectMeta, Service, ServiceSpec, Time};
use super::*;

fn service(name: &str) -> Service {
    let metadata = ObjectMeta {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        resource_version: "5".to_owned(),
        creation_timestamp: Some(Time { seconds: Some(1_764_072_000) }),
        ..ObjectMeta::default()
    };
    let spec = ServiceSpec { cluster_ip: "10.0.0.1".to_owned(), ..ServiceSpec::default() };
    Service { metadata: Some(metadata), spec: Some(spec), status: None }
}

/// A field of bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut bytes).unwrap();
    bytes.extend(content);
    bytes
}

/// Fields that a later Kubernetes may add, of every form.
fn later_fields() -> Vec<u8> {
    let mut bytes = vec![15 << 3, 0xff, 0x01];
    bytes.extend([14 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.extend([13 << 3 | 5, 1, 2, 3, 4]);
    bytes.extend(field(12, b"later"));
    bytes.extend(field(11, b""));
    bytes
}

fn wrapped(kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
    [b"k8s\0".to_vec(), field(1, &type_meta), field(2, raw), field(3, b""), field(4, b""), later_fields()].concat()
}

fn event(name: &str, wrapped: &[u8]) -> Vec<u8> {
    [later_fields(), field(1, name.as_bytes()), field(2, &field(1, wrapped))].concat()
}

fn with_length(event: &[u8]) -> Vec<u8> {
    [&u32::try_from(event.len()).unwrap().to_be_bytes(), event].concat()
}

fn list(names: &[&str]) -> Vec<u8> {
    let meta = ListMetaMessage { resource_version: "7".to_owned(), continue_token: "next".to_owned() };
    let mut list = [later_fields(), field(1, &meta.encode_to_vec())].concat();
    for name in names {
        list.extend(field(2, &[service(name).encode_to_vec(), later_fields()].concat()));
        list.extend(later_fields());
    }
    wrapped("ServiceList", &list)
}

/// Feeds `bytes` in pieces of `size` bytes; the names that come out.
fn read_list(bytes: &[u8], size: usize) -> Result<(Vec<String>, Result<ListMeta, String>), Malformed> {
    let mut reader = ListReader::new(Kind::Service);
    let mut names = Vec::new();
    for piece in bytes.chunks(size) {
        let mut rest = piece;
        while let Some(object) = reader.next(&mut rest)? {
            names.push(name_of(&object.unwrap()).to_owned());
        }
        assert!(rest.is_empty());
    }
    Ok((names, reader.finish()))
}

#[test]
fn items_are_cut_wherever_the_pieces_end() {
    let text = list(&["a", "b", &"c".repeat(300)]);
    for size in 1..=text.len() {
        let (names, meta) = read_list(&text, size).unwrap();
        assert_eq!(names, ["a", "b", &"c".repeat(300)], "pieces of {size}");
        assert_eq!(meta, Ok(ListMeta { resource_version: "7".to_owned(), token: "next".to_owned() }));
    }
    let (names, meta) = read_list(&list(&[]), 5).unwrap();
    assert_eq!((names.len(), meta.unwrap().resource_version.as_str()), (0, "7"));
}

#[test]
fn half_a_list_is_not_complete() {
    let whole = list(&["a", "b"]);
    // Behind the list itself come fields of the wrapper that may be absent.
    let list_ends = whole.len() - later_fields().len() - 4;
    for length in 0..list_ends {
        let (_, meta) = read_list(&whole[..length], 64).unwrap();
        assert!(meta.is_err(), "the first {length} bytes");
    }
}

#[test]
fn a_list_of_something_else_is_refused() {
    for bytes in [&b"{\"kind\":\"ServiceList\"}"[..], b"<html>", b"k8s\x01", b"k8s\0\x0f\x01", b"k8s\0\x12\x02\x12\x05"]
    {
        let refused = read_list(bytes, 100).unwrap_err();
        assert!(refused.to_string().contains("announces protobuf and sends something else"), "{refused}");
    }
}

#[test]
fn a_list_of_another_kind_is_refused() {
    let meta = ListMetaMessage { resource_version: "7".to_owned(), continue_token: String::new() };
    let raw = field(1, &meta.encode_to_vec());
    for size in [1, 7, 1000] {
        let refused = read_list(&wrapped("NodeList", &raw), size).unwrap_err();
        assert!(refused.to_string().contains("it is a NodeList instead of a ServiceList"), "{refused}");
        let (_, refused) = read_list(&wrapped("ServiceList", &[]), size).unwrap();
        assert_eq!(refused.unwrap_err(), "it has no resourceVersion");
        let (_, meta) = read_list(&wrapped("", &raw), size).unwrap();
        assert_eq!(meta.unwrap().resource_version, "7");
    }
}

#[test]
fn frames_are_cut_wherever_the_pieces_end() {
    let names = ["a", "b", &"c".repeat(300)];
    let bytes: Vec<u8> = names
        .iter()
        .flat_map(|name| with_length(&event("ADDED", &wrapped("Service", &service(name).encode_to_vec()))))
        .collect();
    for size in 1..=bytes.len() {
        let mut reader = WatchReader::new(Kind::Service);
        let mut found = Vec::new();
        for piece in bytes.chunks(size) {
            let mut rest = piece;
            while let Some(frame) = reader.next(&mut rest).unwrap() {
                let Frame::Apply(object) = frame.unwrap() else { panic!() };
                found.push(name_of(&object).to_owned());
                assert!(!reader.is_inside_event() || rest.is_empty());
            }
        }
        assert_eq!(found, names, "pieces of {size}");
        assert!(!reader.is_inside_event());
    }
    for length in (1..bytes.len()).filter(|length| *length < 100) {
        let mut reader = WatchReader::new(Kind::Service);
        assert_eq!(reader.next(&mut &bytes[..length]).unwrap(), None);
        assert!(reader.is_inside_event(), "the first {length} bytes");
    }
}

#[test]
fn frames_are_read_into_slim_objects() {
    let read = |event: &[u8]| frame(Kind::Service, event).unwrap();
    let raw = service("a").encode_to_vec();
    let Ok(Frame::Apply(Object::Service(object))) = read(&event("MODIFIED", &wrapped("Service", &raw))) else {
        panic!()
    };
    assert_eq!((object.metadata.resource_version.as_str(), object.spec.cluster_ip.as_str()), ("5", "10.0.0.1"));
    assert_eq!(object.metadata.creation_timestamp.as_deref(), Some("2025-11-25T12:00:00Z"));

    let Ok(Frame::Delete { object, version }) = read(&event("DELETED", &wrapped("Service", &raw))) else { panic!() };
    assert_eq!((object.to_string().as_str(), version.as_str()), ("Service shop/a", "5"));

    let bookmark = |annotations: &[(&str, &str)]| {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let metadata = ObjectMeta { resource_version: "8".to_owned(), annotations, ..ObjectMeta::default() };
        let raw = Meta { metadata: Some(metadata) }.encode_to_vec();
        read(&event("BOOKMARK", &wrapped("Service", &raw))).unwrap()
    };
    let end = Frame::Bookmark { version: "8".to_owned(), ends_list: true };
    assert_eq!(bookmark(&[("k8s.io/initial-events-end", "true")]), end);
    assert_eq!(bookmark(&[]), Frame::Bookmark { version: "8".to_owned(), ends_list: false });

    let gone = messages::Status { code: 410, reason: "Expired".to_owned(), ..messages::Status::default() };
    let gone = read(&event("ERROR", &wrapped("Status", &gone.encode_to_vec()))).unwrap();
    assert!(matches!(gone, Frame::Error(status) if status.code == 410 && status.reason == "Expired"));
    assert_eq!(read(&event("NOVELTY", b"anything")), Ok(Frame::Unknown));
}

#[test]
fn what_cannot_be_read_is_named() {
    let read = |name: &str, kind: &str, raw: &[u8]| frame(Kind::Service, &event(name, &wrapped(kind, raw))).unwrap();
    // The defect is behind the metadata, inside it, or the metadata is all there is.
    let behind = [Meta { metadata: service("a").metadata }.encode_to_vec(), field(2, b"\xff")].concat();
    let inside = field(1, &[field(1, b"a"), field(3, b"shop"), field(6, b"5"), field(5, b"\xff\xfe")].concat());
    for raw in [behind, inside] {
        let unreadable = read("ADDED", "Service", &raw).unwrap_err();
        assert_eq!(unreadable.object.map(|object| object.to_string()).as_deref(), Some("Service shop/a"));
        assert_eq!(unreadable.version.as_deref(), Some("5"));
    }
    assert_eq!(read("ADDED", "Service", b"\xff").unwrap_err().object, None);
    assert_eq!(read("ADDED", "Service", b"").unwrap_err().what, NAMELESS);
    assert_eq!(read("DELETED", "Service", b"").unwrap_err().what, NAMELESS);
    assert_eq!(read("ADDED", "Pod", &service("a").encode_to_vec()).unwrap_err().what, "it is a Pod");
}

#[test]
fn what_is_no_protobuf_is_refused() {
    let json = br#"{"type":"ADDED","object":{}}"#;
    let mut reader = WatchReader::new(Kind::Service);
    let refused = reader.next(&mut &json[..]).unwrap_err();
    assert!(refused.to_string().contains("a frame begins with \"{\\\"ty\""), "{refused}");
    let mut other_magic = wrapped("Service", &service("a").encode_to_vec());
    other_magic[2] = b'x';
    let refused = frame(Kind::Service, &event("ADDED", &other_magic)).unwrap_err();
    assert!(refused.to_string().contains("k8x\\x00"), "{refused}");
    assert!(frame(Kind::Service, b"").is_err());
}

#[test]
fn a_status_is_read_from_a_failed_response() {
    let details = Some(messages::StatusDetails { retry_after_seconds: 3 });
    let message = "too many requests".to_owned();
    let busy = messages::Status { code: 429, message, details, ..messages::Status::default() };
    let status = Status::of_failure(429, &wrapped("Status", &busy.encode_to_vec()));
    assert_eq!((status.code, status.message.as_str(), status.retry_after_seconds()), (429, "too many requests", 3));
    // A broken one still has the code of the response.
    assert_eq!(Status::of_failure(503, b"k8s\0\xff").code, 503);
    assert_eq!(Status::of_failure(404, b" not here\n").message, "not here");
    let json = br#"{"kind":"Status","code":410,"message":"old","details":{"retryAfterSeconds":2,"kind":"x"}}"#;
    let status = Status::of_failure(500, json);
    assert_eq!((status.code, status.retry_after_seconds()), (410, 2));
}

/// No byte of an answer leads to a panic or an endless loop.
#[test]
fn every_changed_byte_is_survived() {
    let list = list(&["a", "b"]);
    let watch = with_length(&event("ADDED", &wrapped("Service", &service("a").encode_to_vec())));
    for value in [0x00, 0x01, 0x0f, 0x7f, 0x80, 0xff] {
        for position in 0..list.len() {
            let mut changed = list.clone();
            changed[position] = value;
            let mut reader = ListReader::new(Kind::Service);
            for mut piece in changed.chunks(50) {
                while let Ok(Some(_)) = reader.next(&mut piece) {}
            }
            let _ = reader.finish();
        }
        for position in 0..watch.len() {
            let mut changed = watch.clone();
            changed[position] = value;
            let mut reader = WatchReader::new(Kind::Service);
            for mut piece in changed.chunks(50) {
                while let Ok(Some(_)) = reader.next(&mut piece) {}
            }
        }
    }
}
