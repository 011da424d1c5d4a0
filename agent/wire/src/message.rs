//! The byte layout of netlink messages, written and read.
//!
//! ```text
//! nlmsghdr (16 bytes)  length u32, type u16, flags u16, sequence u32, port u32
//! nfgenmsg (4 bytes)   address family u8, version u8 (0), resource u16 (big endian)
//! attributes           length u16 (header included, padding not), type u16, payload,
//!                      padded to 4 bytes; a nested attribute's payload is attributes
//! ```
//!
//! Headers are in host byte order; nfnetlink puts its own integers in network
//! byte order (`include/uapi/linux/netlink.h`, `nfnetlink.h`). Other parts of
//! netlink have four other bytes in the place of the nfgenmsg; the first is the
//! family or the command there, too.

/// `NLM_F_REQUEST`
pub const NLM_F_REQUEST: u16 = 0x1;
/// `NLM_F_ACK`
pub const NLM_F_ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: the objects changed while they were listed.
pub const NLM_F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_CAPPED`: the acknowledgement contains only the request's header.
pub const NLM_F_CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: the acknowledgement contains extended information.
pub const NLM_F_ACK_TLVS: u16 = 0x200;
/// `NLM_F_DUMP`
pub const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_EXCL`
pub const NLM_F_EXCL: u16 = 0x200;
/// `NLM_F_CREATE`
pub const NLM_F_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`
pub const NLM_F_APPEND: u16 = 0x800;

/// `NLMSG_ERROR`: an error, or with code 0 an acknowledgement.
pub const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub const NLMSG_DONE: u16 = 3;

const NLA_F_NESTED: u16 = 0x8000;
/// Everything of an attribute's type but its two flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `sizeof(struct nlmsghdr)`
pub const HEADER: usize = 16;
/// `sizeof(struct nfgenmsg)`
pub const NFGENMSG: usize = 4;
/// The longest an attribute can be: its length is a `u16`.
pub const MAX_ATTRIBUTE: usize = u16::MAX as usize;

pub(crate) fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// The start of a part begun in a [`Writer`]; `end` writes its length.
#[derive(Debug, Clone, Copy)]
pub struct Open(usize);

/// Writes messages one behind the other into one buffer.
#[derive(Debug)]
pub struct Writer {
    buffer: Vec<u8>,
    /// Added to the type of an attribute that holds attributes.
    nested: u16,
}

impl Default for Writer {
    /// For messages to the kernel, with the flag on nested attributes that
    /// newer interfaces of it demand.
    fn default() -> Self {
        Self { buffer: Vec::new(), nested: NLA_F_NESTED }
    }
}

impl Writer {
    /// Writes as nf_tables lists its objects: without the flag.
    pub fn as_listed() -> Self {
        Self { buffer: Vec::new(), nested: 0 }
    }

    /// Forgets the content and keeps the memory.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Everything that was written.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Returns the number of written bytes, which is the position of the next
    /// part.
    pub fn position(&self) -> usize {
        self.buffer.len()
    }

    /// Begins a message with its two headers. `resource` is the subsystem for
    /// the marks around a batch, else 0.
    pub fn begin_message(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Open {
        let open = Open(self.buffer.len());
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
        open
    }

    /// Ends a message.
    pub fn end_message(&mut self, open: Open) {
        let length = (self.buffer.len() - open.0) as u32;
        self.buffer[open.0..open.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds flags to a message that is already written.
    pub fn add_flags(&mut self, message: usize, flags: u16) {
        for (byte, flag) in self.buffer[message + 6..message + 8].iter_mut().zip(flags.to_ne_bytes()) {
            *byte |= flag;
        }
    }

    /// Begins an attribute of raw bytes.
    pub fn begin_attribute(&mut self, kind: u16) -> Open {
        let open = Open(self.buffer.len());
        self.buffer.extend_from_slice(&0u16.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        open
    }

    /// Begins an attribute that holds attributes.
    pub fn begin_nest(&mut self, kind: u16) -> Open {
        self.begin_attribute(kind | self.nested)
    }

    /// Ends an attribute. Callers keep it below [`MAX_ATTRIBUTE`].
    pub fn end(&mut self, open: Open) {
        let length = self.buffer.len() - open.0;
        debug_assert!(length <= MAX_ATTRIBUTE, "attribute of {length} bytes");
        self.buffer[open.0..open.0 + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.buffer.resize(open.0 + align(length), 0);
    }

    /// Writes an attribute with the content that `content` writes.
    pub fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let open = self.begin_nest(kind);
        content(self);
        self.end(open);
    }

    /// Bytes of an attribute begun with [`Self::begin_attribute`].
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// An attribute of raw bytes.
    pub fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let open = self.begin_attribute(kind);
        self.raw(payload);
        self.end(open);
    }

    /// A byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    /// An integer of two bytes in network byte order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An integer of four bytes in network byte order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An integer of four bytes in host byte order.
    pub fn ne32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An integer of eight bytes in network byte order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A string with its terminating zero.
    pub fn string(&mut self, kind: u16, text: &str) {
        let open = self.begin_attribute(kind);
        self.raw(text.as_bytes());
        self.raw(&[0]);
        self.end(open);
    }
}

/// One message to the kernel, ready but for its flags and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its type.
    pub kind: u16,
    /// The first byte behind the header: the family, or the command of generic
    /// netlink.
    pub family: u8,
    /// Everything behind the four bytes that begin with the family.
    pub body: Vec<u8>,
}

impl Request {
    /// Writes a message with the content that `content` writes, usually
    /// attributes.
    pub fn new(kind: u16, family: u8, content: impl FnOnce(&mut Writer)) -> Self {
        let mut writer = Writer::default();
        content(&mut writer);
        Self { kind, family, body: writer.buffer }
    }

    /// Writes the message. `NLM_F_REQUEST` need not be among the flags.
    pub fn write(&self, writer: &mut Writer, flags: u16, sequence: u32) {
        let open = writer.begin_message(self.kind, flags, sequence, self.family, 0);
        writer.raw(&self.body);
        writer.end_message(open);
    }
}

/// One message of a datagram that was received.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// `NLM_F_*`
    pub flags: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// Everything behind the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family and the attributes of an nfnetlink message.
    pub fn body(&self) -> Option<(u8, Attributes<'a>)> {
        let (header, rest) = self.payload.split_at_checked(NFGENMSG)?;
        Some((header[0], Attributes(rest)))
    }
}

/// The messages of a datagram. Stops at the first that makes no sense.
#[derive(Debug, Clone, Copy)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Of a datagram as it was received.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }

    /// Returns the unread bytes: none at the end, unless the input is
    /// malformed.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER)?;
        let length = u32::from_ne_bytes(header[0..4].try_into().ok()?) as usize;
        let payload = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(header[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(header[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            payload,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<'a> {
    /// The type, without flags.
    pub kind: u16,
    /// The content.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// An integer of two bytes in network byte order.
    pub fn be16(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.payload.try_into().ok()?))
    }

    /// An integer of four bytes in network byte order.
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.try_into().ok()?))
    }

    /// An integer of eight bytes in network byte order.
    pub fn be64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.payload.try_into().ok()?))
    }

    /// A text, without its terminating zero.
    pub fn string(&self) -> Option<&'a str> {
        std::str::from_utf8(self.payload).ok().map(|text| text.trim_end_matches('\0'))
    }

    /// The attributes inside.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes(self.payload)
    }
}

/// A run of attributes. Stops at the first that does not fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Of the bytes that hold them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes of those that were not read yet.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The first attribute of a type.
    pub fn get(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.find(|attribute| attribute.kind == kind)
    }

    /// Returns the string of an attribute, if it is present.
    pub fn string(self, kind: u16) -> Option<&'a str> {
        self.get(kind)?.string()
    }

    /// Returns the big-endian integer of an attribute, if it is present.
    pub fn be32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.be32()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let header = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut writer = Writer::default();
        let message = writer.begin_message(0x0a09, NLM_F_CREATE, 7, 2, 0);
        writer.string(1, "table");
        writer.nest(2, |w| w.be32(3, 0x0102_0304));
        writer.end_message(message);
        writer.add_flags(0, NLM_F_ACK);

        let message = Messages::new(writer.bytes()).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (0x0a09, 0x405, 7));
        let (family, attributes) = message.body().unwrap();
        assert_eq!(family, 2);
        assert_eq!(attributes.string(1), Some("table"));
        assert_eq!(attributes.get(2).unwrap().nested().be32(3), Some(0x0102_0304));
        assert_eq!(writer.bytes().len(), 20 + 12 + 12);
    }

    #[test]
    fn truncated_input_ends_the_iteration() {
        assert!(Messages::new(&[1, 0, 0]).next().is_none());
        assert!(Messages::new(&[0; 16]).next().is_none(), "a length of 0 must not loop");
        assert!(Attributes::new(&[0; 8]).next().is_none(), "nor here");
        assert!(Attributes::new(&[200, 0, 1, 0, 1]).next().is_none());
    }
}
