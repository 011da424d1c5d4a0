//! The choice of upstream servers, which follows `/etc/resolv.conf` and this
//! node's addresses.

use std::net::{IpAddr, SocketAddr};

use crate::forward::Forwarder;
use crate::metrics::DnsMetrics;
use crate::options::{Options, PORT, Upstream};

/// The most upstream servers, as in glibc and CoreDNS.
const MOST_SERVERS: usize = 15;

/// The servers to ask, and those left out because they are this one, which would
/// ask itself without end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Choice {
    servers: Vec<SocketAddr>,
    itself: Vec<SocketAddr>,
}

/// The present choice.
pub(crate) struct Upstreams {
    upstream: Upstream,
    listeners: Vec<SocketAddr>,
    domain: String,
    metrics: DnsMetrics,
    /// The addresses of this node.
    own: Vec<IpAddr>,
    /// Cluster IPs that lead here.
    taken_over: Vec<IpAddr>,
    named: Vec<SocketAddr>,
    /// `None` before the first choice.
    current: Option<Choice>,
}

impl Upstreams {
    pub(crate) fn new(options: &Options, metrics: DnsMetrics) -> Self {
        Self {
            upstream: options.upstream.clone(),
            listeners: options.addresses.clone(),
            domain: options.zone.domain().to_owned(),
            metrics,
            own: Vec::new(),
            taken_over: Vec::new(),
            named: Vec::new(),
            current: None,
        }
    }

    pub(crate) fn set_own(&mut self, own: Vec<IpAddr>) {
        self.own = own;
    }

    pub(crate) fn set_taken_over(&mut self, addresses: &[IpAddr]) {
        self.taken_over = addresses.to_vec();
    }

    /// Reads the names of the servers again. A file that cannot be read changes
    /// nothing: it may be replaced at this moment.
    pub(crate) fn read(&mut self) {
        match &self.upstream {
            Upstream::Servers(servers) => self.named.clone_from(servers),
            Upstream::ResolvConf => match of_resolv_conf() {
                Ok(servers) => self.named = servers,
                Err(error) => {
                    tracing::warn!("DNS: /etc/resolv.conf cannot be used: {error}; name servers with --dns-upstream");
                }
            },
        }
    }

    /// Chooses again. Returns the new forwarder if the servers differ from those
    /// before; its cache is empty, because other servers may give other answers.
    /// Must be called where the event loop of the server runs.
    pub(crate) fn choose(&mut self) -> Option<Option<Forwarder>> {
        let choice = choose(&self.named, &self.listeners, &self.taken_over, |address| self.own.contains(&address));
        if self.current.as_ref() == Some(&choice) {
            return None;
        }
        for server in &choice.itself {
            tracing::warn!("DNS: {server} is this server itself, and is not asked for names outside of the cluster");
        }
        let forwarder = self.forwarder(&choice.servers);
        if self.current.is_some() {
            tracing::info!("DNS: the upstream servers are now {:?}", choice.servers);
        }
        self.current = Some(choice);
        Some(forwarder)
    }

    fn forwarder(&self, servers: &[SocketAddr]) -> Option<Forwarder> {
        if servers.is_empty() {
            tracing::warn!("DNS: there is no upstream server: names outside of {} are refused", self.domain);
            return None;
        }
        let forwarder = Forwarder::new(servers, self.metrics.clone());
        forwarder.inspect_err(|error| tracing::error!("DNS: nothing can be forwarded: {error}")).ok()
    }
}

fn choose(
    named: &[SocketAddr],
    listeners: &[SocketAddr],
    taken_over: &[IpAddr],
    is_local: impl Fn(IpAddr) -> bool,
) -> Choice {
    let is_own = |server: &SocketAddr| {
        let listens = listeners.iter().any(|own| {
            own.port() == server.port()
                && (own.ip() == server.ip() || (own.ip().is_unspecified() && is_local(server.ip())))
        });
        listens || (server.port() == PORT && taken_over.contains(&server.ip()))
    };
    let (itself, mut servers): (Vec<SocketAddr>, Vec<SocketAddr>) = named.iter().copied().partition(is_own);
    servers.truncate(MOST_SERVERS);
    Choice { servers, itself }
}

fn of_resolv_conf() -> Result<Vec<SocketAddr>, String> {
    match hickory_resolver::system_conf::read_system_conf() {
        Ok((config, _)) => Ok(config.name_servers().iter().map(|server| SocketAddr::new(server.ip, PORT)).collect()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn it_never_asks_itself() {
        let all = |texts: &[&str]| -> Vec<SocketAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let named = all(&["169.254.20.10:53", "192.0.2.1:53", "192.0.2.11:53", "192.0.2.11:54", "10.96.0.10:53"]);
        let is_local = |address: IpAddr| address == "192.0.2.11".parse::<IpAddr>().unwrap();
        let left = |own: &[&str], taken_over: &[&str]| {
            let taken_over: Vec<IpAddr> = taken_over.iter().map(|text| text.parse().unwrap()).collect();
            choose(&named, &all(own), &taken_over, is_local).servers
        };
        let of = |servers: &[&str]| all(servers);
        assert_eq!(
            left(&["169.254.20.10:53"], &[]),
            of(&["192.0.2.1:53", "192.0.2.11:53", "192.0.2.11:54", "10.96.0.10:53"])
        );
        assert_eq!(
            left(&["0.0.0.0:53"], &[]),
            of(&["169.254.20.10:53", "192.0.2.1:53", "192.0.2.11:54", "10.96.0.10:53"])
        );
        assert_eq!(
            left(&["169.254.20.10:53", "192.0.2.11:53"], &["10.96.0.10"]),
            of(&["192.0.2.1:53", "192.0.2.11:54"])
        );
    }
}
