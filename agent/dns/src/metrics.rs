//! CoreDNS' metrics, under its names and labels, so that dashboards for it go on
//! working.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::message::Transport;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    server: Arc<str>,
    zone: Arc<str>,
    view: &'static str,
    proto: &'static str,
    family: &'static str,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: Arc<str>,
    zone: Arc<str>,
    view: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    server: Arc<str>,
    zone: Arc<str>,
    view: &'static str,
    rcode: &'static str,
    plugin: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    server: &'static str,
    zones: &'static str,
    view: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheHitLabels {
    server: &'static str,
    zones: &'static str,
    view: &'static str,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ForwardLabels {
    proxy_name: &'static str,
    to: &'static str,
    rcode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    address: Arc<str>,
}

/// The zone that a question belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ZoneLabel {
    /// That of the cluster, or a reverse zone of it.
    Cluster,
    /// Any other name.
    Root,
}

/// The part of the server that made an answer; CoreDNS has a plugin for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plugin {
    /// None: the question was refused.
    None,
    Kubernetes,
    Cache,
    Forward,
}

/// A question and its answer, as the metrics count them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) record_type: RecordType,
    pub(crate) zone: ZoneLabel,
    pub(crate) code: ResponseCode,
    pub(crate) plugin: Plugin,
}

/// An answer of the zone, for tests of its way.
#[cfg(test)]
pub(crate) const SEEN_IN_ZONE: Seen = Seen {
    record_type: RecordType::A,
    zone: ZoneLabel::Cluster,
    code: ResponseCode::NoError,
    plugin: Plugin::Kubernetes,
};

const CACHE: CacheLabels = CacheLabels { server: "dns://", zones: ".", view: "" };

/// The metrics of the server. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct DnsMetrics {
    registry: Arc<Registry>,
    domain: Arc<str>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<ServerLabels, Histogram>,
    responses: Family<ResponseLabels, Counter>,
    cache_requests: Family<CacheLabels, Counter>,
    cache_hits: Family<CacheHitLabels, Counter>,
    cache_misses: Family<CacheLabels, Counter>,
    forwarded: Family<ForwardLabels, Histogram>,
    taken_over: Family<AddressLabels, Gauge>,
}

