//! Names outside of the cluster: upstream servers, and a cache of their answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{DnsRequestOptions, Message, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig};
use tokio::sync::Semaphore;

use crate::metrics::DnsMetrics;

/// Number of cached answers.
const CACHE_SIZE: u64 = 4096;

/// Longest time that an answer is cached, and that "there is none" is.
const LONGEST_TTL: Duration = Duration::from_secs(300);
const LONGEST_NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// Longest wait for one server, and for an answer at all. The resolvers of libc
/// ask again after 5 s.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(4);

/// The most questions that wait for upstream servers.
const MOST_WAITING: usize = 1024;

/// Asks upstream servers.
#[derive(Clone)]
pub(crate) struct Forwarder {
    pool: NameServerPool<TokioRuntimeProvider>,
    cache: ResponseCache,
    permits: Arc<Semaphore>,
    metrics: DnsMetrics,
}

/// The answer of an upstream server.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

impl Forwarder {
    /// Prepares the servers; nothing is sent yet. Must be called where the event
    /// loop of the server runs.
    ///
    /// # Errors
    /// In practice never: the library makes its settings of TLS here, which is not
    /// compiled in.
    pub(crate) fn new(servers: &[SocketAddr], metrics: DnsMetrics) -> Result<Self, NetError> {
        let mut options = ResolverOpts::default();
        options.timeout = SERVER_PATIENCE;
        options.attempts = 1;
        options.positive_max_ttl = Some(LONGEST_TTL);
        options.negative_max_ttl = Some(LONGEST_NEGATIVE_TTL);
        options.max_active_requests = MOST_WAITING;
        options.cache_size = 0;
        let cache = ResponseCache::new(CACHE_SIZE, TtlConfig::from_opts(&options));
        let context = Arc::new(PoolContext::new(options, TlsConfig::new()?));
        let pool =
            NameServerPool::from_config(servers.iter().map(name_server), context, TokioRuntimeProvider::default());
        Ok(Self { pool, cache, permits: Arc::new(Semaphore::new(MOST_WAITING)), metrics })
    }

    /// The cached answer, if there is one.
    pub(crate) fn cached(&self, query: &Query) -> Option<Outcome> {
        let found = self.cache.get(query, Instant::now()).map(Outcome::of);
        self.metrics.cache_asked(found.as_ref().map(Outcome::is_negative));
        found
    }

    /// Asks the servers. A failure to get an answer is an outcome, too.
    pub(crate) async fn ask(&self, query: Query) -> Outcome {
        let begun = Instant::now();
        let outcome = match self.permits.try_acquire() {
            Ok(_permit) => self.ask_servers(query).await,
            Err(_) => Outcome::failed(),
        };
        self.metrics.forwarded(outcome.code, begun.elapsed());
        outcome
    }

    async fn ask_servers(&self, query: Query) -> Outcome {
        let answer = self.pool.lookup(query.clone(), DnsRequestOptions::default()).first_answer();
        let answer = match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.and_then(|answer| DnsError::from_response(answer).map_err(NetError::from)),
            Err(_) => Err(NetError::Timeout),
        };
        let answer = answer.map(|answer| answer.into_message());
        if let Err(error) = &answer {
            tracing::debug!("DNS: no answer for {} from an upstream server: {error}", query.name());
        }
        self.cache.insert(query, answer.clone(), Instant::now());
        Outcome::of(answer)
    }
}

impl Outcome {
    fn failed() -> Self {
        Self { code: ResponseCode::ServFail, ..Self::default() }
    }

    fn is_negative(&self) -> bool {
        self.answers.is_empty()
    }

    fn of(answer: Result<Message, NetError>) -> Self {
        match answer {
            Ok(message) => {
                let code = message.metadata.response_code;
                Self { code, answers: message.answers, authorities: message.authorities }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let soa = none.soa.map(|soa| soa.into_record_of_rdata());
                Self { code: none.response_code, answers: Vec::new(), authorities: soa.into_iter().collect() }
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Self { code, ..Self::default() },
            Err(_) => Self::failed(),
        }
    }
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let with_port = |mut config: ConnectionConfig| {
        config.port = server.port();
        config
    };
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(with_port);
    // An upstream server's "no such name" is the answer, not a reason to ask the next one.
    NameServerConfig::new(server.ip(), true, connections.to_vec())
}
