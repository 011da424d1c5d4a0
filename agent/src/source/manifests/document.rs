//! From a file's text to its documents, and from a document to objects.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use vmap_proxy_compiler::model::objects::{Kind, Object, ObjectRef};

use crate::source::typed::ObjectOf;
pub(super) use crate::yaml::Document;
use crate::yaml::{self, whole_numbers};

/// The format of a manifest, by its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// The content of a document.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The objects a proxy reads.
    pub(super) objects: Vec<Object>,
    /// The others, as `StatefulSet my-sts`.
    pub(super) skipped: Vec<String>,
    /// An unusable part, with the reason.
    pub(super) mistakes: Vec<Mistake>,
}

/// Something in a document that can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The object, as `Service shop/cart`, as far as it can be read.
    pub(super) object: Option<String>,
    /// The same for the machine; `None` where it is unknown.
    pub(super) reference: Option<ObjectRef>,
    /// The line in the file where it shows, counted from 1.
    pub(super) line: Option<usize>,
    /// The defect.
    pub(super) what: String,
}

/// Cuts a file into documents without parsing them, so that a malformed one
/// spoils no other. Documents that hold nothing but comments are left out.
pub(super) fn split(text: &str, format: Format) -> Vec<Document> {
    match format {
        Format::Yaml => yaml::split(text),
        Format::Json => split_json(text),
    }
}

/// JSON values one after the other, as `kubectl` accepts them. Behind a syntax
/// error values cannot be separated: the rest is one document.
fn split_json(text: &str) -> Vec<Document> {
    let start_of = |from: usize| from + (text[from..].len() - text[from..].trim_start().len());
    let mut documents = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut from, mut line, mut counted) = (0, 1, 0);
    loop {
        let start = start_of(from);
        if start == text.len() {
            return documents;
        }
        line += text[counted..start].matches('\n').count();
        counted = start;
        match stream.next() {
            Some(Ok(_)) => {
                from = stream.byte_offset();
                documents.push(Document { range: start..from, line });
            }
            Some(Err(_)) | None => {
                documents.push(Document { range: start..text.len(), line });
                return documents;
            }
        }
    }
}

/// Reads one document. What can't be used becomes a [`Mistake`]; the items of
/// a list are independent of each other.
pub(super) fn parse(text: &str, first_line: usize, format: Format) -> Contents {
    let raw: Result<RawDocument, (String, Option<usize>)> = deserialize(text, format);
    let raw = match raw {
        Ok(raw) => raw,
        Err((what, line)) => {
            let line = line.map(|line| first_line + line - 1);
            let object = guess_object(text);
            return Contents { mistakes: vec![Mistake { object, reference: None, line, what }], ..Contents::default() };
        }
    };
    let mut contents = raw.contents;
    if raw.is_list {
        return contents;
    }
    match interpret(Value::Object(raw.fields), None) {
        Ok(found) => contents.add(found),
        Err(mut mistake) => {
            mistake.line = Some(first_line);
            // The generic parse has lost the positions; a typed one has them.
            if let Some(kind) = mistake.reference.as_ref().map(|reference| reference.kind)
                && let Some((what, Some(line))) = type_error(text, kind, format)
            {
                (mistake.what, mistake.line) = (what, Some(first_line + line - 1));
            }
            contents.mistakes.push(mistake);
        }
    }
    contents
}

/// Names the object of a block-style document that does not parse.
fn guess_object(text: &str) -> Option<String> {
    let value = |key: &str| {
        let value =
            |line: &str| line.trim_start().strip_prefix(key)?.strip_prefix(':').map(|rest| rest.trim().to_owned());
        text.lines().find_map(value).filter(|value| !value.is_empty())
    };
    text.starts_with(|first: char| first != '{').then_some(())?;
    Some(format!("{} {}", value("kind")?, value("name")?))
}

impl Contents {
    fn add(&mut self, found: Found) {
        match found {
            Found::Object(object) => self.objects.push(*object),
            Found::Other(name) => self.skipped.push(name),
        }
    }
}