/// CoreDNS' buckets: 0.25 ms to 8 s, doubling.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl DnsMetrics {
    /// All metrics at zero. `domain` is the cluster's, without the final dot.
    pub fn new(domain: &str) -> Self {
        let constructor: fn() -> Histogram = durations;
        let mut metrics = Self {
            registry: Arc::default(),
            domain: format!("{domain}.").into(),
            requests: Family::default(),
            durations: Family::new_with_constructor(constructor),
            responses: Family::default(),
            cache_requests: Family::default(),
            cache_hits: Family::default(),
            cache_misses: Family::default(),
            forwarded: Family::new_with_constructor(constructor),
            taken_over: Family::default(),
        };
        let mut registry = Registry::default();
        registry.register(
            "vmap_proxy_dns_taken_over",
            "1 for each cluster IP of the Service in --dns-take-over at which this server answers, 0 if it does not",
            metrics.taken_over.clone(),
        );
        metrics.register(registry.sub_registry_with_prefix("coredns"));
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "dns_requests",
            "DNS requests by server, zone, protocol, address family and type",
            self.requests.clone(),
        );
        registry.register(
            "dns_request_duration_seconds",
            "Time from the arrival of a DNS request to its answer",
            self.durations.clone(),
        );
        registry.register(
            "dns_responses",
            "DNS responses by response code, and by the part that made them: kubernetes, cache or forward",
            self.responses.clone(),
        );
        registry.register(
            "cache_requests",
            "Names outside of the cluster that were looked up in the cache",
            self.cache_requests.clone(),
        );
        registry.register("cache_hits", "Answers from the cache, by type: success or denial", self.cache_hits.clone());
        registry.register("cache_misses", "Names that the cache did not hold", self.cache_misses.clone());
        registry.register(
            "proxy_request_duration_seconds",
            "Time until the upstream servers answered, by response code",
            self.forwarded.clone(),
        );
    }

    /// Appends all metrics in OpenMetrics text, without its end mark.
    pub fn encode(&self, out: &mut String) {
        // Writing into a String doesn't fail.
        if text::encode_registry(out, &self.registry).is_err() {
            tracing::error!("the DNS metrics could not be encoded");
        }
    }

    /// Counts one of each kind, so that each metric shows its labels: for the
    /// reference page.
    #[doc(hidden)]
    pub fn count_examples(&self) {
        self.cache_asked(Some(false));
        self.cache_asked(None);
        self.forwarded(ResponseCode::NoError, Duration::ZERO);
        self.taken_over(IpAddr::from([10, 96, 0, 10]), Some(true));
        let seen = Seen {
            record_type: RecordType::A,
            zone: ZoneLabel::Cluster,
            code: ResponseCode::NoError,
            plugin: Plugin::Kubernetes,
        };
        let listener = self.listener(SocketAddr::from(([127, 0, 0, 1], 53)));
        listener.note(&seen, Transport::Udp, true, Duration::ZERO);
    }

    /// A name was looked up in the cache; `found`: whether its answer was
    /// negative.
    pub(crate) fn cache_asked(&self, found: Option<bool>) {
        self.cache_requests.get_or_create(&CACHE).inc();
        match found {
            Some(negative) => {
                let r#type = if negative { "denial" } else { "success" };
                let CacheLabels { server, zones, view } = CACHE;
                self.cache_hits.get_or_create(&CacheHitLabels { server, zones, view, r#type }).inc();
            }
            None => drop(self.cache_misses.get_or_create(&CACHE).inc()),
        }
    }

    /// This server answers at a cluster IP, or does not; `None`: it no longer has
    /// to.
    pub(crate) fn taken_over(&self, address: IpAddr, answers: Option<bool>) {
        let labels = AddressLabels { address: address.to_string().into() };
        match answers {
            Some(answers) => drop(self.taken_over.get_or_create(&labels).set(i64::from(answers))),
            None => drop(self.taken_over.remove(&labels)),
        }
    }

    /// The upstream servers answered, or did not.
    pub(crate) fn forwarded(&self, code: ResponseCode, took: Duration) {
        let labels = ForwardLabels { proxy_name: "forward", to: "upstream", rcode: code_name(code) };
        self.forwarded.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The counters of one address that the server listens on.
    pub(crate) fn listener(&self, address: SocketAddr) -> ListenerMetrics {
        ListenerMetrics {
            all: self.clone(),
            server: format!("dns://{address}").into(),
            requests: std::array::from_fn(|_| OnceLock::new()),
            responses: std::array::from_fn(|_| OnceLock::new()),
            durations: std::array::from_fn(|_| OnceLock::new()),
        }
    }
}

const TYPES: usize = 14;
const CODES: usize = 6;

/// The counters of one listener. Each is looked up once, because a look-up costs
/// more than an answer's encoding.
#[derive(Debug)]
pub(crate) struct ListenerMetrics {
    all: DnsMetrics,
    server: Arc<str>,
    requests: [OnceLock<Counter>; TYPES * 8],
    responses: [OnceLock<Counter>; CODES * 8],
    durations: [OnceLock<Histogram>; 2],
}

impl ListenerMetrics {
    /// Counts a question with its answer.
    pub(crate) fn note(&self, seen: &Seen, transport: Transport, is_ipv4: bool, took: Duration) {
        let (index, r#type) = type_name(seen.record_type);
        let (zone_index, zone) = match seen.zone {
            ZoneLabel::Cluster => (0, self.all.domain.clone()),
            ZoneLabel::Root => (1, ".".into()),
        };
        let (family_index, family) = if is_ipv4 { (0, "1") } else { (1, "2") };
        let (proto_index, proto) = match transport {
            Transport::Udp => (0, "udp"),
            Transport::Tcp => (1, "tcp"),
        };
        let view = "";
        let request = self.requests.get(index * 8 + zone_index * 4 + family_index * 2 + proto_index);
        if let Some(counter) = request {
            let labels =
                || RequestLabels { server: self.server.clone(), zone: zone.clone(), view, proto, family, r#type };
            counter.get_or_init(|| self.all.requests.get_or_create(&labels()).clone()).inc();
        }
        self.note_response(seen, zone_index, &zone);
        if let Some(histogram) = self.durations.get(zone_index) {
            let labels = || ServerLabels { server: self.server.clone(), zone: zone.clone(), view };
            let histogram = histogram.get_or_init(|| self.all.durations.get_or_create(&labels()).clone());
            histogram.observe(took.as_secs_f64());
        }
    }

    fn note_response(&self, seen: &Seen, zone_index: usize, zone: &Arc<str>) {
        let rcode = code_name(seen.code);
        let code_index = match seen.code {
            ResponseCode::NoError => 0,
            ResponseCode::NXDomain => 1,
            ResponseCode::ServFail => 2,
            ResponseCode::Refused => 3,
            ResponseCode::FormErr => 4,
            _ => 5,
        };
        let (plugin_index, plugin) = match seen.plugin {
            Plugin::None => (0, ""),
            Plugin::Kubernetes => (1, "kubernetes"),
            Plugin::Cache => (2, "cache"),
            Plugin::Forward => (3, "forward"),
        };
        let labels = ResponseLabels { server: self.server.clone(), zone: zone.clone(), view: "", rcode, plugin };
        if code_index == 5 {
            // Rare codes share no place.
            self.all.responses.get_or_create(&labels).inc();
        } else if let Some(counter) = self.responses.get(code_index * 8 + zone_index * 4 + plugin_index) {
            counter.get_or_init(|| self.all.responses.get_or_create(&labels).clone()).inc();
        }
    }
}

/// A type's place, and CoreDNS' name of it.
fn type_name(record_type: RecordType) -> (usize, &'static str) {
    match record_type {
        RecordType::A => (0, "A"),
        RecordType::AAAA => (1, "AAAA"),
        RecordType::MX => (2, "MX"),
        RecordType::SOA => (3, "SOA"),
        RecordType::CNAME => (4, "CNAME"),
        RecordType::PTR => (5, "PTR"),
        RecordType::TXT => (6, "TXT"),
        RecordType::NS => (7, "NS"),
        RecordType::SRV => (8, "SRV"),
        RecordType::HTTPS => (9, "HTTPS"),
        RecordType::AXFR => (10, "AXFR"),
        RecordType::IXFR => (11, "IXFR"),
        RecordType::ANY => (12, "ANY"),
        _ => (13, "other"),
    }
}

fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}
