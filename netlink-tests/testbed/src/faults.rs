//! A netlink that fails at random: calls that fail before or after the kernel did its work, requests and answers that are
//! lost, cut off, changed or repeated, refusals for a reason that passes, listings that are interrupted.
//!
//! The faults are made at the [calls](crate::calls) of the process under test, on its sockets to netfilter alone. What is
//! injected depends on the seed; which call meets it also on the timing of the threads.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use vmap_proxy_wire::message::{HEADER, Messages, NLM_F_DUMP_INTR, NLMSG_ERROR};
use vmap_proxy_wire::nf_tables::message_type;
use vmap_proxy_wire::uapi::{NFT_MSG_NEWSETELEM, NFTA_SET_ELEM_LIST_SET};

use crate::calls::{Call, Reply, Watched};
use crate::random::Random;

/// `struct nlmsghdr`: where the flags, and where the sequence number stand.
const FLAGS: usize = 6;
const SEQUENCE: usize = 8;

/// What a call may fail with. The last is the kernel's own code for a call to be restarted, which should never be seen.
const ERRORS: [i32; 8] =
    [libc::EINTR, libc::ENOBUFS, libc::ENOMEM, libc::EPERM, libc::EMSGSIZE, libc::EAGAIN, libc::ECONNREFUSED, 512];

/// What the kernel may refuse a request with, although nothing is wrong with it.
const REFUSALS: [i32; 5] = [libc::ENOMEM, libc::EINTR, libc::EAGAIN, libc::ENOBUFS, libc::EPERM];

/// What a socket that waits for notifications may fail with.
const NEWS_ERRORS: [i32; 3] = [libc::ENOBUFS, libc::EINTR, libc::ENOMEM];

/// Which faults are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// An answer that arrives is one that the kernel gives.
    Honest,
    /// The same, and answers that are cut off or changed.
    All,
}

/// A thread that answers calls of a process instead of the kernel.
#[derive(Debug)]
pub struct FaultyNetlink {
    thread: JoinHandle<io::Result<()>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// One of this number of calls is faulty; 0: none.
    one_in: AtomicUsize,
    calls: AtomicU32,
    injected: AtomicU32,
    by_kind: Mutex<BTreeMap<&'static str, u32>>,
    /// Notified of each fault.
    news: Condvar,
    /// The map whose elements the next answer that lists some hides.
    hidden: Mutex<Option<&'static str>>,
}

impl FaultyNetlink {
    /// Begins to let the calls of a process go on, without a fault.
    ///
    /// # Errors
    ///
    /// If the process has ended, or the kernel has no `pidfd_getfd` (before 5.6).
    pub fn begin(process: u32, kinds: Kinds, random: Random) -> io::Result<Self> {
        let calls = Watched::new(process)?;
        let state = Arc::new(State::default());
        let mut faults = Faults { calls, kinds, random, state: state.clone(), sockets: HashMap::new() };
        let thread = std::thread::Builder::new().name("faults".to_owned());
        Ok(Self { thread: thread.spawn(move || faults.serve())?, state })
    }

    /// From now on one of this number of calls is faulty; 0: none.
    pub fn inject(&self, one_in: usize) {
        self.state.one_in.store(one_in, Ordering::Release);
    }

    /// The elements of this map are missing in the next answer that lists some, in a way that a reader can't notice.
    pub fn hide_elements(&self, map: &'static str) {
        *self.state.hidden.lock().unwrap_or_else(PoisonError::into_inner) = Some(map);
    }

    /// The number of calls to netfilter so far.
    pub fn calls(&self) -> u32 {
        self.state.calls.load(Ordering::Acquire)
    }

    /// The number of faults so far.
    pub fn injected(&self) -> u32 {
        self.state.injected.load(Ordering::Acquire)
    }

    /// Waits until there were this number of faults more, or for `patience`.
    pub fn await_more(&self, count: u32, patience: Duration) {
        let wanted = self.injected() + count;
        let guard = self.state.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.state.news.wait_timeout_while(guard, patience, |_| self.injected() < wanted));
    }

    /// The number of faults of each kind.
    pub fn by_kind(&self) -> BTreeMap<&'static str, u32> {
        self.state.by_kind.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

struct Faults {
    calls: Watched,
    kinds: Kinds,
    random: Random,
    state: Arc<State>,
    /// By the kernel's number for a socket: the datagrams that it is to receive before those in its queue.
    sockets: HashMap<u64, VecDeque<Vec<u8>>>,
}

