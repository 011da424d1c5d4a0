//! Answers that leave in one system call.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::addr::SocketAddrArg as _;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags};

use crate::metrics::Seen;

/// Most answers are shorter, in bytes.
const USUAL_ANSWER: usize = 512;

/// An answer, and who gets it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) to: SocketAddr,
    /// The address that was asked, if the kernel named it.
    pub(crate) from: Option<IpAddr>,
    pub(crate) seen: Seen,
}

/// Answers in the order of their questions. Their buffers are used again.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    kept: Vec<Reply>,
    free: Vec<Vec<u8>>,
}

impl Replies {
    /// A buffer for an answer, to be [kept](Self::keep) or [returned](Self::put_back).
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(USUAL_ANSWER))
    }

    /// A buffer that is not needed after all.
    pub(crate) fn put_back(&mut self, buffer: Vec<u8>) {
        self.free.push(buffer);
    }

    /// Adds an answer.
    pub(crate) fn keep(&mut self, reply: Reply) {
        self.kept.push(reply);
    }

    /// The answers.
    pub(crate) fn kept(&self) -> &[Reply] {
        &self.kept
    }

    /// Forgets the answers.
    pub(crate) fn clear(&mut self) {
        self.free.extend(self.kept.drain(..).map(|reply| reply.bytes));
    }
}

/// Sends the first of these answers, as many as the socket's buffer takes, and
/// returns their number, at least 1. The kernel chooses their source address:
/// that of a socket that is bound to one.
///
/// # Errors
/// If the first one can't be sent; nothing was sent then.
pub(crate) fn send_together(socket: impl AsFd, replies: &[Reply]) -> io::Result<usize> {
    let contents: Vec<[IoSlice<'_>; 1]> = replies.iter().map(|reply| [IoSlice::new(&reply.bytes)]).collect();
    let addresses: Vec<_> = replies.iter().map(|reply| reply.to.as_any()).collect();
    let mut controls: Vec<_> = replies.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let parts = addresses.iter().zip(&contents).zip(&mut controls);
    let mut headers: Vec<_> =
        parts.map(|((address, contents), control)| MMsgHdr::new_with_addr(address, contents, control)).collect();
    Ok(rustix::net::sendmmsg(socket, &mut headers, SendFlags::empty())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::net::UdpSocket;

    use super::*;
    use crate::metrics::SEEN_IN_ZONE as SEEN;

    #[test]
    fn every_client_gets_its_answers() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(address).unwrap();
            let clients = [UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap()];
            let mut replies = Replies::default();
            for number in 0..6_u8 {
                let mut bytes = replies.buffer();
                bytes.clear();
                bytes.extend([number; 3]);
                let to = clients[usize::from(number % 2)].local_addr().unwrap();
                replies.keep(Reply { bytes, to, from: None, seen: SEEN });
            }
            assert_eq!(send_together(&server, replies.kept()).unwrap(), 6);
            for (client, numbers) in clients.iter().zip([[0, 2, 4], [1, 3, 5]]) {
                for number in numbers {
                    let mut buffer = [0; 9];
                    let (length, from) = client.recv_from(&mut buffer).unwrap();
                    assert_eq!((&buffer[..length], from), (&[number; 3][..], server.local_addr().unwrap()));
                }
            }
            replies.clear();
            assert!(replies.kept().is_empty() && replies.free.len() == 6);
        }
    }

    #[test]
    fn an_answer_that_cannot_be_sent_is_an_error_of_its_own() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let reply = |to: &str| Reply { bytes: vec![1], to: to.parse().unwrap(), from: None, seen: SEEN };
        let own = server.local_addr().unwrap().to_string();
        // Another family than the socket's.
        let replies = [reply(&own), reply("[::1]:53"), reply(&own)];
        assert_eq!(send_together(&server, &replies).unwrap(), 1);
        assert!(send_together(&server, &replies[1..]).is_err());
        assert_eq!(send_together(&server, &replies[2..]).unwrap(), 1);
    }
}
