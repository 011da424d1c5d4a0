//! The entry of the fuzz targets (`scripts/fuzz`) into a private module.

use super::document::{Format, parse, split};

/// Reads a text as a file of manifests in either format.
///
/// # Panics
///
/// If a document is no part of the text, or the documents are out of order.
pub fn read(text: &str) {
    for format in [Format::Yaml, Format::Json] {
        let mut end = 0;
        for document in split(text, format) {
            assert!(document.range.start >= end, "documents overlap");
            end = document.range.end;
            let contents = parse(&text[document.range], document.line, format);
            assert!(contents.mistakes.iter().all(|mistake| mistake.line.is_none_or(|line| line >= document.line)));
        }
    }
}
