//! Ends TCP connections to endpoints that are gone: both sides get a reset with
//! their next packet, and then the tracked entries go.
//!
//! The connections are put into a set of a side table, which the kernel deletes
//! with its owner. It exists only while there is something to reset, so that
//! packets meet its rules at no other time.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Endpoint, Family, Protocol};
use vmap_proxy_compiler::ruleset::chains::Hook;
use vmap_proxy_compiler::ruleset::target::FrontendKey;
use vmap_proxy_wire::conntrack::DumpFilter;
use vmap_proxy_wire::message::Request;
use vmap_proxy_wire::nf_tables::side_table::{SideRule, SideTable, SideVerdict};

use super::{Conntrack, ConntrackError};
use crate::netlink::{SideTables, SocketError};
use crate::sync::gone::GoneEndpoints;

/// The side table.
pub const RESETS_TABLE: &str = "vmap-proxy-resets";

/// For how long packets of a connection are answered with a reset before its
/// entry is deleted: most clients that wait for an answer send something within
/// this time.
pub const WINDOW: Duration = Duration::from_secs(30);

/// Connections in the set of one family, at most; others go on.
const MOST: usize = 65_536;

/// Connections in one message.
const AT_ONCE: usize = 512;

/// The set of connections.
const SET: &str = "gone";

/// Every packet meets one of them, whichever end is this node.
const HOOKS: [Hook; 3] = [Hook::Input, Hook::Forward, Hook::Output];

/// Before the filters of others, which may drop such packets.
const PRIORITY: i32 = -1;

/// Connections could not be reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The tracked connections can't be read or deleted.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// The side table can't be made.
    #[error("table {RESETS_TABLE} can't be programmed: {0}")]
    Table(#[from] SocketError),
}

/// The endpoints that wait for the end of their grace, and the connections that
/// are being reset.
pub struct Resets {
    grace: Duration,
    window: Duration,
    waiting: BTreeMap<(ServiceName, Endpoint), Grace>,
    active: Option<Active>,
}

/// The time until which the connections to an endpoint go on, and the frontends
/// that led to it.
type Grace = (Instant, Arc<[FrontendKey]>);

/// Connections that are being reset.
struct Active {
    tables: SideTables,
    /// The families whose table exists, and the connections in its set.
    counts: HashMap<Family, usize>,
    /// The entries to delete, and when.
    ends: Vec<(Instant, Vec<Request>)>,
}

/// A connection to reset.
struct Found {
    pair: [(IpAddr, u16); 2],
    deletion: Request,
}

impl Resets {
    /// Connections go on for `grace` after their endpoint is gone.
    pub fn new(grace: Duration) -> Self {
        Self { grace, window: WINDOW, waiting: BTreeMap::new(), active: None }
    }

    /// Takes what became of endpoints at this time.
    pub fn take(&mut self, changes: &GoneEndpoints, now: Instant) {
        for (name, endpoint) in &changes.back {
            self.waiting.remove(&(name.clone(), *endpoint));
        }
        for (name, endpoint, frontends) in &changes.gone {
            self.waiting.insert((name.clone(), *endpoint), (now + self.grace, frontends.clone()));
        }
    }

    /// The time at which [`Self::advance`] has something to do.
    pub fn next(&self) -> Option<Instant> {
        let grace = self.waiting.values().map(|(due, _)| *due).min();
        let ends = self.active.iter().flat_map(|active| &active.ends).map(|(end, _)| *end).min();
        grace.into_iter().chain(ends).min()
    }

    /// Does what is due; returns the number of connections that are reset from
    /// now on.
    ///
    /// # Errors
    /// If the kernel refuses; the connections concerned go on.
    pub fn advance(&mut self, conntrack: &mut Conntrack, now: Instant) -> Result<usize, ResetError> {
        self.end(conntrack, now)?;
        let mut wanted: HashMap<Endpoint, Vec<Arc<[FrontendKey]>>> = HashMap::new();
        self.waiting.retain(|(_, endpoint), (due, frontends)| {
            let is_due = *due <= now;
            if is_due {
                wanted.entry(*endpoint).or_default().push(frontends.clone());
            }
            !is_due
        });
        if wanted.is_empty() {
            return Ok(0);
        }
        let mut count = 0;
        for family in Family::ALL {
            if wanted.keys().any(|endpoint| Family::of(endpoint.address) == family) {
                let found = find(conntrack, family, &wanted)?;
                count += found.len();
                self.begin(family, found, now)?;
            }
        }
        Ok(count)
    }

