//! Errors between the agent and the kernel, with their remedies.

use std::fmt;
use std::io;

use thiserror::Error;
use vmap_proxy_compiler::plan::{Action, Operation};
use vmap_proxy_compiler::render;

use super::lacking::Lacking;

/// A socket to the kernel failed, or the kernel refused a request over it.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A system call failed.
    #[error("netlink: {call}: {source}")]
    System {
        /// The table.
        call: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused it, with this errno.
    #[error("netlink: {}", io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    /// The batch is larger than the socket may send at once.
    #[error("a batch of {bytes} bytes does not fit the socket's send buffer of {limit} bytes: submit less at once")]
    TooLarge {
        /// The size of the batch.
        bytes: usize,
        /// The maximum.
        limit: usize,
    },
    /// It is unknown whether a request was carried out, because the kernel's
    /// answer was lost (`ENOBUFS`). Read the objects back.
    #[error("the kernel's answer was lost: what it was about has to be read back before going on")]
    AnswerLost,
    /// The agent is to end: [`super::StopFlag`].
    #[error("stopped early; committed changes stay")]
    Stopped,
    /// Things kept changing while they were listed.
    #[error("what was to be listed changed {attempts} times meanwhile")]
    Interrupted {
        /// The number of attempts.
        attempts: u32,
    },
}

impl SocketError {
    /// Returns the reason, if the kernel refused it.
    pub fn refused(&self) -> Option<i32> {
        if let Self::Refused(errno) = self { Some(*errno) } else { None }
    }
}

impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Refused(errno) => io::Error::from_raw_os_error(errno),
            SocketError::System { source, .. } => source,
            other => io::Error::other(other),
        }
    }
}

/// Talking to nf_tables failed as such.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel has no nf_tables.
    #[error(
        "the kernel has no nf_tables ({0}): {remedy}",
        remedy = Lacking::NF_TABLES.remedy()
    )]
    NoNfTables(String),
    /// We may not change the rule set of this network namespace.
    #[error(
        "not permitted to change nftables in this network namespace: run as root with the capability \
         NET_ADMIN (in a pod: securityContext.capabilities.add, or privileged)"
    )]
    Permission,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A socket that waits for news failed.
    #[error("netlink: {0}")]
    News(#[from] nlink::Error),
    /// The kernel refused a question.
    #[error("netlink: {question}: {}", io::Error::from_raw_os_error(*errno))]
    Question {
        /// The request.
        question: String,
        /// The kernel's answer, an errno.
        errno: i32,
    },
}

impl NetlinkError {
    /// Returns whether trying again cannot help, because somebody has to change
    /// something first.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::NoNfTables(_) | Self::Permission)
    }

    /// Returns whether the agent is to end, and nothing else is wrong.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Socket(SocketError::Stopped))
    }

    /// Returns whether other programs kept changing the listed objects.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Socket(SocketError::Interrupted { .. }))
    }

    /// A question failed, because the kernel refused it or otherwise.
    pub(super) fn of(question: impl Into<String>, error: SocketError) -> Self {
        let Some(errno) = error.refused() else { return Self::Socket(error) };
        match errno {
            libc::EPERM | libc::EACCES => Self::Permission,
            // nfnetlink answers EINVAL for a subsystem it does not know.
            libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => {
                Self::NoNfTables(io::Error::from_raw_os_error(errno).to_string())
            }
            _ => Self::Question { question: question.into(), errno },
        }
    }
}

/// A transaction was not committed: the kernel's state is unchanged.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The kernel refused some operations, and with them the whole batch.
    #[error("the kernel refused {}", list(failures))]
    Refused {
        /// Each refused operation. A batch may hold further ones: the kernel
        /// stops at the first bad element of a message.
        failures: Vec<Refusal>,
    },
    /// It could not be submitted, or its fate is unknown
    /// ([`SocketError::AnswerLost`]).
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl CommitError {
    /// What the kernel lacks, if that is the cause.
    pub fn lacking(&self) -> Option<Lacking> {
        let Self::Refused { failures } = self else { return None };
        failures.iter().find_map(|failure| failure.lacking)
    }
}

impl From<SocketError> for CommitError {
    fn from(error: SocketError) -> Self {
        Self::Netlink(error.into())
    }
}

/// One operation that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its index in the transaction's `operations`.
    pub operation: usize,
    /// The number of operations, from that one on, that the kernel may mean: 1
    /// if it named one, more if it named only the message or refused the
    /// commit.
    pub span: usize,
    /// The cause, as errno.
    pub errno: i32,
    /// The kernel's message, if there is one.
    pub ext_ack: Option<String>,
    /// What the kernel lacks, if that is the cause.
    pub lacking: Option<Lacking>,
    /// Describes the operation, its owner, and the cause, in one sentence.
    pub description: String,
}

impl Refusal {
    pub(super) fn new(
        operations: &[Operation],
        operation: usize,
        span: usize,
        errno: i32,
        ext_ack: Option<String>,
        lacking: Option<Lacking>,
    ) -> Self {
        let mut description = match operations.get(operation) {
            Some(refused) if span == 1 => Described(refused).to_string(),
            Some(first) => format!("one of {span} operations from '{}' on", Described(first)),
            None => "the batch".to_owned(),
        };
        let reason = io::Error::from_raw_os_error(errno).to_string();
        // "File exists (os error 17)"
        let reason = reason.split(" (os error").next().unwrap_or_default();
        description.push_str(": ");
        description.push_str(reason);
        if let Some(text) = &ext_ack {
            description.push_str(&format!(" ({text})"));
        }
        if let Some(lacking) = &lacking {
            description.push_str(&format!(": the kernel lacks {lacking}"));
        }
        Self { operation, span, errno, ext_ack, lacking, description }
    }
}

/// The most refused operations that an error lists.
const LISTED: usize = 4;

fn list(failures: &[Refusal]) -> String {
    let mut texts: Vec<&str> = failures.iter().map(|failure| failure.description.as_str()).collect();
    // One missing expression concerns every rule of a chain.
    texts.dedup();
    let more = texts.len().saturating_sub(LISTED);
    texts.truncate(LISTED);
    let listed = texts.join("; ");
    if more == 0 { listed } else { format!("{listed}; and {more} more") }
}

/// An operation in words, close to nft's.
struct Described<'a>(&'a Operation);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.action {
            Action::AddTable => write!(f, "add table")?,
            Action::AddMap(map) => write!(f, "add map {map}")?,
            Action::AddChain(chain) => write!(f, "add chain {chain}")?,
            Action::FlushChain(chain) => write!(f, "flush chain {chain}")?,
            Action::AddRule(chain, _) => write!(f, "add rule to {chain}")?,
            Action::DeleteChain(chain) => write!(f, "delete chain {chain}")?,
            Action::DeleteMap(map) => write!(f, "delete map {map}")?,
            Action::AddElement(one) => write!(f, "add element {} {}", one.map, render::element(one))?,
            Action::DeleteElement(one) => write!(f, "delete element {} {}", one.map, render::element(one))?,
        }
        match &self.0.owner {
            Some(owner) => write!(f, " for Service {owner}"),
            None => write!(f, " ({})", self.0.family),
        }
    }
}
