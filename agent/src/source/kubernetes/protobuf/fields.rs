//! The fields of a message, in place: for wrappers, whose content must not be
//! copied. <https://protobuf.dev/programming-guides/encoding/>

use thiserror::Error;

/// Longest encoded number.
const LONGEST_NUMBER: usize = 10;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Defect {
    /// A number of more than 64 bits.
    #[error("a number has more than 64 bits")]
    LongNumber,
    /// A field reaches beyond the end.
    #[error("it ends inside a field")]
    CutShort,
    /// Groups are not used by Kubernetes, and other types do not exist.
    #[error("a field has the unknown type {0}")]
    UnknownType(u64),
}

/// The form of a field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A number of any length.
    Varint,
    /// This number of bytes, which are no message.
    Fixed(usize),
    /// A length, and a string, bytes or a message of it.
    Bytes,
}

/// The value of a field. Wrappers have no numbers that are used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    /// A number.
    Number,
}

/// Decodes a number. Returns it with its length, or `None` if it is not
/// complete.
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Defect> {
    let mut number = 0;
    for (index, byte) in bytes.iter().enumerate().take(LONGEST_NUMBER) {
        // The tenth byte has one bit left.
        if index == LONGEST_NUMBER - 1 && *byte > 1 {
            return Err(Defect::LongNumber);
        }
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((number, index + 1)));
        }
    }
    if bytes.len() < LONGEST_NUMBER { Ok(None) } else { Err(Defect::LongNumber) }
}

/// Takes a key apart: the number of the field, and the form of its value.
pub(super) fn field_of_key(key: u64) -> Result<(u64, Form), Defect> {
    let form = match key & 7 {
        0 => Form::Varint,
        1 => Form::Fixed(8),
        2 => Form::Bytes,
        5 => Form::Fixed(4),
        other => return Err(Defect::UnknownType(other)),
    };
    Ok((key >> 3, form))
}

/// Iterates over the fields of an encoded message; ends at the first defect.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Defect>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), Defect> {
        let (number, form) = field_of_key(self.number()?)?;
        let value = match form {
            Form::Varint => self.number().map(|_| Value::Number)?,
            Form::Fixed(length) => self.bytes(length).map(|_| Value::Number)?,
            Form::Bytes => {
                let length = usize::try_from(self.number()?).map_err(|_| Defect::CutShort)?;
                Value::Bytes(self.bytes(length)?)
            }
        };
        Ok((number, value))
    }

    fn number(&mut self) -> Result<u64, Defect> {
        let (number, length) = varint(self.0)?.ok_or(Defect::CutShort)?;
        self.bytes(length)?;
        Ok(number)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Defect> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Defect::CutShort)?;
        self.0 = rest;
        Ok(bytes)
    }
}
