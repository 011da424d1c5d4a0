//! Cuts a response body, as it arrives, into the pieces that are decoded one by
//! one: the frames of a watch, the items of a list. A piece that arrived whole is
//! not copied.

use vmap_proxy_compiler::model::objects::Kind;

use super::fields::{Defect, Form, field_of_key, varint};
use super::{MAGIC, broken, kind_of, unknown};
use crate::source::kubernetes::wire::{LONGEST, Malformed, check_kind};

/// Bytes of the length in front of a frame.
const LENGTH: usize = 4;

/// No kind is longer, with its version and their heads.
const LONGEST_KIND: usize = 1024;

/// Fields of every list.
mod list {
    pub(super) const METADATA: u64 = 1;
    pub(super) const ITEMS: u64 = 2;
}

/// A piece of known length.
#[derive(Debug, Default)]
struct Piece {
    /// The beginning of a piece that is not complete yet.
    partial: Vec<u8>,
    is_given_out: bool,
}

impl Piece {
    /// The next `length` bytes of `chunk`, which loses them. `None`: all of it is
    /// kept, and more wanted.
    fn take<'s, 'c: 's>(&'s mut self, chunk: &mut &'c [u8], length: usize) -> Option<&'s [u8]> {
        if std::mem::take(&mut self.is_given_out) {
            self.partial.clear();
        }
        let missing = length.saturating_sub(self.partial.len());
        let Some((bytes, rest)) = chunk.split_at_checked(missing) else {
            self.partial.extend_from_slice(chunk);
            *chunk = &[];
            return None;
        };
        *chunk = rest;
        if self.partial.is_empty() {
            return Some(bytes);
        }
        self.partial.extend_from_slice(bytes);
        self.is_given_out = true;
        Some(&self.partial)
    }

    /// Returns whether it has a beginning without an end.
    fn is_partial(&self) -> bool {
        !self.is_given_out && !self.partial.is_empty()
    }
}

/// The frames of a watch.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: Piece,
    frame: Piece,
    /// The length of the current frame, once it is known.
    length: Option<usize>,
}

impl Frames {
    /// The next complete frame of `chunk`, which loses it. `None`: the rest is
    /// kept, and the next chunk wanted.
    pub(super) fn next<'s, 'c: 's>(&'s mut self, chunk: &mut &'c [u8]) -> Result<Option<&'s [u8]>, Malformed> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let Some(head) = self.head.take(chunk, LENGTH) else { return Ok(None) };
                let length = head.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                if length > LONGEST {
                    let head = head.escape_ascii();
                    return Err(broken(format!("a frame begins with \"{head}\", which is no length of an event")));
                }
                *self.length.insert(length)
            }
        };
        let frame = self.frame.take(chunk, length);
        if frame.is_some() {
            self.length = None;
        }
        Ok(frame)
    }

    /// Returns whether a frame is not complete yet.
    pub(super) fn is_inside_frame(&self) -> bool {
        self.length.is_some() || self.head.is_partial()
    }
}

/// The items of a wrapped list.
#[derive(Debug)]
pub(super) struct Items {
    place: Place,
    /// The incomplete key and length of a field.
    head: Vec<u8>,
    /// The content of an item, or of another field that is kept.
    content: Piece,
    /// Bytes of the list that are still to come.
    left_of_list: usize,
    /// Whether the wrapper's list has come to its end.
    is_complete: bool,
    list_meta: Vec<u8>,
    kind: Kind,
}

/// The next thing to be read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `k8s\0`
    #[default]
    Magic,
    /// A field of the wrapper.
    Wrapper,
    /// A field of the list.
    List,
    /// The content of an item.
    Item(usize),
    /// The content of the list's metadata.
    ListMeta(usize),
    /// The content of the list's kind.
    TypeMeta(usize),
    /// Content of no use, of the list or of the wrapper around it.
    Skipped { left: usize, is_in_list: bool },
}

