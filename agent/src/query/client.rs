//! Asks a running agent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::protocol::{Answer, Ask, Question, Reply, VERSION};

/// Longest wait for an answer. A first sync of a large cluster takes seconds, and
/// questions wait for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Maximum length of an answer in bytes.
const ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes that one read takes, at most.
const BUFFER: usize = 256 * 1024;

/// The agent does not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error(
        "no agent answers at {}: {source}; does it run in this container or on this node, with a socket (run --query-socket; \
         none by default with --manifests), and at this path (--socket)?",
        path.display()
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The socket may not be opened.
    #[error("the agent's socket {} may not be opened: {source}; run this as the agent's user (root)", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The agent has the connection, and is silent.
    #[error(
        "the agent at {} did not answer within {} s: it hangs, is stopped, or has a very large sync to do; see its log, \
         and /livez of its health server",
        path.display(),
        PATIENCE.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("the agent at {} did not answer: {source}", path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The answer makes no sense.
    #[error("the agent's answer can't be read: {0}; are the agent and this program of the same version?")]
    Unreadable(#[from] serde_json::Error),
    /// The agent refused to answer.
    #[error("the agent does not answer this: {0}")]
    Refused(String),
}

impl ClientError {
    /// Returns whether there is no agent at all.
    pub fn is_no_agent(&self) -> bool {
        matches!(self, Self::NoAgent { .. })
    }
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::NoAgent`] and [`ClientError::Permission`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let path = path.to_owned();
        let connected = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self { path, stream: BufReader::with_capacity(BUFFER, stream) }),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClientError::Permission { path, source })
            }
            Err(source) => Err(ClientError::NoAgent { path, source }),
        }
    }

    /// Asks one question, and waits for the answer.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn ask(&mut self, question: &Question) -> Result<Answer, ClientError> {
        self.send(question, false)?;
        Ok(self.receive()?.0)
    }

    /// Asks one question, and calls `each` with every page of the answer.
    ///
    /// # Errors
    /// If there is no answer, or only a part of it.
    pub fn ask_all(&mut self, question: &Question, mut each: impl FnMut(Answer)) -> Result<(), ClientError> {
        let mut question = question.clone();
        self.send(&question, true)?;
        loop {
            let (answer, more) = self.receive()?;
            let next = question.behind(&answer);
            each(answer);
            match next {
                None => return Ok(()),
                Some(next) => question = next,
            }
            // An agent that knows no streams has ended its answer.
            if !more {
                self.send(&question, true)?;
            }
        }
    }

    fn send(&mut self, question: &Question, stream: bool) -> Result<(), ClientError> {
        let mut text = serde_json::to_vec(&Ask { version: VERSION, question: question.clone(), stream })?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text).map_err(|source| self.lost(source))
    }

    /// The next reply, and whether another one follows it.
    fn receive(&mut self) -> Result<(Answer, bool), ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(ANSWER_BYTES).read_until(b'\n', &mut line);
        let is_whole = |_| if line.last() == Some(&b'\n') { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        read.and_then(is_whole).map_err(|source| self.lost(source))?;
        match serde_json::from_slice(&line)? {
            Reply { answer: Some(answer), more, .. } => Ok((answer, more)),
            Reply { error, .. } => Err(ClientError::Refused(error.unwrap_or_else(|| "it gave no reason".to_owned()))),
        }
    }

    fn lost(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent { path },
            _ => ClientError::Lost { path, source },
        }
    }
}