impl Faults {
    fn serve(&mut self) -> io::Result<()> {
        while let Some(call) = self.calls.next_call()? {
            let reply = match self.calls.descriptor(call.descriptor()) {
                Ok(socket) if is_netfilter(&socket) => self.decide(&call, &socket),
                _ => Reply::GoOn,
            };
            self.calls.reply(&call, reply)?;
        }
        Ok(())
    }

    fn decide(&mut self, call: &Call, socket: &OwnedFd) -> Reply {
        self.state.calls.fetch_add(1, Ordering::AcqRel);
        let is_faulty = self.random.one_in(self.state.one_in.load(Ordering::Acquire));
        let reply = match (call.is_send, is_faulty) {
            // A caller that wants to know the sender waits for notifications.
            (false, true) if call.arguments[4] != 0 => Ok(self.fail("notifications fail", &NEWS_ERRORS)),
            (true, true) => self.faulty_send(call, socket),
            (false, true) => self.faulty_receive(call, socket),
            (true, false) => Ok(Reply::GoOn),
            (false, false) => self.receive(call, socket),
        };
        // The process may have been killed meanwhile.
        reply.unwrap_or(Reply::GoOn)
    }

    fn note(&self, kind: &'static str) {
        let mut by_kind = self.state.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.injected.fetch_add(1, Ordering::AcqRel);
        *by_kind.entry(kind).or_default() += 1;
        self.state.news.notify_all();
    }

    fn fail(&mut self, kind: &'static str, errors: &[i32]) -> Reply {
        self.note(kind);
        Reply::Fail(self.random.pick(errors))
    }

    fn faulty_send(&mut self, call: &Call, socket: &OwnedFd) -> io::Result<Reply> {
        match self.random.below(4) {
            0 => Ok(self.fail("send fails", &ERRORS)),
            1 => {
                let bytes = call.read_buffer()?;
                // SAFETY: reads the bytes of a vector.
                unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
                Ok(self.fail("send fails although the request was carried out", &ERRORS))
            }
            2 => {
                self.note("a request is lost");
                Ok(Reply::Return(call.length()))
            }
            _ => {
                let request = call.read_buffer()?;
                let errno = self.random.pick(&REFUSALS);
                self.note("a request is refused for a reason that passes");
                self.sockets.entry(cookie(socket)).or_default().push_back(refusal(&request, errno));
                Ok(Reply::Return(call.length()))
            }
        }
    }

    fn faulty_receive(&mut self, call: &Call, socket: &OwnedFd) -> io::Result<Reply> {
        let kind = self.random.below(if self.kinds == Kinds::All { 9 } else { 5 });
        if kind == 0 {
            return Ok(self.fail("receive fails", &ERRORS));
        }
        // The others need a datagram.
        let Some(mut datagram) = self.next_datagram(socket)? else { return Ok(Reply::Fail(libc::EAGAIN)) };
        match kind {
            1 => {
                self.note("an answer is lost");
                return Ok(Reply::Fail(libc::EAGAIN));
            }
            2 => {
                self.note("an answer is lost and the loss is reported");
                return Ok(Reply::Fail(libc::ENOBUFS));
            }
            3 => {
                self.note("a listing is interrupted");
                if let Some(byte) = datagram.get_mut(FLAGS) {
                    *byte |= NLM_F_DUMP_INTR as u8;
                }
            }
            4 => {
                self.note("an answer comes twice");
                self.sockets.entry(cookie(socket)).or_default().push_front(datagram.clone());
            }
            5 => {
                self.note("an answer is cut off");
                datagram.truncate(self.random.below(datagram.len()));
            }
            6 => {
                self.note("bytes of an answer are changed");
                for _ in 0..=self.random.below(8) {
                    let position = self.random.below(datagram.len());
                    if let Some(byte) = datagram.get_mut(position) {
                        *byte = self.random.number() as u8;
                    }
                }
            }
            7 => {
                self.note("an answer is garbage");
                datagram = (0..self.random.below(256)).map(|_| self.random.number() as u8).collect();
            }
            _ => {
                self.note("an answer is empty");
                datagram.clear();
            }
        }
        deliver(call, &datagram)
    }

