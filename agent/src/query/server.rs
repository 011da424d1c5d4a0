//! The server of questions: a Unix socket that only its owner can open.
//!
//! Everything is bounded: connections, the length of a question, the time for
//! reading and writing, and the work of an answer ([`PAGE`](super::protocol::PAGE)).
//! The sync thread answers one question between two syncs, so a question waits
//! for a sync, and a sync for one question at most.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::protocol::{Answer, Ask, Question, Reply, VERSION};
use crate::metrics::Metrics;

/// The default path of the socket.
pub const DEFAULT_PATH: &str = "/run/vmap-proxy/agent.sock";

/// Maximum number of connections; others wait to be accepted.
const CONNECTIONS: usize = 8;

/// Maximum length of a question in bytes.
const QUESTION_BYTES: u64 = 16 * 1024;

/// Longest time for a client to send its next question, or to take an answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// Time between attempts to listen.
const RETRY: Duration = Duration::from_secs(10);

/// Questions that wait for the sync thread, at most.
const WAITING: usize = 4;

/// A question that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// Takes the answer; the client may be gone.
    pub reply: oneshot::Sender<Answer>,
}

/// The way of questions to the sync thread.
pub fn channel() -> (mpsc::Sender<Asked>, mpsc::Receiver<Asked>) {
    mpsc::channel(WAITING)
}

/// What a server itself adds to an answer: the sync thread does not know it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When the agent started.
    pub started: SystemTime,
    /// Where the objects come from.
    pub source: String,
    /// Know when the API server last sent anything.
    pub metrics: Metrics,
}

impl Facts {
    /// Adds the facts that an answer of the sync thread lacks.
    pub(crate) fn add_to(&self, answer: &mut Answer) {
        let Answer::Status(status) = answer else { return };
        status.started = milliseconds(self.started);
        status.source.clone_from(&self.source);
        let last = self.metrics.api_last_received().into_iter();
        status.last_received = last.map(|(resource, time)| (resource.to_owned(), milliseconds(time))).collect();
    }
}

/// Milliseconds since 1970.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Serves questions for ever; if it can't listen, it tries again. Without a path
/// nothing is served.
pub async fn serve(path: Option<PathBuf>, questions: mpsc::Sender<Asked>, facts: Facts) -> Infallible {
    let Some(path) = path else { return std::future::pending().await };
    let mut reported = None;
    loop {
        match listen(&path) {
            Ok(listening) => {
                reported = None;
                tracing::debug!("questions are answered at {}", path.display());
                accept(&listening.listener, &questions, &facts).await;
            }
            Err(error) => {
                let text = error.to_string();
                if reported.as_ref() != Some(&text) {
                    tracing::warn!(
                        "vmap-proxy explain and the like get no answer from this agent: {} can't be served: {text}; \
                         trying again every {RETRY:?}. Another path: --query-socket",
                        path.display()
                    );
                    reported = Some(text);
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// The socket; its file goes away with it.
struct Listening {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Another agent may have taken the path meanwhile.
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Takes the path. The socket gets its mode before it gets its name, so nobody
/// can open it in between.
fn listen(path: &Path) -> io::Result<Listening> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    check_free(path)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    let named = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| inode(&temporary))
        .and_then(|inode| std::fs::rename(&temporary, path).map(|()| inode));
    if named.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    Ok(Listening { listener, path: path.to_owned(), inode: named? })
}

/// A socket that nobody serves any more is replaced, and nothing else.
fn check_free(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it")),
        Err(_) => Ok(()),
    }
}

async fn accept(listener: &UnixListener, questions: &mpsc::Sender<Asked>, facts: &Facts) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (questions, facts) = (questions.clone(), facts.clone());
                tokio::spawn(async move {
                    converse(stream, &questions, &facts).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("a client of the query socket could not be accepted: {error}");
                return;
            }
        }
    }
}

/// Answers the questions of one client until it hangs up or is silent.
async fn converse(stream: UnixStream, questions: &mpsc::Sender<Asked>, facts: &Facts) {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reading).take(QUESTION_BYTES);
        match timeout(CLIENT_PATIENCE, limited.read_until(b'\n', &mut line)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => return,
        }
        if line.last() != Some(&b'\n') {
            let why = format!("a question is one line of at most {QUESTION_BYTES} bytes");
            let _ = write(&mut writing, Err(why), false).await;
            return;
        }
        let is_written = match read(&line) {
            Ok(ask) => answer(ask, &mut writing, questions, facts).await,
            Err(why) => write(&mut writing, Err(why), false).await,
        };
        if !is_written {
            return;
        }
    }
}

fn read(line: &[u8]) -> Result<Ask, String> {
    let ask: Ask =
        serde_json::from_slice(line).map_err(|error| format!("this is no question that this agent knows: {error}"))?;
    match ask.version {
        VERSION => Ok(ask),
        wanted => Err(format!("this agent speaks version {VERSION} of the protocol, not {wanted}")),
    }
}

/// Answers a question. If all pages are wanted, the sync thread makes the next one
/// while this one is written: one page at a time is in memory, however slow the
/// client is. Returns whether the client took everything.
async fn answer(ask: Ask, writing: &mut OwnedWriteHalf, questions: &mpsc::Sender<Asked>, facts: &Facts) -> bool {
    let Ask { mut question, stream, .. } = ask;
    let mut answered = to_sync_thread(&question, questions).await;
    loop {
        let Some(mut answer) = received(answered).await else {
            return write(writing, Err("the agent is ending".to_owned()), false).await;
        };
        facts.add_to(&mut answer);
        let Some(next) = question.behind(&answer).filter(|_| stream) else {
            return write(writing, Ok(answer), false).await;
        };
        question = next;
        answered = to_sync_thread(&question, questions).await;
        if !write(writing, Ok(answer), true).await {
            return false;
        }
    }
}

