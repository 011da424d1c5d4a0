//! The flow table of established connections: made, its interfaces followed, and
//! its flows released. [`vmap_proxy_wire::nf_tables::flow_table`] has the table.
//!
//! Kernels before Linux 6.16 take an interface that exists and forget it when it
//! goes; newer ones keep its name. Interfaces come and go between a listing and a
//! request, so a request that the kernel refuses is repeated one interface at a
//! time.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::Notify;
use vmap_proxy_wire::message::Request;
use vmap_proxy_wire::nf_tables::flow_table::{
    INTERFACES_AT_ONCE, add_interfaces, delete_table, make_flow_table, make_rule, make_table, remove_interfaces,
};

use super::SideTables;
use super::error::SocketError;

/// Interfaces by their index.
pub type InterfaceNames = BTreeMap<u32, String>;

/// The reason why there is no flow table.
#[derive(Debug, Error)]
pub enum FlowTableError {
    /// The kernel lacks something.
    #[error("this kernel lacks {needs}: {}", io::Error::from_raw_os_error(*errno))]
    Unsupported {
        /// The options and modules, or the version.
        needs: &'static str,
        /// The kernel's answer.
        errno: i32,
    },
    /// The socket failed, or the kernel refused for another reason.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// The flow table of this process. The kernel deletes it with this; its flows go
/// on by the ordinary way, by connection tracking.
#[derive(Debug)]
pub struct FlowTable {
    tables: SideTables,
    after_packets: u32,
    /// The interfaces in it. Kernels before 6.16 have forgotten those that went.
    members: InterfaceNames,
}

/// The results of [`FlowTable::follow`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Interfaces that were added.
    pub added: usize,
    /// Interfaces that were removed, or have gone.
    pub removed: usize,
    /// Interfaces that the kernel refuses, and why.
    pub refused: Vec<(String, i32)>,
}

impl FlowTable {
    /// Makes it, without interfaces, in the network namespace of the calling
    /// thread. Connections get into it after this number of packets.
    ///
    /// # Errors
    /// If the kernel can't have one, or the socket fails.
    pub fn make(after_packets: u32) -> Result<Self, FlowTableError> {
        let mut table = Self { tables: SideTables::open()?, after_packets, members: BTreeMap::new() };
        // One that somebody else made. Another agent's can't be deleted, and then ours is refused.
        match table.tables.remove(&[delete_table()]) {
            Ok(()) | Err(SocketError::Refused(libc::ENOENT | libc::EPERM)) => {}
            Err(error) => return Err(error.into()),
        }
        table.build()?;
        Ok(table)
    }