/// The classification of a well-formed object.
enum Found {
    Object(Box<Object>),
    Other(String),
}

/// The kind of the items of `ServiceList`, with the list's `apiVersion`: the
/// API server leaves both out of the items.
type Implied<'a> = Option<(&'a str, &'a str)>;

/// Determines the kind of an object and checks the types of its fields.
fn interpret(value: Value, implied: Implied<'_>) -> Result<Found, Mistake> {
    let mut value = whole_numbers(value);
    let field = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let api_version = field(&value, "/apiVersion").or(implied.map(|(api_version, _)| api_version.to_owned()));
    let kind = field(&value, "/kind").or(implied.map(|(_, kind)| kind.to_owned()));
    let name = field(&value, "/metadata/name").unwrap_or_default();
    let namespace = field(&value, "/metadata/namespace").filter(|namespace| !namespace.is_empty());
    let shown = |kind: &str| match &namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    };
    let mistake = |object: Option<String>, what: String| Mistake { object, reference: None, line: None, what };

    let Some(kind) = kind else {
        return Err(mistake(None, "`kind` is missing; a Kubernetes object needs apiVersion and kind".to_owned()));
    };
    let Some(api_version) = api_version else {
        return Err(mistake(Some(shown(&kind)), "`apiVersion` is missing".to_owned()));
    };
    let known = match known_kind(&api_version, &kind) {
        Recognised::Known(known) => known,
        Recognised::OtherVersion(wanted) => {
            return Err(mistake(
                Some(shown(&kind)),
                format!("apiVersion {api_version} of {kind} is not read; convert it to {wanted}"),
            ));
        }
        Recognised::OtherKind => return Ok(Found::Other(shown(&kind))),
    };
    if name.is_empty() {
        return Err(mistake(Some(kind), "`metadata.name` is missing".to_owned()));
    }
    let namespace = match known {
        Kind::Service | Kind::EndpointSlice => namespace.unwrap_or_else(|| "default".to_owned()),
        Kind::Node | Kind::ServiceCidr => String::new(),
    };
    if let Some(metadata) = value.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert("namespace".to_owned(), Value::String(namespace.clone()));
    }
    let reference = ObjectRef { kind: known, namespace, name };
    ObjectOf(known).deserialize(value).map(|object| Found::Object(Box::new(object))).map_err(|error| Mistake {
        object: Some(reference.to_string()),
        reference: Some(reference),
        line: None,
        what: error.to_string(),
    })
}

