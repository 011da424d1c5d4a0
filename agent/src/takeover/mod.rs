//! Removes the leftovers of kube-proxy in any of its modes, once the rules of
//! vmap-proxy serve.
//!
//! kube-proxy leaves its rules in place when it ends, and they come before
//! those of vmap-proxy. This module uses sockets of the kernel only, because an
//! image `FROM scratch` has none of the programs that kube-proxy calls:
//!
//! * [`names`]: the objects of kube-proxy, as opposed to those of the kubelet or others;
//! * [`nf_tables`]: the nftables mode, and the iptables mode where iptables
//!   writes to nf_tables;
//! * [`iptables_legacy`]: the iptables mode where it does not;
//! * [`ipvs`]: the other leftovers of the ipvs mode.
//!
//! Established connections go on: conntrack holds their translation, and it is
//! not touched. (Those that IPVS forwards end with their virtual server.)

mod iptables_legacy;
mod ipvs;
pub(crate) mod names;
mod nf_tables;

use std::io;

use thiserror::Error;

use crate::netlink::socket::Socket;

/// An object of kube-proxy's that could not be removed.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub struct Leftover {
    /// The kind and place of the object.
    pub what: String,
    /// The reason why it could not be removed or searched for.
    pub source: io::Error,
}

/// The leftovers that were found, and the results. If both lists are empty,
/// kube-proxy left nothing.
#[derive(Debug, Default)]
pub struct Removals {
    /// The removed objects.
    pub removed: Vec<String>,
    /// The objects that could not be removed.
    pub failed: Vec<Leftover>,
}

impl Removals {
    /// Logs the report, one line for each object.
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

    fn failed(&mut self, what: impl Into<String>, source: impl Into<io::Error>) {
        self.failed.push(Leftover { what: what.into(), source: source.into() });
    }

    /// Records the result of a removal; `absent` is the errno for an object
    /// that did not exist.
    fn note(&mut self, what: impl Into<String>, outcome: io::Result<()>, absent: i32) {
        match outcome {
            Ok(()) => self.removed(what.into()),
            Err(error) if error.raw_os_error() == Some(absent) => {}
            Err(error) => self.failed(what, error),
        }
    }
}

/// Removes the leftovers of kube-proxy in the network namespace of the calling
/// thread: rules and chains of all its modes, its device, virtual servers and
/// ipsets. It blocks until the kernel has finished; a failure does not stop the
/// rest.
///
/// Call it once the rules of vmap-proxy are in place: until then kube-proxy's
/// serve.
pub fn remove_kube_proxy() -> Removals {
    let mut report = Removals::default();
    match Socket::open_for_batches() {
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