    /// Piece by piece, so that a refusal shows what the kernel lacks.
    fn build(&mut self) -> Result<(), FlowTableError> {
        let pieces: [(&'static str, &[Request]); 3] = [
            ("tables of family inet with an owner (CONFIG_NF_TABLES_INET, Linux 5.12)", &[make_table()]),
            (
                "flow tables (CONFIG_NF_FLOW_TABLE and CONFIG_NF_FLOW_TABLE_INET, modules nf_flow_table and \
                 nf_flow_table_inet)",
                &[make_flow_table()],
            ),
            (
                "the statement flow add (CONFIG_NFT_FLOW_OFFLOAD, module nft_flow_offload)",
                &make_rule(self.after_packets),
            ),
        ];
        for (needs, requests) in pieces {
            self.tables.submit(requests).map_err(|error| match error {
                SocketError::Refused(errno @ (libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EINVAL)) => {
                    FlowTableError::Unsupported { needs, errno }
                }
                other => other.into(),
            })?;
        }
        Ok(())
    }

    /// Makes its members those of the present interfaces that are wanted.
    ///
    /// # Errors
    /// If the socket fails. A single interface is refused in the result.
    pub fn follow(
        &mut self,
        present: &InterfaceNames,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Followed, FlowTableError> {
        let change = Change::of(&self.members, present, is_wanted);
        // What has gone is refused by kernels that have forgotten it.
        self.submit(&change.removed, |names| remove_interfaces(names.iter().copied()))?;
        let refused = self.submit(&change.added, |names| add_interfaces(names.iter().copied()))?;
        let (added, removed) = (change.added.len(), change.removed.len());
        // Refused ones, too, so that they are not tried again until they change.
        self.members = change.wanted;
        Ok(Followed { added, removed, refused })
    }

    /// The number of interfaces in it.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Has every flow leave it: the next packet of each goes through all rules,
    /// and may get its connection into it again. Its interfaces have to be added
    /// again.
    ///
    /// # Errors
    /// As [`Self::make`]; then there is no flow table.
    pub fn release(&mut self) -> Result<(), FlowTableError> {
        self.members.clear();
        self.tables.remove(&[delete_table()])?;
        self.build()
    }

    /// Carries requests out, some interfaces at a time. Returns those that the
    /// kernel refused, but for those that do not exist.
    fn submit(
        &mut self,
        names: &[String],
        request: impl Fn(&[&str]) -> Request,
    ) -> Result<Vec<(String, i32)>, SocketError> {
        let mut refused = Vec::new();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for some in names.chunks(INTERFACES_AT_ONCE) {
            // One transaction each, so that others wait for no more than this.
            match self.tables.submit(&[request(some)]) {
                Err(SocketError::Refused(_)) => {}
                done => {
                    done?;
                    continue;
                }
            }
            for name in some {
                match self.tables.submit(&[request(&[name])]) {
                    Ok(()) | Err(SocketError::Refused(libc::ENOENT)) => {}
                    Err(SocketError::Refused(errno)) => refused.push(((*name).to_owned(), errno)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(refused)
    }
}

/// The difference between the members and the wanted interfaces.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    removed: Vec<String>,
    added: Vec<String>,
    wanted: InterfaceNames,
}

impl Change {
    fn of(members: &InterfaceNames, present: &InterfaceNames, is_wanted: impl Fn(&str) -> bool) -> Self {
        let wanted: InterfaceNames =
            present.iter().filter(|(_, name)| is_wanted(name)).map(|(index, name)| (*index, name.clone())).collect();
        let mut removed = Vec::new();
        for (index, name) in members.iter().filter(|(index, name)| wanted.get(index) != Some(name)) {
            removed.push(name.clone());
            // Renamed: older kernels follow the interface, newer ones the name.
            removed.extend(present.get(index).filter(|now| *now != name && !is_wanted(now)).cloned());
        }
        let is_new = |(index, name): &(&u32, &String)| members.get(index) != Some(name);
        let added = wanted.iter().filter(is_new).map(|(_, name)| name.clone()).collect();
        Self { removed, added, wanted }
    }
}

/// Asks the holder of the flow table to [release](FlowTable::release) its flows.
#[derive(Debug, Clone, Default)]
pub struct FlowRelease(Arc<Notify>);

impl FlowRelease {
    /// Asks for it; several requests may be answered by one release.
    pub fn request(&self) {
        self.0.notify_one();
    }

    /// Waits for a request.
    pub async fn requested(&self) {
        self.0.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[(u32, &str)]) -> InterfaceNames {
        all.iter().map(|(index, name)| (*index, (*name).to_owned())).collect()
    }

    /// The removed and the added names.
    fn change(members: &[(u32, &str)], present: &[(u32, &str)]) -> (Vec<String>, Vec<String>) {
        let change = Change::of(&names(members), &names(present), |name| name.starts_with("veth"));
        (change.removed, change.added)
    }

    fn expected(removed: &[&str], added: &[&str]) -> (Vec<String>, Vec<String>) {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        (owned(removed), owned(added))
    }

    #[test]
    fn interfaces_come_and_go() {
        assert_eq!(change(&[], &[(1, "lo"), (2, "veth1"), (3, "eth0")]), expected(&[], &["veth1"]));
        assert_eq!(change(&[(2, "veth1")], &[(2, "veth1"), (4, "veth2")]), expected(&[], &["veth2"]));
        assert_eq!(change(&[(2, "veth1"), (4, "veth2")], &[(4, "veth2")]), expected(&["veth1"], &[]));
        assert_eq!(change(&[(2, "veth1")], &[(2, "veth1")]), expected(&[], &[]));
    }

    #[test]
    fn an_interface_made_again_under_the_same_name_is_added_again() {
        assert_eq!(change(&[(2, "veth1")], &[(7, "veth1")]), expected(&["veth1"], &["veth1"]));
    }

    #[test]
    fn renamed_interfaces_are_followed_by_index_and_by_name() {
        // Kernels before 6.16 still have it, under its new name.
        assert_eq!(change(&[(2, "veth1")], &[(2, "eth7")]), expected(&["veth1", "eth7"], &[]));
        assert_eq!(change(&[(2, "veth1")], &[(2, "veth9")]), expected(&["veth1"], &["veth9"]));
        // Two swap their names.
        let swapped = change(&[(2, "veth1"), (3, "veth2")], &[(2, "veth2"), (3, "veth1")]);
        assert_eq!(swapped, expected(&["veth1", "veth2"], &["veth2", "veth1"]));
    }
}
