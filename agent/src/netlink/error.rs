//! What can go wrong between us and the kernel, and what to do about it.

use std::fmt;

use thiserror::Error;
use vmap_proxy_compiler::plan::{Action, Operation};
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, Verdict};
use vmap_proxy_compiler::ruleset::target::{FrontendKey, Target};

/// Talking to the kernel failed as such.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel has no nf_tables.
    #[error(
        "the kernel has no nf_tables ({0}): load the module nf_tables, or boot a kernel with \
         CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4 and CONFIG_NF_TABLES_IPV6"
    )]
    NoNfTables(String),
    /// We may not change the rule set of this network namespace.
    #[error(
        "not permitted to change nftables in this network namespace: run as root with the capability \
         NET_ADMIN (in a pod: securityContext.capabilities.add, or privileged)"
    )]
    Permission,
    /// The socket itself failed.
    #[error("netlink: {0}")]
    Socket(#[from] nlink::Error),
    /// A system call on the socket failed.
    #[error("netlink: {call}: {source}")]
    System {
        /// Which one.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused a question.
    #[error("netlink: {question}: {}", std::io::Error::from_raw_os_error(*errno))]
    Question {
        /// What was asked.
        question: String,
        /// The kernel's answer, an errno.
        errno: i32,
    },
    /// The batch is larger than the socket may send at once.
    #[error("a batch of {bytes} bytes does not fit the socket's send buffer of {limit} bytes: submit less at once")]
    BatchTooLarge {
        /// The size of the batch.
        bytes: usize,
        /// What fits.
        limit: usize,
    },
    /// The kernel did not say whether a batch was committed: what it said was
    /// lost (`ENOBUFS`). Read the table back.
    #[error("the kernel's answer to a batch was lost: read the table back before going on")]
    AnswerLost,
    /// The agent is to end: [`super::StopFlag`].
    #[error("stopped before it was done; what was committed stays")]
    Stopped,
    /// The rule set kept changing while it was listed.
    #[error("the rule set changed {attempts} times while it was listed")]
    Interrupted {
        /// How often we tried.
        attempts: u32,
    },
}

impl NetlinkError {
    /// Whether trying again can't help: somebody has to change something first.
    pub fn is_permanent(&self) -> bool {
        matches!(self, NetlinkError::NoNfTables(_) | NetlinkError::Permission)
    }

    /// From the errno the kernel answered a question with.
    pub(super) fn from_errno(question: impl Into<String>, errno: i32) -> Self {
        match errno {
            libc::EPERM | libc::EACCES => NetlinkError::Permission,
            // nfnetlink answers EINVAL for a subsystem it does not know.
            libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => {
                NetlinkError::NoNfTables(std::io::Error::from_raw_os_error(errno).to_string())
            }
            _ => NetlinkError::Question { question: question.into(), errno },
        }
    }
}

/// A transaction was not committed: the kernel holds what it held before.
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
    /// ([`NetlinkError::AnswerLost`]).
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// One operation that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its index in the transaction's `operations`.
    pub operation: usize,
    /// How many operations, from that one on, the kernel may mean: 1 if it
    /// named one, more if it named only the message or refused the commit.
    pub span: usize,
    /// Why, as errno.
    pub errno: i32,
    /// Why, in the kernel's words, if it has any.
    pub ext_ack: Option<String>,
    /// The operation, for whom, and why, in one sentence.
    pub description: String,
}

impl Refusal {
    pub(super) fn new(
        operations: &[Operation],
        operation: usize,
        span: usize,
        errno: i32,
        ext_ack: Option<String>,
    ) -> Self {
        let mut description = match operations.get(operation) {
            Some(refused) if span == 1 => Described(refused).to_string(),
            Some(first) => format!("one of {span} operations from '{}' on", Described(first)),
            None => "the batch".to_owned(),
        };
        let reason = std::io::Error::from_raw_os_error(errno).to_string();
        // "File exists (os error 17)"
        let reason = reason.split(" (os error").next().unwrap_or_default();
        description.push_str(": ");
        description.push_str(reason);
        if let Some(text) = &ext_ack {
            description.push_str(&format!(" ({text})"));
        }
        Self { operation, span, errno, ext_ack, description }
    }
}

fn list(failures: &[Refusal]) -> String {
    let texts: Vec<&str> = failures.iter().map(|failure| failure.description.as_str()).collect();
    texts.join("; ")
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
            Action::AddElement(element) => write!(f, "add element {}", DescribedElement(element))?,
            Action::DeleteElement(element) => write!(f, "delete element {}", DescribedElement(element))?,
        }
        match &self.0.owner {
            Some(owner) => write!(f, " for Service {owner}"),
            None => write!(f, " ({})", self.0.family),
        }
    }
}

struct DescribedElement<'a>(&'a Element);

impl fmt::Display for DescribedElement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frontend = |key: &FrontendKey| format!("{} . {} . {}", key.address, key.protocol.keyword(), key.port);
        let target = |target: &Target| match target {
            Target::Frontend(key) => frontend(key),
            Target::NodePort(key) => format!("{} . {}", key.protocol.keyword(), key.port),
        };
        write!(f, "{} ", self.0.map)?;
        match &self.0.key {
            Key::Address(address) => write!(f, "{address}")?,
            Key::Prefix(net) => write!(f, "{net}")?,
            Key::Target(key) => f.write_str(&target(key))?,
            Key::Slot(key, slot) => write!(f, "{} . {slot}", target(key))?,
            Key::Hairpin(endpoint, protocol) => {
                let address = endpoint.address;
                write!(f, "{address} . {address} . {} . {}", protocol.keyword(), endpoint.port)?;
            }
            Key::SourceRange(key, net) => write!(f, "{} . {net}", frontend(key))?,
            Key::Affinity(client, number) => write!(f, "{client} . {:#010x}", number.priority())?,
            Key::List(number) => write!(f, "{:#010x}", number.priority())?,
        }
        match &self.0.data {
            Data::Nothing => Ok(()),
            Data::Verdict(Verdict::Goto(chain)) => write!(f, " : goto {chain}"),
            Data::Verdict(Verdict::Drop) => write!(f, " : drop"),
            Data::Endpoint(endpoint) => write!(f, " : {} . {}", endpoint.address, endpoint.port),
            Data::List(number) => write!(f, " : {:#010x}", number.priority()),
        }
    }
}
