//! One connection that stays open while the world changes around it.

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::probe::Attempt;
use crate::{LabError, NetNs, Probe, ProbeResult, Transport, patient};

/// An open TCP connection, or a UDP socket that keeps its port: what connection tracking knows as one flow. Ended by
/// dropping it, over TCP with a reset. Over SCTP every question repeats the first INIT, whatever its size.
pub struct Flow {
    attempt: Attempt,
    probe: Probe,
    opened: ProbeResult,
}

impl fmt::Debug for Flow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Flow").field("probe", &self.probe).field("opened", &self.opened).finish()
    }
}

impl Flow {
    /// Opens it from `namespace` and waits for the first answer.
    ///
    /// # Errors
    ///
    /// A socket can't be made or bound. What happens to a packet is never an error: see [`Flow::opened`].
    pub fn open(namespace: &NetNs, probe: &Probe) -> Result<Self, LabError> {
        namespace.run(|| {
            let mut attempt = Attempt::start(namespace, probe)?;
            let opened = attempt.finish()?;
            Ok(Self { attempt, probe: *probe, opened })
        })?
    }

    /// The fate of the first packet.
    pub fn opened(&self) -> ProbeResult {
        self.opened
    }

    /// Sends `bytes` more bytes (at least one) on the same flow and waits for who answers, at most as long as the
    /// first time. Over UDP it is one datagram, cut into fragments where it does not fit the link.
    ///
    /// # Errors
    ///
    /// Waiting itself failed.
    pub fn ask(&mut self, bytes: usize) -> Result<ProbeResult, LabError> {
        let mut message = vec![b'.'; bytes.saturating_sub(1)];
        message.push(b'\n');
        self.attempt.text.clear();
        if let Err(error) = self.send(&message) {
            self.attempt.note_send_error(&error);
        }
        self.attempt.deadline = Instant::now() + patient(self.probe.timeout);
        self.attempt.finish()
    }

    /// Sends all of it, waiting where the peer is slower.
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        if self.probe.transport == Transport::Sctp {
            return self.attempt.send();
        }
        let socket = &self.attempt.socket;
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(patient(self.probe.timeout).max(Duration::from_millis(1))))?;
        let sent = (&*socket).write_all(message);
        socket.set_nonblocking(true)?;
        sent
    }
}
