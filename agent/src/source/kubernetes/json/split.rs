//! Cuts a response body, as it arrives, into the pieces that are parsed one by
//! one: the lines of a watch, the items of a list.

use super::super::wire::{LONGEST, Malformed};

/// The lines of a watch.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line that is not complete yet.
    partial: Vec<u8>,
    is_given_out: bool,
}

impl Lines {
    /// Returns whether a line is not complete yet.
    pub(super) fn is_inside_line(&self) -> bool {
        !self.is_given_out && !self.partial.is_empty()
    }

    /// The next complete line of `chunk`, which loses it. `None`: the rest is
    /// kept, and the next chunk wanted.
    pub(super) fn next<'s, 'c: 's>(&'s mut self, chunk: &mut &'c [u8]) -> Result<Option<&'s [u8]>, Malformed> {
        if std::mem::take(&mut self.is_given_out) {
            self.partial.clear();
        }
        let Some(end) = chunk.iter().position(|byte| *byte == b'\n') else {
            self.partial.extend_from_slice(chunk);
            *chunk = &[];
            return if self.partial.len() > LONGEST { Err(Malformed::TooLong) } else { Ok(None) };
        };
        let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
        *chunk = rest;
        if self.partial.is_empty() {
            return Ok(Some(line));
        }
        self.partial.extend_from_slice(line);
        self.is_given_out = true;
        Ok(Some(&self.partial))
    }
}

/// The items of a list (`{"kind": …, "metadata": …, "items": [ … ]}`).
#[derive(Debug, Default)]
pub(super) struct Items {
    /// Open braces and brackets.
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
    is_in_items: bool,
    /// The last string at the top level: the key in front of a value.
    key: Vec<u8>,
    /// The item that is not complete yet.
    item: Vec<u8>,
    is_given_out: bool,
    /// The list without its items, to be parsed for its metadata.
    rest: Vec<u8>,
}

impl Items {
    /// The next complete item of `chunk`, which loses it. `None`: the rest is
    /// kept, and the next chunk wanted.
    pub(super) fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<&[u8]>, Malformed> {
        if std::mem::take(&mut self.is_given_out) {
            self.item.clear();
        }
        for (index, &byte) in chunk.iter().enumerate() {
            let is_complete = self.step(byte);
            if is_complete {
                *chunk = &chunk[index + 1..];
                self.is_given_out = true;
                return Ok(Some(&self.item));
            }
        }
        *chunk = &[];
        if self.item.len().max(self.rest.len()) > LONGEST { Err(Malformed::TooLong) } else { Ok(None) }
    }

    /// The list without its items.
    pub(super) fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Takes one byte; true if it ends an item.
    fn step(&mut self, byte: u8) -> bool {
        let was_in_item = self.is_in_items && self.depth > 2;
        if self.is_in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.is_in_string = false,
                _ if self.depth == 1 => self.key.push(byte),
                _ => {}
            }
        } else {
            match byte {
                b'"' => {
                    self.is_in_string = true;
                    if self.depth == 1 {
                        self.key.clear();
                    }
                }
                b'{' | b'[' => {
                    self.is_in_items |= byte == b'[' && self.depth == 1 && self.key == b"items";
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.is_in_items &= self.depth >= 2;
                }
                _ => {}
            }
        }
        let is_in_item = self.is_in_items && self.depth > 2;
        if was_in_item || is_in_item {
            self.item.push(byte);
        } else if !(self.is_in_items && byte == b',') {
            self.rest.push(byte);
        }
        was_in_item && !is_in_item
    }
}
