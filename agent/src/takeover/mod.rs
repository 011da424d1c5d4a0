//! Removes what kube-proxy left behind, whichever mode it ran in, once our own
//! rules serve.
//!
//! kube-proxy leaves its rules in place when it ends, and they are asked
//! before ours. Everything here goes straight to the kernel, since an image
//! `FROM scratch` has none of the programs that kube-proxy calls:
//!
//! * [`names`]: what is kube-proxy's, and what the kubelet's or somebody else's;
//! * [`nf_tables`]: the nftables mode, and the iptables mode where iptables
//!   writes to nf_tables;
//! * [`iptables_legacy`]: the iptables mode where it does not;
//! * [`ipvs`]: what the ipvs mode has besides.
//!
//! Established connections live on: conntrack holds their translation, and it
//! is not touched. (Those that IPVS forwards end with their virtual server.)

mod iptables_legacy;
mod ipvs;
mod legacy_table;
mod names;
mod nf_tables;
mod socket;

use std::fmt;
use std::io;

use thiserror::Error;

use socket::Socket;

/// Something of kube-proxy's that could not be removed.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub struct Leftover {
    /// What it is, and where.
    pub what: String,
    /// Why it could not be removed, or not even be looked for.
    pub source: io::Error,
}

/// What was found, and what became of it. Nothing of either: kube-proxy left
/// nothing.
#[derive(Debug, Default)]
pub struct Report {
    /// What was removed.
    pub removed: Vec<String>,
    /// What was not.
    pub failed: Vec<Leftover>,
}

impl Report {
    /// Logs it, a line for each thing.
    pub fn log(&self) {
        for what in &self.removed {
            tracing::info!("kube-proxy's {what}: removed");
        }
        for leftover in &self.failed {
            tracing::error!("kube-proxy's {leftover}; `kube-proxy --cleanup`, from kube-proxy's image, may remove it");
        }
        if self.removed.is_empty() && self.failed.is_empty() {
            tracing::info!("kube-proxy left nothing to remove");
        }
    }

    fn removed(&mut self, what: String) {
        self.removed.push(what);
    }

    fn failed(&mut self, what: impl Into<String>, source: io::Error) {
        self.failed.push(Leftover { what: what.into(), source });
    }

    /// Notes how a removal ended; `absent` is the errno of what was not there.
    fn note(&mut self, what: impl Into<String>, outcome: io::Result<()>, absent: i32) {
        match outcome {
            Ok(()) => self.removed(what.into()),
            Err(error) if error.raw_os_error() == Some(absent) => {}
            Err(error) => self.failed(what, error),
        }
    }
}

/// Removes what kube-proxy left in the network namespace of the calling
/// thread: rules and chains of all its modes, its device, virtual servers and
/// ipsets. Waits for the kernel meanwhile; what fails does not stop the rest.
///
/// Call it once our own rules are there: until then kube-proxy's serve.
pub fn remove_kube_proxy() -> Report {
    let mut report = Report::default();
    match Socket::open(libc::NETLINK_NETFILTER) {
        Ok(mut socket) => {
            nf_tables::remove_tables(&mut socket, &mut report);
            nf_tables::remove_chains(&mut socket, &mut report);
            iptables_legacy::remove_chains(&mut report);
            ipvs::remove_servers_and_device(&mut report);
            // Last: rules refer to them.
            ipvs::remove_ipsets(&mut socket, &mut report);
        }
        Err(error) => report.failed("rules", error),
    }
    report
}

/// An address family, for all that is done twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IpFamily {
    V4,
    V6,
}

const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

impl IpFamily {
    /// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
    fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        })
    }
}
