//! Servers that are slow, broken or hostile: what real ones, and what imitates
//! them, have been seen to do.

/// The faults in the answers for one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Each watch ends behind an event.
    EndsAfterEvent,
    /// Each watch is too old behind an event: 410.
    ExpiresAfterEvent,
    /// Behind each page there is another, with the same objects.
    EndlessPages,
    /// Behind each page there is another, without objects.
    EmptyPages,
    /// 400 for a field selector other than by name, as Services had it before
    /// Kubernetes 1.31.
    NoFieldSelector,
    /// 429, with `Retry-After` in seconds.
    Busy(u32),
    /// Answers are JSON under the name of protobuf.
    JsonAsProtobuf,
    /// Answers are protobuf under the name of JSON.
    ProtobufAsJson,
    /// Protobuf objects begin with other bytes than `k8s\0`.
    WrongMagic,
    /// Each protobuf answer ends inside its first object.
    TruncatedFrame,
    /// Lists and new watches are those of another resource.
    OtherKind,
}
