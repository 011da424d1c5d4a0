//! Ends a process with SIGKILL just before one of its system calls `sendto` and `recvfrom`, by which the agent speaks to
//! the kernel: in front of a batch, between a batch and its acknowledgement, in the middle of a listing.
//!
//! A seccomp filter reports each of these calls to the test, which lets it go on or kills the process. So the program is
//! the one that is shipped, without a feature, a variable or a trait that serves tests, and every point can be reached by
//! its number. `strace --inject` does the same, but need not be installed; a filter works for all threads.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The number under which the process holds the filter's listener until the test has it.
const LISTENER: libc::c_int = 1000;

/// Reports all calls of a command, from its start on, to [`CallWatch::begin`], which must follow: until then the first
/// call waits.
pub fn report_calls(command: &mut Command) {
    // SAFETY: between fork and exec only system calls are made, and no memory is allocated.
    unsafe { command.pre_exec(install_filter) };
}

fn install_filter() -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        // `nr` is the first field of `struct seccomp_data`.
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_EQUAL, 2, 0, libc::SYS_sendto as u32),
        step(JUMP_EQUAL, 1, 0, libc::SYS_recvfrom as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until then; the other calls take integers alone.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let listener = libc::syscall(libc::SYS_seccomp, mode, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
        // The copy is not closed by exec, even if it is the original.
        if listener < 0
            || libc::dup2(listener as libc::c_int, LISTENER) < 0
            || libc::fcntl(LISTENER, libc::F_SETFD, 0) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A thread that counts the calls of a process, and kills it at one of them.
#[derive(Debug)]
pub struct CallWatch {
    thread: JoinHandle<io::Result<()>>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// The calls so far.
    calls: AtomicU32,
    /// The number of the call at which the process is killed.
    fatal: AtomicU32,
}

impl CallWatch {
    /// Begins to let the calls of a process go on.
    ///
    /// # Errors
    ///
    /// If the process has ended, or the kernel has no `pidfd_getfd` (before 5.6).
    pub fn begin(process: u32) -> io::Result<Self> {
        Self::begin_with(process, u32::MAX)
    }

    /// The same; the process is killed in front of the call of this number, from 1 on.
    ///
    /// # Errors
    ///
    /// As [`Self::begin`].
    pub fn begin_with(process: u32, fatal: u32) -> io::Result<Self> {
        let listener = listener_of(process)?;
        let state = Arc::new(State { calls: AtomicU32::new(0), fatal: AtomicU32::new(fatal) });
        let (thread, watched) = (std::thread::Builder::new().name("crash".to_owned()), state.clone());
        Ok(Self { thread: thread.spawn(move || watch(&listener, process, &watched))?, state })
    }

    /// The number of calls so far.
    pub fn calls(&self) -> u32 {
        self.state.calls.load(Ordering::Acquire)
    }

    /// Has the process killed in front of the call of this number, counted from now on, from 1.
    pub fn kill_in(&self, calls: u32) {
        self.state.fatal.store(self.calls().saturating_add(calls), Ordering::Release);
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    ///
    /// If the kernel refused to report calls.
    pub fn end(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn listener_of(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: both calls take integers alone, and return a new descriptor or an error.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        let descriptor = OwnedFd::from_raw_fd(descriptor as libc::c_int);
        let listener = libc::syscall(libc::SYS_pidfd_getfd, descriptor.as_raw_fd(), LISTENER, 0);
        if listener < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(listener as libc::c_int))
    }
}

fn watch(listener: &OwnedFd, process: u32, state: &State) -> io::Result<()> {
    while let Some(id) = next_call(listener)? {
        let number = state.calls.fetch_add(1, Ordering::AcqRel) + 1;
        if number >= state.fatal.load(Ordering::Acquire) {
            kill(Pid::from_raw(process as i32), Signal::SIGKILL)?;
            continue;
        }
        // SAFETY: a plain structure of integers, which the kernel only reads.
        let outcome = unsafe {
            let mut go_on: libc::seccomp_notif_resp = std::mem::zeroed();
            go_on.id = id;
            go_on.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
            Errno::result(libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &mut go_on))
        };
        match outcome {
            // A signal has ended the call.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Waits for the next call; `None` when the process has ended.
fn next_call(listener: &OwnedFd) -> io::Result<Option<u64>> {
    loop {
        let mut polled = [PollFd::new(std::os::fd::AsFd::as_fd(listener), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let events = polled[0].revents().unwrap_or(PollFlags::empty());
        if !events.contains(PollFlags::POLLIN) {
            return Ok(None);
        }
        // SAFETY: the kernel demands a zeroed structure of this size, and writes integers into it.
        let (outcome, id) = unsafe {
            let mut call: libc::seccomp_notif = std::mem::zeroed();
            (Errno::result(libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call)), call.id)
        };
        match outcome {
            Ok(_) => return Ok(Some(id)),
            // The caller is gone already.
            Err(Errno::ENOENT | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