enum Recognised {
    Known(Kind),
    /// A kind that is read, but not in this version; the one that is.
    OtherVersion(&'static str),
    OtherKind,
}

fn known_kind(api_version: &str, kind: &str) -> Recognised {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    match (group, version, kind) {
        ("", "v1", "Service") => Recognised::Known(Kind::Service),
        ("", "v1", "Node") => Recognised::Known(Kind::Node),
        ("discovery.k8s.io", "v1", "EndpointSlice") => Recognised::Known(Kind::EndpointSlice),
        ("networking.k8s.io", "v1" | "v1beta1", "ServiceCIDR") => Recognised::Known(Kind::ServiceCidr),
        ("", _, "Service" | "Node") => Recognised::OtherVersion("v1"),
        ("", _, "Endpoints") => Recognised::OtherVersion("an EndpointSlice of discovery.k8s.io/v1"),
        ("discovery.k8s.io", _, "EndpointSlice") => Recognised::OtherVersion("discovery.k8s.io/v1"),
        ("networking.k8s.io", _, "ServiceCIDR") => Recognised::OtherVersion("networking.k8s.io/v1"),
        _ => Recognised::OtherKind,
    }
}

/// Returns the reason why a well-formed document is not one of `kind`, with the
/// line within the document.
fn type_error(text: &str, kind: Kind, format: Format) -> Option<(String, Option<usize>)> {
    match format {
        Format::Yaml => serde_saphyr::with_deserializer_from_str_with_options(text, yaml::options(), |deserializer| {
            ObjectOf(kind).deserialize(deserializer)
        })
        .err()
        .map(|error| describe_yaml(&error)),
        Format::Json => ObjectOf(kind)
            .deserialize(&mut serde_json::Deserializer::from_str(text))
            .err()
            .map(|error| describe_json(&error)),
    }
}

fn deserialize<'de, T: Deserialize<'de>>(text: &'de str, format: Format) -> Result<T, (String, Option<usize>)> {
    match format {
        Format::Yaml => {
            serde_saphyr::from_str_with_options(text, yaml::options()).map_err(|error| describe_yaml(&error))
        }
        Format::Json => serde_json::from_str(text).map_err(|error| describe_json(&error)),
    }
}

/// The message on one line, and the line of the document it speaks of.
fn describe_yaml(error: &serde_saphyr::Error) -> (String, Option<usize>) {
    let line = error.location().and_then(|location| usize::try_from(location.line()).ok()).filter(|line| *line > 0);
    let text = error.without_snippet().to_string();
    (without_position(&text, " at line "), line)
}

fn describe_json(error: &serde_json::Error) -> (String, Option<usize>) {
    (without_position(&error.to_string(), " at line "), Some(error.line()).filter(|line| *line > 0))
}

/// The parsers append positions that count from the document's start; the
/// operator wants the file's.
fn without_position(message: &str, marker: &str) -> String {
    let message = message.rsplit_once(marker).map_or(message, |(message, _)| message);
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A document in one pass: the items of a list are turned into objects one by
/// one, so that a list of 100,000 never exists as generic values.
#[derive(Default)]
struct RawDocument {
    fields: Map<String, Value>,
    is_list: bool,
    contents: Contents,
}

impl<'de> Deserialize<'de> for RawDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = RawDocument;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object (a mapping with apiVersion, kind and metadata)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawDocument, A::Error> {
        let mut document = RawDocument::default();
        // Items without a kind, in a list whose kind comes later.
        let mut waiting = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                let implied = implied_kind(&document.fields);
                map.next_value_seed(Items { contents: &mut document.contents, waiting: &mut waiting, implied })?;
                document.is_list = true;
            } else {
                document.fields.insert(key, map.next_value()?);
            }
        }
        let kind = document.fields.get("kind").and_then(Value::as_str).unwrap_or_default();
        document.is_list |= kind == "List";
        let implied = implied_kind(&document.fields);
        for (number, item) in waiting {
            document.contents.add_item(number, item, implied.as_ref());
        }
        Ok(document)
    }
}

/// `ServiceList` of `v1`: Service of `v1`. `List` implies nothing.
fn implied_kind(fields: &Map<String, Value>) -> Option<(String, String)> {
    let kind = fields.get("kind")?.as_str()?.strip_suffix("List").filter(|kind| !kind.is_empty())?;
    Some((fields.get("apiVersion")?.as_str()?.to_owned(), kind.to_owned()))
}

impl Contents {
    fn add_item(&mut self, number: usize, item: Value, implied: Option<&(String, String)>) {
        match interpret(item, implied.map(|(api_version, kind)| (api_version.as_str(), kind.as_str()))) {
            Ok(found) => self.add(found),
            Err(mut mistake) => {
                mistake.what = format!("item {number} of the list: {}", mistake.what);
                self.mistakes.push(mistake);
            }
        }
    }
}

struct Items<'a> {
    contents: &'a mut Contents,
    waiting: &'a mut Vec<(usize, Value)>,
    implied: Option<(String, String)>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(item) = items.next_element::<Value>()? {
            number += 1;
            if self.implied.is_none() && item.get("kind").is_none() {
                self.waiting.push((number, item));
            } else {
                self.contents.add_item(number, item, self.implied.as_ref());
            }
        }
        Ok(())
    }
}
