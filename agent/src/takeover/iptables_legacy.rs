//! kube-proxy's chains in legacy iptables. The kernel reads and writes such a
//! table only as a whole, by socket options.
//!
//! Only existing tables are read, because reading another one would create it.

use std::fs::{self, File};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::words::count;
use vmap_proxy_wire::legacy_table::{LegacyTable, Reduced};

use super::Removals;
use super::names::{IPTABLES_TABLES, is_proxy_chain};

/// `IPT_SO_SET_REPLACE`, `IP6T_SO_SET_REPLACE`; also `..._GET_INFO`.
const REPLACE: libc::c_int = 64;
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_SET_ADD_COUNTERS`; also `..._GET_ENTRIES`.
const ADD_COUNTERS: libc::c_int = 65;
const GET_ENTRIES: libc::c_int = 65;

/// `XT_TABLE_MAXNAMELEN`
const TABLE_NAME: usize = 32;
/// `sizeof(struct ipt_getinfo)`
const INFO: usize = 84;
/// The offset of `entrytable` in `struct ipt_get_entries`, and of `counters` in
/// `struct xt_counters_info`.
const ENTRIES_HEADER: usize = 40;

/// The lock file that iptables holds during every change.
const LOCK_FILE: &str = "/run/xtables.lock";
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Number of attempts if another program changes the table.
const ATTEMPTS: u32 = 5;

/// `struct xt_counters`: packets and bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    packets: u64,
    bytes: u64,
}

/// Removes the chains and the rules that jump to them.
pub(super) fn remove_chains(report: &mut Removals) {
    for family in Family::ALL {
        let ip = family.keyword();
        let existing = match existing_tables(family) {
            Ok(existing) => existing,
            Err(error) => {
                report.failed(format!("chains of {ip} (legacy iptables)"), error);
                continue;
            }
        };
        for table in IPTABLES_TABLES.into_iter().filter(|table| existing.lines().any(|line| line == *table)) {
            match remove_chains_of(family, table) {
                Ok(0) => {}
                Ok(chains) => report.removed(format!("{} of {ip} {table} (legacy iptables)", count(chains, "chain"))),
                Err(error) => report.failed(format!("chains of {ip} {table} (legacy iptables)"), error),
            }
        }
    }
}

/// Lists the tables of this network namespace, one per line; empty if the
/// kernel has no legacy iptables.
fn existing_tables(family: Family) -> io::Result<String> {
    let file = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

fn remove_chains_of(family: Family, name: &str) -> io::Result<usize> {
    let _lock = lock()?;
    let table = TableSocket::open(family, name)?;
    for _ in 1..ATTEMPTS {
        match remove_once(&table) {
            // The number of rules differs from the one that was read.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
    remove_once(&table)
}

fn remove_once(socket: &TableSocket) -> io::Result<usize> {
    let table = socket.read()?;
    let Some(reduced) = table.without(socket.family, is_proxy_chain) else { return Ok(0) };
    let before = socket.replace(&reduced, table.count)?;
    let counters: Vec<Counters> =
        reduced.kept.iter().map(|index| before.get(*index).copied().unwrap_or_default()).collect();
    // The new table counts from zero, which does not make this a failure.
    if let Err(error) = socket.add_counters(&counters) {
        tracing::warn!(
            "counters of the {} table {} (legacy iptables) were lost: {error}",
            socket.family.keyword(),
            socket.name
        );
    }
    Ok(reduced.chains)
}

/// Takes the lock of iptables, if the file exists. In a container without that
/// mount, only the kernel's own check protects the table.
fn lock() -> io::Result<Option<Flock<File>>> {
    let Ok(mut file) = File::open(LOCK_FILE) else { return Ok(None) };
    let begun = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(errno.into()),
        };
        if begun.elapsed() > LOCK_PATIENCE {
            return Err(io::Error::other(format!("another program holds {LOCK_FILE}")));
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// One table, as socket options see it.
struct TableSocket {
    family: Family,
    name: String,
    socket: UdpSocket,
}

impl TableSocket {
    fn open(family: Family, name: &str) -> io::Result<Self> {
        // Any socket of the family takes these options; unbound and never used otherwise.
        let socket = match family {
            Family::Ipv4 => socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?,
            Family::Ipv6 => socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?,
        };
        Ok(Self { family, name: name.to_owned(), socket: socket.into() })
    }

    fn named(&self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size.max(TABLE_NAME)];
        bytes[..self.name.len()].copy_from_slice(self.name.as_bytes());
        bytes
    }

    fn read(&self) -> io::Result<LegacyTable> {
        let mut info = self.named(INFO);
        self.get(GET_INFO, &mut info)?;
        let word = |index: usize| {
            let at = TABLE_NAME + 4 * index;
            info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        let hooks = |from: usize| std::array::from_fn(|hook| word(from + hook));
        let (count, size) = (word(11) as usize, word(12) as usize);
        let mut entries = self.named(ENTRIES_HEADER + size);
        entries[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&word(12).to_ne_bytes());
        self.get(GET_ENTRIES, &mut entries)?;
        entries.drain(..ENTRIES_HEADER);
        Ok(LegacyTable { entries, count, hook_entry: hooks(1), underflow: hooks(6), valid_hooks: word(0) })
    }

    /// Replaces the table; returns the counters of the `before` rules it had.
    fn replace(&self, reduced: &Reduced, before: usize) -> io::Result<Vec<Counters>> {
        let table = &reduced.table;
        let mut counters = vec![Counters::default(); before];
        // struct ipt_replace
        let mut message = self.named(TABLE_NAME);
        let words = [table.valid_hooks, table.count as u32, table.entries.len() as u32];
        for word in words.into_iter().chain(table.hook_entry).chain(table.underflow).chain([before as u32]) {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(&(counters.as_mut_ptr() as usize).to_ne_bytes());
        message.extend_from_slice(&table.entries);
        self.set(REPLACE, &message)?;
        Ok(counters)
    }

    fn add_counters(&self, counters: &[Counters]) -> io::Result<()> {
        let mut message = self.named(ENTRIES_HEADER);
        message[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&(counters.len() as u32).to_ne_bytes());
        for counter in counters {
            message.extend_from_slice(&counter.packets.to_ne_bytes());
            message.extend_from_slice(&counter.bytes.to_ne_bytes());
        }
        self.set(ADD_COUNTERS, &message)
    }

    fn level(&self) -> libc::c_int {
        match self.family {
            Family::Ipv4 => libc::IPPROTO_IP,
            Family::Ipv6 => libc::IPPROTO_IPV6,
        }
    }

    fn get(&self, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        let mut length = socket_length(buffer.len())?;
        let descriptor = self.socket.as_raw_fd();
        // SAFETY: the pointers are to `length` writable bytes and to that length, both alive during the call.
        let outcome =
            unsafe { libc::getsockopt(descriptor, self.level(), option, buffer.as_mut_ptr().cast(), &mut length) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn set(&self, option: libc::c_int, message: &[u8]) -> io::Result<()> {
        let length = socket_length(message.len())?;
        let descriptor = self.socket.as_raw_fd();
        // SAFETY: the pointer is to `length` readable bytes. The one pointer that a message carries, of a
        // replacement, is to the counters of [`Self::replace`], as many as it says, alive until it returns.
        let outcome = unsafe { libc::setsockopt(descriptor, self.level(), option, message.as_ptr().cast(), length) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn socket_length(length: usize) -> io::Result<libc::socklen_t> {
    // The kernel reads it as a signed integer.
    i32::try_from(length)
        .map(|length| length as libc::socklen_t)
        .map_err(|_| io::Error::other("the table is too large"))
}
