use vmap_proxy_compiler::model::objects::{Kind, Object};

use super::split::{Items, Lines};
use super::*;

/// Feeds `text` in pieces of `size` bytes and collects what comes out.
fn items_of(text: &str, size: usize) -> (Vec<String>, String) {
    let mut items = Items::default();
    let mut found = Vec::new();
    for piece in text.as_bytes().chunks(size) {
        let mut rest = piece;
        while let Some(item) = items.next(&mut rest).unwrap() {
            found.push(String::from_utf8(item.to_vec()).unwrap());
        }
    }
    (found, String::from_utf8(items.rest().to_vec()).unwrap())
}

#[test]
fn items_are_cut_wherever_the_pieces_end() {
    let text = r#"{"kind":"ServiceList","metadata":{"resourceVersion":"7","continue":"a\"b]","items":[{"no":1}]},
        "items": [ {"a":"}]{","b":[{"c":"\\"}]}, {"ü":{}} ,{}],"other":[{"d":1}]}"#;
    for size in 1..text.len() {
        let (found, rest) = items_of(text, size);
        assert_eq!(found, [r#"{"a":"}]{","b":[{"c":"\\"}]}"#, r#"{"ü":{}}"#, "{}"], "pieces of {size}");
        let meta = list_meta(Kind::Service, rest.as_bytes()).unwrap();
        assert_eq!((meta.resource_version.as_str(), meta.token.as_str()), ("7", "a\"b]"));
    }
}

#[test]
fn a_list_without_items_is_complete_and_half_a_list_is_not() {
    for text in [
        r#"{"metadata":{"resourceVersion":"1"},"items":[]}"#,
        r#"{"metadata":{"resourceVersion":"1"},"items":null}"#,
        r#"{"metadata":{"resourceVersion":"1"}}"#,
    ] {
        let (found, rest) = items_of(text, 5);
        assert_eq!((found.len(), list_meta(Kind::Node, rest.as_bytes()).unwrap().resource_version.as_str()), (0, "1"));
    }
    let (found, rest) = items_of(r#"{"metadata":{"resourceVersion":"1"},"items":[{"a":1},{"b""#, 64);
    assert_eq!(found.len(), 1);
    assert!(list_meta(Kind::Node, rest.as_bytes()).is_err());
}

#[test]
fn what_is_of_another_kind_is_refused() {
    let list = |text: &str| list_meta(Kind::Service, text.as_bytes()).map(|meta| meta.resource_version);
    assert_eq!(list(r#"{"kind":"ServiceList","metadata":{"resourceVersion":"1"}}"#).as_deref(), Ok("1"));
    let refused = list(r#"{"kind":"NodeList","metadata":{"resourceVersion":"1"},"items":[]}"#).unwrap_err();
    assert_eq!(refused, "it is a NodeList instead of a ServiceList");
    assert_eq!(list(r#"{"kind":"Status","metadata":{}}"#).unwrap_err(), "it is a Status instead of a ServiceList");
    assert_eq!(list(r#"{"metadata":{}}"#).unwrap_err(), "it has no resourceVersion");
    for event in ["ADDED", "DELETED", "BOOKMARK"] {
        for object in [
            r#"{"kind":"Secret","metadata":{"name":"a","namespace":"n","resourceVersion":"5"}}"#,
            r#"{"metadata":{"name":"a","namespace":"n","resourceVersion":"5"},"kind":"Secret"}"#,
        ] {
            for text in [
                format!(r#"{{"type":"{event}","object":{object}}}"#),
                format!(r#"{{"object":{object},"type":"{event}"}}"#),
            ] {
                let unreadable = frame(Kind::Service, text.as_bytes()).unwrap_err();
                assert!(unreadable.what.starts_with("it is a Secret"), "{text}: {unreadable:?}");
                assert_eq!((unreadable.object, unreadable.version), (None, None), "{text}");
            }
        }
    }
    assert!(item(Kind::Node, br#"{"kind":null,"metadata":{"name":"a"}}"#).is_ok());
    assert!(item(Kind::Node, br#"{"kind":7,"metadata":{"name":"a"}}"#).is_err());
}

#[test]
fn lines_are_cut_wherever_the_pieces_end() {
    let text = "one\n\ntwo three\nrest";
    for size in 1..=text.len() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            let mut rest = piece;
            while let Some(line) = lines.next(&mut rest).unwrap() {
                found.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        assert_eq!(found, ["one", "", "two three"], "pieces of {size}");
    }
}

#[test]
fn frames_are_read_into_slim_objects() {
    let added =
        br#"{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"a","namespace":"n","resourceVersion":"5",
        "managedFields":[{}]},"spec":{"clusterIP":"10.0.0.1","new":{}},"status":null}}"#;
    let Frame::Apply(Object::Service(service)) = frame(Kind::Service, added).unwrap() else { panic!() };
    assert_eq!((service.metadata.resource_version.as_str(), service.spec.cluster_ip.as_str()), ("5", "10.0.0.1"));

    let swapped = br#"{"object":{"metadata":{"name":"n1","resourceVersion":"6"}},"type":"DELETED"}"#;
    let Frame::Delete { object, version } = frame(Kind::Node, swapped).unwrap() else { panic!() };
    assert_eq!((object.to_string().as_str(), version.as_str()), ("Node n1", "6"));

    let end = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"8","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
    assert_eq!(frame(Kind::Node, end).unwrap(), Frame::Bookmark { version: "8".to_owned(), ends_list: true });
    let plain = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"8","annotations":null}}}"#;
    assert_eq!(frame(Kind::Node, plain).unwrap(), Frame::Bookmark { version: "8".to_owned(), ends_list: false });

    let gone = br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old","details":{}}}"#;
    assert!(matches!(frame(Kind::Node, gone).unwrap(), Frame::Error(status) if status.code == 410));
    assert_eq!(frame(Kind::Node, br#"{"type":"NEW","object":{"metadata":1}}"#).unwrap(), Frame::Unknown);
}

#[test]
fn what_cannot_be_read_is_named() {
    let wrong =
        br#"{"type":"MODIFIED","object":{"metadata":{"name":"a","namespace":"n","resourceVersion":"5"},"spec":[1]}}"#;
    let unreadable = frame(Kind::Service, wrong).unwrap_err();
    assert_eq!((named(&unreadable).as_deref(), unreadable.version.as_deref()), (Some("Service n/a"), Some("5")));
    assert_eq!(named(&frame(Kind::Service, b"{oops").unwrap_err()), None);
    assert!(frame(Kind::Service, br#"{"type":"ADDED"}"#).is_err());
    assert!(frame(Kind::Service, br#"{"type":"BOOKMARK","object":{"metadata":{}}} trailing"#).is_err());
    let unreadable =
        item(Kind::EndpointSlice, br#"{"metadata":{"name":"s","namespace":"n"},"endpoints":{}}"#).unwrap_err();
    assert_eq!(named(&unreadable).as_deref(), Some("EndpointSlice n/s"));
}

fn named(unreadable: &Unreadable) -> Option<String> {
    unreadable.object.as_ref().map(ToString::to_string)
}