    /// Puts connections into the set.
    fn begin(&mut self, family: Family, mut found: Vec<Found>, now: Instant) -> Result<(), ResetError> {
        if found.is_empty() {
            return Ok(());
        }
        let active = match &mut self.active {
            Some(active) => active,
            None => {
                let (counts, ends) = (HashMap::new(), Vec::new());
                self.active.insert(Active { tables: SideTables::open()?, counts, ends })
            }
        };
        let table = SideTable { name: RESETS_TABLE, family };
        let mut requests = Vec::new();
        let count = active.counts.get(&family).copied();
        if count.is_none() {
            requests.extend(skeleton(&table));
        }
        let free = MOST.saturating_sub(count.unwrap_or(0));
        if found.len() > free {
            tracing::warn!(
                "{} connections to endpoints that are gone go on: {MOST} are being reset",
                found.len() - free
            );
            found.truncate(free);
        }
        let pairs: Vec<[(IpAddr, u16); 2]> = found.iter().map(|found| found.pair).collect();
        requests.extend(pairs.chunks(AT_ONCE).map(|pairs| table.add_connections(SET, pairs)));
        active.tables.submit(&requests)?;
        *active.counts.entry(family).or_default() += found.len();
        active.ends.push((now + self.window, found.into_iter().map(|found| found.deletion).collect()));
        Ok(())
    }

    /// Deletes entries whose window is over, and the tables with the last of
    /// them.
    fn end(&mut self, conntrack: &mut Conntrack, now: Instant) -> Result<(), ResetError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let over: Vec<_> = active.ends.extract_if(.., |(end, _)| *end <= now).collect();
        if active.ends.is_empty() {
            self.active = None;
        }
        for (_, deletions) in over {
            conntrack.delete(&deletions)?;
        }
        Ok(())
    }
}

/// The connections that went through one of the frontends to the endpoint.
fn find(
    conntrack: &mut Conntrack,
    family: Family,
    wanted: &HashMap<Endpoint, Vec<Arc<[FrontendKey]>>>,
) -> Result<Vec<Found>, ConntrackError> {
    let tcp = DumpFilter { family, protocol: Some(Protocol::Tcp), port: None, address: None };
    conntrack.list_matching(tcp, |connection| {
        if !connection.translated || connection.in_zone || !connection.is_open() {
            return None;
        }
        let endpoint = Endpoint { address: connection.endpoint.ip(), port: connection.endpoint.port() };
        let (address, port) = (connection.destination.ip(), connection.destination.port());
        let frontend = FrontendKey { address, protocol: connection.protocol, port };
        let is_wanted = wanted.get(&endpoint)?.iter().any(|frontends| frontends.contains(&frontend));
        let at = |address: std::net::SocketAddr| (address.ip(), address.port());
        is_wanted
            .then(|| Found { pair: [at(connection.client), at(connection.endpoint)], deletion: connection.deletion() })
    })
}

fn skeleton(table: &SideTable<'_>) -> Vec<Request> {
    let mut requests = vec![table.make(), table.connections(SET, 1)];
    for hook in HOOKS {
        let chain = hook.keyword();
        requests.push(table.chain(chain, Some((hook, PRIORITY))));
        let is_gone = |rule: &mut SideRule<'_>| {
            rule.protocol(Protocol::Tcp);
            rule.is_among(SET);
        };
        requests.push(table.rule(chain, is_gone, SideVerdict::ResetTcp));
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_comes_back_within_its_grace_is_forgotten() {
        let mut resets = Resets::new(Duration::from_secs(10));
        let endpoint = Endpoint { address: "10.244.1.5".parse().unwrap(), port: 8080 };
        let name = ServiceName::new("shop", "cart");
        let now = Instant::now();
        let gone = GoneEndpoints { gone: vec![(name.clone(), endpoint, Arc::default())], back: Vec::new() };
        resets.take(&gone, now);
        assert_eq!(resets.next(), Some(now + Duration::from_secs(10)));
        resets.take(&GoneEndpoints { gone: Vec::new(), back: vec![(name, endpoint)] }, now);
        assert_eq!(resets.next(), None);
    }
}
