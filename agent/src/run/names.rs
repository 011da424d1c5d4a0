//! The DNS server beside the proxy: it gets its part of each event before the
//! sync loop gets the event, and never holds one up.

use std::future::pending;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::sync::mpsc;
use vmap_proxy_dns::{DnsMetrics, DnsServer, Options, Update, Upstream};

use super::EVENT_QUEUE;
use super::name_take_over::TakeOver;
use crate::files::follow::changed;
use crate::metrics::Metrics;
use crate::source::Event;

/// The file that names the upstream servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The running server.
#[derive(Debug)]
pub(super) struct Names {
    /// Before the server, so that packets go elsewhere before it ends.
    _take_over: Option<TakeOver>,
    server: DnsServer,
    /// Whether `/etc/resolv.conf` names the upstream servers.
    follows_resolv_conf: bool,
    /// Whether it was reported that the server has ended.
    lost: AtomicBool,
}

impl Names {
    /// Starts the server, unless it is off. A failure is logged, and costs names
    /// only.
    pub(super) fn start(options: Option<&Options>, metrics: Metrics) -> (Option<Self>, Metrics) {
        let Some(options) = options else { return (None, metrics) };
        let counters = DnsMetrics::new(options.zone.domain());
        match DnsServer::start(options.clone(), counters.clone()) {
            Ok(server) => {
                let follows_resolv_conf = options.upstream == Upstream::ResolvConf;
                let names = Self {
                    _take_over: take_over(options, &server),
                    server,
                    follows_resolv_conf,
                    lost: AtomicBool::new(false),
                };
                (Some(names), metrics.with_dns(counters))
            }
            Err(error) => {
                tracing::error!("{error}");
                (None, metrics)
            }
        }
    }

    /// The addresses of this node, whose clients are answered.
    pub(super) fn set_addresses(&self, addresses: &[IpAddr]) {
        self.send(Update::NodeAddresses(addresses.to_vec()));
    }

    fn take(&self, event: &mut Event) {
        match event {
            Event::ListStarted(kind) => self.send(Update::ListStarted(*kind)),
            Event::ListCompleted(kind) => self.send(Update::ListCompleted(*kind)),
            Event::Synced => self.send(Update::Complete),
            Event::Changes(changes) => {
                let named = changes.iter_mut().filter_map(|change| {
                    let content = change.take_names()?;
                    Some((change.object().clone(), content))
                });
                self.send(Update::Changes(named.collect()));
            }
            Event::Degraded(_) => {}
        }
    }

    fn send(&self, update: Update) {
        if !self.server.update(update) && !self.lost.swap(true, Ordering::Relaxed) {
            tracing::error!("the DNS server ended unexpectedly, names are not served until the next start; rules are");
        }
    }
}

fn take_over(options: &Options, server: &DnsServer) -> Option<TakeOver> {
    let service = options.take_over.as_ref()?;
    let started = TakeOver::start(server.taken_over());
    let report = |error: &std::io::Error| {
        tracing::error!("DNS: {service} is not taken over: {error}; its endpoints answer until the next start");
    };
    started.inspect_err(report).ok()
}

/// Has the server read `/etc/resolv.conf` again whenever it changes. Never ends.
pub(super) async fn follow_resolv_conf(names: Option<&Names>) {
    if let Some(names) = names.filter(|names| names.follows_resolv_conf) {
        loop {
            changed(Path::new(RESOLV_CONF)).await;
            names.send(Update::ResolvConf);
        }
    }
    pending().await
}

/// Takes the names out of the events on their way. Without a server the events
/// go their way as before.
pub(super) fn follow(
    names: Option<&Names>,
    mut received: mpsc::Receiver<Event>,
) -> (mpsc::Receiver<Event>, LocalBoxFuture<'_, ()>) {
    let Some(names) = names else { return (received, pending().boxed_local()) };
    let (passed, listed) = mpsc::channel(EVENT_QUEUE);
    let follow = async move {
        while let Some(mut event) = received.recv().await {
            names.take(&mut event);
            if passed.send(event).await.is_err() {
                break;
            }
        }
        // The source or the sync loop ended, and notices by itself.
        drop(passed);
        pending().await
    };
    (listed, follow.boxed_local())
}
