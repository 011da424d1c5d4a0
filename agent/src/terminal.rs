//! Text for a terminal or a pipe: colour where it is wanted, columns that align,
//! and foreign names escaped.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::cli::ReportFormat;
use crate::logging::escape::escaped;

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    colour: bool,
}

impl Paint {
    /// Colour on a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.
    pub fn of_terminal() -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colour: io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb }
    }

    /// No colour.
    pub fn plain() -> Self {
        Self { colour: false }
    }

    fn with(self, code: &str, text: &str) -> String {
        let text = escaped(text);
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.into_owned() }
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Good news.
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Bad news.
    pub fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    /// Something to look at.
    pub fn warning(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Something in the background.
    pub fn faint(self, text: &str) -> String {
        self.with("2", text)
    }
}

/// An answer in the format that was asked for.
///
/// # Errors
/// If it can't be written as JSON.
pub fn rendered<T: Serialize>(
    format: ReportFormat,
    answer: &T,
    text: impl FnOnce(&T, Paint) -> String,
) -> serde_json::Result<String> {
    match format {
        ReportFormat::Text => Ok(text(answer, Paint::of_terminal())),
        ReportFormat::Json => serde_json::to_string_pretty(answer),
    }
}

/// Prints to standard output. A reader that has closed the pipe
/// (`vmap-proxy compile | head`) is no error.
///
/// # Errors
/// If standard output can't be written.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| {
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        out.flush()
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The line about what is left out of a list of `count` that shows `shown`; empty
/// if nothing is. `what` names the rest, with a space before it, or is empty.
pub fn more(count: usize, shown: usize, what: &str) -> String {
    match count.saturating_sub(shown) {
        0 => String::new(),
        left_out => format!("  … and {left_out} more{what} (-o json)\n"),
    }
}

/// Lines of cells, in columns that are as wide as their widest cell. Cells are
/// escaped; the last one of a line is not padded.
pub fn columns(indent: &str, rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for row in rows {
        for (position, cell) in row.iter().enumerate() {
            if position > 0 {
                text.push('\t');
            }
            text.push_str(&escaped(cell));
        }
        text.push('\n');
    }
    aligned_by(indent, &text)
}

/// The same for lines with tabs between the cells, which are escaped.
pub fn aligned(text: &str) -> String {
    aligned_by("", text)
}

fn aligned_by(indent: &str, text: &str) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for line in text.lines() {
        // All cells but the last.
        let mut rest = line;
        let mut position = 0;
        while let Some((cell, behind)) = rest.split_once('\t') {
            if widths.len() == position {
                widths.push(0);
            }
            widths[position] = widths[position].max(cell.chars().count());
            (rest, position) = (behind, position + 1);
        }
    }
    let mut out = String::with_capacity(text.len() * 2);
    for line in text.lines() {
        out.push_str(indent);
        let mut rest = line;
        let mut widths = widths.iter();
        while let (Some((cell, behind)), Some(width)) = (rest.split_once('\t'), widths.next()) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
            rest = behind;
        }
        out.push_str(rest);
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_escape() {
        let rows = [vec!["a\u{1b}[2J".to_owned(), "b".to_owned()], vec!["cc".to_owned(), "dd".to_owned()]];
        assert_eq!(columns("  ", &rows), "  a\\u{1b}[2J  b\n  cc          dd\n");
    }

    #[test]
    fn no_colour_without_a_terminal() {
        assert_eq!(Paint::plain().bad("x\ny"), "x\\ny");
        assert_eq!(Paint { colour: true }.bad("x"), "\u{1b}[31mx\u{1b}[0m");
    }
}
