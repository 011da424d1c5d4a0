//! Packets on their way through the hooks.

use std::io;

/// `MEMBARRIER_CMD_GLOBAL` of `include/uapi/linux/membarrier.h`.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits until every packet that is now on its way through a netfilter hook has
/// left it.
///
/// The kernel runs through the chains of one hook under its RCU read lock
/// (`nf_hook` in `include/linux/netfilter.h`), and this system call waits for a
/// grace period (`kernel/sched/membarrier.c`), some milliseconds. A kernel that
/// does not offer it (`nohz_full`) is not waited for: then only a packet that
/// sleeps in a hook for as long as several commits take is missed.
pub fn await_packets() {
    // SAFETY: the system call takes three integers, and touches no memory of ours.
    let outcome = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if outcome != 0 {
        tracing::debug!("the kernel offers no wait for packets in its hooks: {}", io::Error::last_os_error());
    }
}
