//! Ends a process with SIGKILL just before one of its [calls](crate::calls) to the kernel: in front of a batch, between a
//! batch and its acknowledgement, in the middle of a listing. Every such point can be reached by its number.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls::{Reply, Watched};

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
        let calls = Watched::new(process)?;
        let state = Arc::new(State { calls: AtomicU32::new(0), fatal: AtomicU32::new(fatal) });
        let (thread, watched) = (std::thread::Builder::new().name("crash".to_owned()), state.clone());
        Ok(Self { thread: thread.spawn(move || watch(&calls, process, &watched))?, state })
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

fn watch(calls: &Watched, process: u32, state: &State) -> io::Result<()> {
    while let Some(call) = calls.next_call()? {
        let number = state.calls.fetch_add(1, Ordering::AcqRel) + 1;
        if number >= state.fatal.load(Ordering::Acquire) {
            kill(Pid::from_raw(process as i32), Signal::SIGKILL)?;
        } else {
            calls.reply(&call, Reply::GoOn)?;
        }
    }
    Ok(())
}