    fn receive(&mut self, call: &Call, socket: &OwnedFd) -> io::Result<Reply> {
        if let Some(datagram) = self.sockets.get_mut(&cookie(socket)).and_then(VecDeque::pop_front) {
            return deliver(call, &datagram);
        }
        // The kernel has answered when a request was sent. If nothing is there, nothing comes: the time that the process
        // would wait passes at once.
        let waits = call.arguments[3] as i32 & libc::MSG_DONTWAIT == 0 && call.arguments[4] == 0;
        if waits && !is_readable(socket) {
            return Ok(Reply::Fail(libc::EAGAIN));
        }
        let hidden = *self.state.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        match hidden {
            Some(map) if waits => self.hide(call, socket, map),
            _ => Ok(Reply::GoOn),
        }
    }

    fn hide(&mut self, call: &Call, socket: &OwnedFd, map: &str) -> io::Result<Reply> {
        let Some(mut datagram) = self.next_datagram(socket)? else { return Ok(Reply::GoOn) };
        if hide_elements(&mut datagram, map) {
            *self.state.hidden.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.note("elements of a map are missing in a listing");
        }
        deliver(call, &datagram)
    }

    /// Takes the next datagram, if there is one.
    fn next_datagram(&mut self, socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
        if let Some(datagram) = self.sockets.get_mut(&cookie(socket)).and_then(VecDeque::pop_front) {
            return Ok(Some(datagram));
        }
        let mut bytes = vec![0; 64 << 10];
        // SAFETY: writes into a vector no more than its length.
        let length =
            unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
        match Errno::result(length) {
            Ok(length) => {
                bytes.truncate(length as usize);
                Ok(Some(bytes))
            }
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn deliver(call: &Call, datagram: &[u8]) -> io::Result<Reply> {
    call.write_buffer(datagram)?;
    Ok(Reply::Return(datagram.len().min(call.length())))
}

/// Turns the messages with elements of this map into answers to nobody, which readers pass over. Returns whether there
/// were any.
fn hide_elements(datagram: &mut [u8], map: &str) -> bool {
    let (mut is_hidden, mut start) = (false, 0);
    while let Some(Ok(length)) = datagram.get(start..start + 4).map(<[u8; 4]>::try_from) {
        let end = start + (u32::from_ne_bytes(length) as usize).next_multiple_of(4);
        let Some(message) = datagram.get_mut(start..end).filter(|message| message.len() >= HEADER) else { break };
        if is_listing_of(message, map) {
            message[SEQUENCE..SEQUENCE + 4].fill(0);
            is_hidden = true;
        }
        start = end;
    }
    is_hidden
}

fn is_listing_of(message: &[u8], map: &str) -> bool {
    let Some(message) = Messages::new(message).next() else { return false };
    let lists_elements = message.kind == message_type(NFT_MSG_NEWSETELEM);
    let name = message.body().and_then(|(_, attributes)| attributes.get(NFTA_SET_ELEM_LIST_SET));
    lists_elements && name.and_then(|name| name.string()) == Some(map)
}

/// The kernel's refusal of the first message of a request, in full: `NLMSG_ERROR`, the errno, and the header refused.
fn refusal(request: &[u8], errno: i32) -> Vec<u8> {
    let mut answer = Vec::with_capacity(HEADER + 4 + HEADER);
    answer.extend_from_slice(&((HEADER + 4 + HEADER) as u32).to_ne_bytes());
    answer.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
    answer.extend_from_slice(&0u16.to_ne_bytes());
    answer.extend_from_slice(request.get(SEQUENCE..SEQUENCE + 4).unwrap_or(&[0; 4]));
    answer.extend_from_slice(&0u32.to_ne_bytes());
    answer.extend_from_slice(&(-errno).to_ne_bytes());
    answer.extend_from_slice(request.get(..HEADER).unwrap_or(&[0; HEADER]));
    answer
}

fn is_netfilter(socket: &OwnedFd) -> bool {
    option(socket, libc::SO_DOMAIN) == Some(libc::AF_NETLINK as u64)
        && option(socket, libc::SO_PROTOCOL) == Some(libc::NETLINK_NETFILTER as u64)
}

/// The kernel's number for a socket, whatever the number of the descriptor.
fn cookie(socket: &OwnedFd) -> u64 {
    option(socket, libc::SO_COOKIE).unwrap_or_default()
}

fn option(socket: &OwnedFd, name: libc::c_int) -> Option<u64> {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than eight bytes.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
    };
    (outcome == 0).then_some(value)
}

fn is_readable(socket: &OwnedFd) -> bool {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure of ours.
    unsafe { libc::poll(&raw mut polled, 1, 0) > 0 }
}