impl Items {
    /// Nothing read yet of a list of objects of this kind.
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            place: Place::default(),
            head: Vec::new(),
            content: Piece::default(),
            left_of_list: 0,
            is_complete: false,
            list_meta: Vec::new(),
            kind,
        }
    }

    /// The next complete item of `chunk`, which loses it. `None`: the rest is
    /// kept, and the next chunk wanted.
    pub(super) fn next<'s, 'c: 's>(&'s mut self, chunk: &mut &'c [u8]) -> Result<Option<&'s [u8]>, Malformed> {
        while !chunk.is_empty() || self.needs_nothing() {
            match self.place {
                Place::Magic => self.magic(chunk)?,
                Place::Wrapper => self.field_of_wrapper(chunk)?,
                Place::List if self.left_of_list == 0 && self.head.is_empty() => {
                    self.is_complete = true;
                    self.place = Place::Wrapper;
                }
                Place::List => self.field_of_list(chunk)?,
                Place::ListMeta(length) => {
                    let Some(bytes) = self.content.take(chunk, length) else { return Ok(None) };
                    self.list_meta = bytes.to_vec();
                    self.place = Place::List;
                }
                Place::TypeMeta(length) => {
                    let Some(bytes) = self.content.take(chunk, length) else { return Ok(None) };
                    check_kind(self.kind, kind_of(bytes)?).map_err(Malformed::OtherKind)?;
                    self.place = Place::Wrapper;
                }
                Place::Skipped { left, is_in_list } => {
                    let skipped = left.min(chunk.len());
                    *chunk = &chunk[skipped..];
                    self.place = match left - skipped {
                        0 if is_in_list => Place::List,
                        0 => Place::Wrapper,
                        left => Place::Skipped { left, is_in_list },
                    };
                }
                Place::Item(length) => {
                    let item = self.content.take(chunk, length);
                    if item.is_some() {
                        self.place = Place::List;
                    }
                    return Ok(item);
                }
            }
        }
        Ok(None)
    }

    /// The metadata of the complete list, encoded. The error is why it is not
    /// complete.
    pub(super) fn list_meta(&self) -> Result<&[u8], String> {
        if self.is_complete && self.place == Place::Wrapper && self.head.is_empty() {
            Ok(&self.list_meta)
        } else {
            Err("it ends inside an object".to_owned())
        }
    }

    /// Returns whether the next step needs no further byte: empty content, or
    /// the end of the list.
    fn needs_nothing(&self) -> bool {
        match self.place {
            Place::Item(length) | Place::ListMeta(length) | Place::TypeMeta(length) => length == 0,
            Place::Skipped { left, .. } => left == 0,
            Place::List => self.left_of_list == 0 && self.head.is_empty(),
            Place::Magic | Place::Wrapper => false,
        }
    }

    fn magic(&mut self, chunk: &mut &[u8]) -> Result<(), Malformed> {
        let Some(start) = self.content.take(chunk, MAGIC.len()) else { return Ok(()) };
        if start != MAGIC {
            let start = start.escape_ascii();
            return Err(broken(format!("the list begins with \"{start}\" instead of \"k8s\\x00\"")));
        }
        self.place = Place::Wrapper;
        Ok(())
    }

    fn field_of_wrapper(&mut self, chunk: &mut &[u8]) -> Result<(), Malformed> {
        let Some((number, length)) = self.field(chunk)? else { return Ok(()) };
        self.place = match number {
            unknown::RAW => {
                self.left_of_list = length;
                Place::List
            }
            unknown::TYPE_META if length <= LONGEST_KIND => Place::TypeMeta(length),
            _ => Place::Skipped { left: length, is_in_list: false },
        };
        Ok(())
    }

    fn field_of_list(&mut self, chunk: &mut &[u8]) -> Result<(), Malformed> {
        let before = chunk.len() + self.head.len();
        let Some((number, length)) = self.field(chunk)? else { return Ok(()) };
        let taken = (before - chunk.len()).saturating_add(length);
        self.left_of_list = self
            .left_of_list
            .checked_sub(taken)
            .ok_or_else(|| broken("an object of the list is longer than the list".to_owned()))?;
        let is_kept = matches!(number, list::METADATA | list::ITEMS);
        if is_kept && length > LONGEST {
            return Err(Malformed::TooLong);
        }
        self.place = match number {
            list::METADATA => Place::ListMeta(length),
            list::ITEMS => Place::Item(length),
            _ => Place::Skipped { left: length, is_in_list: true },
        };
        Ok(())
    }

    /// Takes the key and the length of the next field from `chunk`. Returns its
    /// number and the length of its content; a number has none.
    fn field(&mut self, chunk: &mut &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
        while let Some((byte, rest)) = chunk.split_first() {
            *chunk = rest;
            self.head.push(*byte);
            let field = head(&self.head).map_err(|defect| broken(format!("a list: {defect}")))?;
            if field.is_some() {
                self.head.clear();
                return Ok(field);
            }
        }
        Ok(None)
    }
}

/// Reads the head of a field, which ends where its content begins. `None`: it is
/// not complete.
fn head(bytes: &[u8]) -> Result<Option<(u64, usize)>, Defect> {
    let Some((key, key_length)) = varint(bytes)? else { return Ok(None) };
    let (number, form) = field_of_key(key)?;
    if let Form::Fixed(length) = form {
        return Ok(Some((number, length)));
    }
    let Some((value, _)) = varint(&bytes[key_length..])? else { return Ok(None) };
    match form {
        Form::Bytes => Ok(Some((number, usize::try_from(value).map_err(|_| Defect::CutShort)?))),
        Form::Varint | Form::Fixed(_) => Ok(Some((number, 0))),
    }
}
