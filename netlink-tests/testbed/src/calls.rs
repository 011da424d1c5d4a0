//! Watches the system calls `sendto` and `recvfrom` of a process, by which the agent speaks to the kernel.
//!
//! A seccomp filter reports each of these calls to the test, which lets it go on, answers it instead of the kernel, or ends
//! the process. So the program is the one that is shipped, without a feature, a variable or a trait that serves tests.
//! `strace --inject` does a part of that, but need not be installed; a filter works for all threads.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The number under which the process holds the filter's listener until the test has it.
const LISTENER: libc::c_int = 1000;

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// The kernel's number for it.
    id: u64,
    /// The thread that made it.
    pub(crate) thread: libc::pid_t,
    /// Whether it is `sendto`, and not `recvfrom`.
    pub(crate) is_send: bool,
    /// Descriptor, buffer, length, flags, address, length of the address.
    pub(crate) arguments: [u64; 6],
}

/// The answer to a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    /// The kernel carries it out.
    GoOn,
    /// It returns this length.
    Return(usize),
    /// It fails with this errno.
    Fail(i32),
}

/// Reports all calls of a command, from its start on, to a watcher, which must follow: until then the first call waits.
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

/// A process, and the calls of it that are reported.
#[derive(Debug)]
pub(crate) struct Watched {
    process: OwnedFd,
    listener: OwnedFd,
}

impl Watched {
    /// # Errors
    ///
    /// If the process has ended, or the kernel has no `pidfd_getfd` (before 5.6).
    pub(crate) fn new(process: u32) -> io::Result<Self> {
        // SAFETY: takes integers alone, and returns a new descriptor or an error.
        let process = unsafe {
            let descriptor = libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(descriptor as libc::c_int)
        };
        let listener = copy_of(&process, LISTENER)?;
        Ok(Self { process, listener })
    }

    /// A copy of a descriptor of the process.
    pub(crate) fn descriptor(&self, number: libc::c_int) -> io::Result<OwnedFd> {
        copy_of(&self.process, number)
    }

    /// Waits for the next call; `None` when the process has ended.
    pub(crate) fn next_call(&self) -> io::Result<Option<Call>> {
        loop {
            let mut polled = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let events = polled[0].revents().unwrap_or(PollFlags::empty());
            if !events.contains(PollFlags::POLLIN) {
                return Ok(None);
            }
            // SAFETY: the kernel demands a zeroed structure of this size, and writes integers into it.
            let (outcome, call) = unsafe {
                let mut call: libc::seccomp_notif = std::mem::zeroed();
                let number = self.listener.as_raw_fd();
                (Errno::result(libc::ioctl(number, libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call)), call)
            };
            match outcome {
                Ok(_) => {
                    return Ok(Some(Call {
                        id: call.id,
                        thread: call.pid as libc::pid_t,
                        is_send: i64::from(call.data.nr) == libc::SYS_sendto,
                        arguments: call.data.args,
                    }));
                }
                // The caller is gone already.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Ends the wait of a call.
    pub(crate) fn reply(&self, call: &Call, reply: Reply) -> io::Result<()> {
        // SAFETY: a plain structure of integers, which the kernel only reads.
        let outcome = unsafe {
            let mut answer: libc::seccomp_notif_resp = std::mem::zeroed();
            answer.id = call.id;
            match reply {
                Reply::GoOn => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                Reply::Return(length) => answer.val = length as i64,
                Reply::Fail(errno) => answer.error = -errno,
            }
            Errno::result(libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &mut answer))
        };
        match outcome {
            // A signal has ended the call.
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Call {
    /// The descriptor that it is about.
    pub(crate) fn descriptor(&self) -> libc::c_int {
        self.arguments[0] as libc::c_int
    }

    /// The length of its buffer.
    pub(crate) fn length(&self) -> usize {
        self.arguments[2] as usize
    }

    /// Reads the buffer of the caller, which waits meanwhile.
    pub(crate) fn read_buffer(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length()];
        let ours = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let theirs = self.buffer(bytes.len());
        // SAFETY: one vector of ours, of memory that we own; the other is an address in another process.
        let read = unsafe { libc::process_vm_readv(self.thread, &ours, 1, &theirs, 1, 0) };
        bytes.truncate(usize::try_from(read).map_err(|_| io::Error::last_os_error())?);
        Ok(bytes)
    }

    /// Writes into the buffer of the caller, as much of `bytes` as it holds.
    pub(crate) fn write_buffer(&self, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len().min(self.length());
        let ours = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: length };
        let theirs = self.buffer(length);
        // SAFETY: our vector is only read; the other is an address in another process.
        let written = unsafe { libc::process_vm_writev(self.thread, &ours, 1, &theirs, 1, 0) };
        if usize::try_from(written).ok() == Some(length) { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn buffer(&self, length: usize) -> libc::iovec {
        libc::iovec { iov_base: self.arguments[1] as *mut libc::c_void, iov_len: length }
    }
}

fn copy_of(process: &OwnedFd, number: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes integers alone, and returns a new descriptor or an error.
    unsafe {
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0);
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(copy as libc::c_int))
    }
}
