//! Errors while a lab is built or used.

use std::io;
use std::net::IpAddr;

/// An error of the lab itself. A packet that gets no answer is no error but a
/// [`ProbeResult`](crate::ProbeResult).
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process may not create namespaces: it is neither root nor allowed unprivileged user namespaces.
    #[error(
        "not allowed to create namespaces ({source}): run as root, or allow unprivileged user namespaces \
         (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)"
    )]
    NotPermitted {
        /// The kernel's error.
        source: io::Error,
    },
    /// A system call failed. `call` names it and its object.
    #[error("{call}: {source}")]
    Syscall {
        /// The call and its object, for a human reader.
        call: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refused a link, address, route, neighbour or routing rule.
    #[error("{what}: {source}")]
    Netlink {
        /// The object that was refused.
        what: String,
        /// The refusal.
        source: nlink::Error,
    },
    /// No host of that name was attached.
    #[error("the lab has no host named {0}")]
    UnknownHost(String),
    /// No namespace of the lab has this address.
    #[error("no namespace of the lab has the address {0}")]
    UnknownAddress(IpAddr),
    /// A server that every lab has does not answer, so that silence means nothing.
    #[error(
        "{target} does not answer {from}, not even on its control port: silence cannot be distinguished from slowness"
    )]
    Unsettled {
        /// The sender of the probe.
        from: IpAddr,
        /// The target of the probe.
        target: IpAddr,
    },
    /// The same address was given to two namespaces.
    #[error("the address {0} was given to two namespaces of the lab")]
    DuplicateAddress(IpAddr),
}

impl LabError {
    /// Wraps the error of a system call.
    pub(crate) fn syscall(call: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let call = call.into();
        move |source| Self::Syscall { call, source }
    }

    /// Wraps an error number from `nix`.
    pub(crate) fn errno(call: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let call = call.into();
        move |errno| Self::Syscall { call, source: errno.into() }
    }

    /// Wraps a refusal over route netlink.
    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(nlink::Error) -> Self {
        let what = what.into();
        move |source| Self::Netlink { what, source }
    }
}