/// Hands a question to the sync thread; `None` if that has ended.
async fn to_sync_thread(question: &Question, questions: &mpsc::Sender<Asked>) -> Option<oneshot::Receiver<Answer>> {
    let (reply, answered) = oneshot::channel();
    questions.send(Asked { question: question.clone(), reply }).await.ok()?;
    Some(answered)
}

async fn received(answered: Option<oneshot::Receiver<Answer>>) -> Option<Answer> {
    answered?.await.ok()
}

/// Writes one reply. Returns whether the client took it.
async fn write(writing: &mut OwnedWriteHalf, result: Result<Answer, String>, more: bool) -> bool {
    let (answer, error) = match result {
        Ok(answer) => (Some(answer), None),
        Err(why) => (None, Some(why)),
    };
    let Ok(mut text) = serde_json::to_vec(&Reply { version: VERSION, more, answer, error }) else { return false };
    text.push(b'\n');
    matches!(timeout(CLIENT_PATIENCE, writing.write_all(&text)).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Client;

    use super::*;
    use crate::query::protocol::DigestsAnswer;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vmap-proxy-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    /// Three pages of digests, without Services; of any other question nothing.
    fn answer_to(question: &Question) -> Answer {
        let Question::Digests { after } = question else { return Answer::Destination(None) };
        let last = match after.as_deref() {
            None => Some("a/1"),
            Some("a/1") => Some("a/2"),
            Some(_) => None,
        };
        Answer::Digests(DigestsAnswer { services: Vec::new(), last: last.map(str::to_owned) })
    }

    /// Serves in a thread whose runtime ends with the sender.
    fn with_server(name: &str, test: impl FnOnce(&Path)) {
        let directory = directory(name);
        let path = directory.join("agent.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let server = std::thread::spawn({
            let path = path.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let (questions, mut asked) = channel();
                let facts = Facts { started: UNIX_EPOCH, source: String::new(), metrics: Metrics::new() };
                let answering = async {
                    while let Some(Asked { question, reply }) = asked.recv().await {
                        let _ = reply.send(answer_to(&question));
                    }
                };
                runtime.block_on(async {
                    tokio::select! {
                        never = serve(Some(path), questions, facts) => match never {},
                        () = answering => {}
                        _ = stopped => {}
                    }
                });
            }
        });
        while Client::connect(&path).is_err() {
            std::thread::yield_now();
        }
        test(&path);
        drop(stop);
        server.join().unwrap();
        assert!(!path.exists(), "the socket stays behind");
        std::fs::remove_dir_all(directory).unwrap();
    }

    fn ask(path: &Path, line: &[u8]) -> String {
        let mut client = Client::connect(path).unwrap();
        // A question that is too long is refused before all of it is read.
        let _ = client.write_all(line);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut text = String::new();
        let _ = client.read_to_string(&mut text);
        text
    }

    #[test]
    fn only_the_owner_may_ask_and_questions_are_bounded() {
        with_server("server", |path| {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
            let question = br#"{"version":1,"question":{"ask":"node"}}"#;
            let known = [&question[..], b"\n"].concat();
            assert_eq!(ask(path, &known), "{\"version\":1,\"answer\":{\"destination\":null}}\n");
            assert!(ask(path, b"{\"version\":2,\"question\":{\"ask\":\"node\"}}\n").contains("speaks version 1"));
            assert!(ask(path, b"hello\n").contains("no question that this agent knows"));
            let long = vec![b' '; 20_000];
            assert!(ask(path, &long).contains("at most 16384 bytes"));
            // One client may ask again and again.
            assert_eq!(ask(path, &known.repeat(3)).lines().count(), 3);
        });
    }

    #[test]
    fn all_pages_come_if_they_are_asked_for() {
        with_server("stream", |path| {
            let one = ask(path, b"{\"version\":1,\"question\":{\"ask\":\"digests\"}}\n");
            assert_eq!(one, "{\"version\":1,\"answer\":{\"digests\":{\"services\":[],\"last\":\"a/1\"}}}\n");
            let all = ask(path, b"{\"version\":1,\"question\":{\"ask\":\"digests\"},\"stream\":true}\n");
            let lines: Vec<bool> = all.lines().map(|line| line.contains("\"more\":true")).collect();
            assert_eq!(lines, [true, true, false], "{all}");
            // The client puts them together, and may go on asking.
            let mut client = super::super::client::Client::connect(path).unwrap();
            for _ in 0..2 {
                let mut pages = 0;
                client.ask_all(&Question::Digests { after: None }, |_| pages += 1).unwrap();
                assert_eq!(pages, 3);
            }
            assert_eq!(client.ask(&Question::Node).unwrap(), Answer::Destination(None));
        });
    }

    #[test]
    fn more_clients_than_places_wait() {
        with_server("places", |path| {
            let silent: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(path).unwrap()).collect();
            let waiting = std::thread::spawn({
                let path = path.to_owned();
                move || ask(&path, b"{\"version\":1,\"question\":{\"ask\":\"node\"}}\n")
            });
            drop(silent);
            assert!(waiting.join().unwrap().contains("answer"));
        });
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let directory = directory("path");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("agent.sock");
        std::fs::write(&path, "file").unwrap();
        assert_eq!(check_free(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_file(&path).unwrap();
        let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(check_free(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(living);
        assert!(path.exists());
        check_free(&path).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
    }
}
