//! YAML as Kubernetes' own programs read it: cut into documents, limited only
//! where a hostile text could exhaust the machine, and whole numbers whatever
//! their notation.

use std::ops::Range;

use serde_json::Value;

/// One document of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its bytes in the text.
    pub range: Range<usize>,
    /// The line it begins on, counted from 1.
    pub line: usize,
}

/// Cuts a text into documents without parsing them, so that a malformed one
/// spoils no other. Documents that hold nothing but comments are left out.
///
/// A document begins with `---` in the first column, even within a block scalar
/// (YAML 1.2.2, 9.1.2), so that lines are enough to find them.
pub fn split(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let (mut start, mut line, mut has_content) = (0, 1, false);
    let mut offset = 0;
    for (index, content) in text.split_inclusive('\n').enumerate() {
        let marker =
            content.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if let Some(rest) = marker {
            if has_content {
                documents.push(Document { range: start..offset, line });
            }
            (start, line) = (offset, index + 1);
            has_content = !is_blank(rest);
        } else {
            has_content |= !is_blank(content) && !content.starts_with('%') && content.trim_end() != "...";
        }
        offset += content.len();
    }
    if has_content {
        documents.push(Document { range: start..text.len(), line });
    }
    documents
}

fn is_blank(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim_start();
    line.is_empty() || line.starts_with('#')
}

/// The parser's options. A file by the operator may have any size. Limits
/// remain for nesting, which could exhaust the stack, and for aliases that
/// multiply.
pub fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
        // With comments as events the parser refuses more than 32 lines of them between a key and its block.
        emit_comments: false,
        with_snippet: false,
    }
}

/// Turns every float without a fraction into the integer it stands for: Go
/// reads YAML by way of JSON, where `1.31072e+05` is written as 131072, and
/// that is how Helm prints a large number.
pub fn whole_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()).and_then(whole) {
            Some(whole) => Value::from(whole),
            None => Value::Number(number),
        },
        Value::Array(items) => Value::Array(items.into_iter().map(whole_numbers).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, whole_numbers(value))).collect())
        }
        other => other,
    }
}

/// Up to 2^53 every integer has its own float.
fn whole(number: f64) -> Option<i64> {
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    let is_whole = number.fract() == 0.0 && number.abs() <= LARGEST;
    is_whole.then(|| format!("{number:.0}").parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_floats_are_integers() {
        let text = "a: 3.2768e+4\nb: [1.31072e+05, 80.0]\nc: {d: -1e3}\ne: 0.5\nf: 1e300\ng: '1e3'\n";
        let value: Value = serde_saphyr::from_str_with_options(text, options()).unwrap();
        let expected = json!({"a": 32768, "b": [131_072, 80], "c": {"d": -1000}, "e": 0.5, "f": 1e300, "g": "1e3"});
        assert_eq!(whole_numbers(value), expected);
    }

    #[test]
    fn comments_are_never_too_many() {
        let text = format!("key:\n{}  inner: 1\n", "# a line of a long explanation\n".repeat(5000));
        let value: Value = serde_saphyr::from_str_with_options(&text, options()).unwrap();
        assert_eq!(value, json!({"key": {"inner": 1}}));
    }
}
