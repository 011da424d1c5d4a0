//! Escapes foreign text for a terminal or a log: a name with a line break must
//! not look like two lines, and must not move the cursor.

use std::borrow::Cow;
use std::fmt;

use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Returns the text with control characters, and those that break a line or
/// turn its direction, escaped as in Rust: `\n`, `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_harmful(character) {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    Cow::Owned(clean)
}

fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Formats an event's message and fields with everything in them [`escaped`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Escaped<F>(pub(super) F);

impl<F> FormatFields<'_> for Escaped<F>
where
    F: for<'any> FormatFields<'any>,
{
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'_>, fields: R) -> fmt::Result {
        let mut text = String::new();
        self.0.format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&escaped(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_or_breaks_the_line_is_written_out() {
        assert_eq!(escaped("shop/c\u{e4}rt: 5 \u{20ac}"), "shop/c\u{e4}rt: 5 \u{20ac}");
        assert_eq!(escaped("a\nb\r\tc\u{1b}[2J\u{9b}\u{2028}\u{202e}"), r"a\nb\r\tc\u{1b}[2J\u{9b}\u{2028}\u{202e}");
    }
}
