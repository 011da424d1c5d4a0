//! Answers "where does this packet go, and why?", and "why is this Service not
//! served?", with the object and the field behind each decision.
//!
//! Nothing is kept for that. The [store](crate::model::store) and the
//! [planner](crate::plan::planner) have the state; an answer takes the part of
//! the rule set that the packet can meet ([`Planner::excerpt`]), lets
//! [`evaluate`](crate::evaluate) find the path, and asks
//! [`select::judge`](crate::select::judge) about each endpoint. So an answer
//! costs the size of one Service, whatever the size of the cluster, and there is
//! no second description of any policy.
//!
//! * [`answer`]: the answers, as they go out in JSON;
//! * `packet`: one packet;
//! * `decisions`: from the rules and elements on its path to their causes;
//! * `service`: one Service;
//! * `endpoints`: which endpoints of a service port serve, and why the others do
//!   not;
//! * `fields`: names of objects and fields.

pub mod answer;
mod decisions;
mod endpoints;
mod fields;
mod packet;
mod service;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::evaluate::{Host, Packet};
use crate::model::Store;
use crate::model::slice::NameDigest;
use crate::model::types::ServiceName;
use crate::plan::Planner;
use crate::ruleset::Family;
use crate::ruleset::service::all_frontends;
use crate::ruleset::target::Target;

pub use answer::{Cause, Code, Decision, Detail, Explanation, ServiceAnswer};

/// The state that is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The objects.
    pub store: &'a Store,
    /// The programmed state, and the configuration.
    pub planner: &'a Planner,
    /// The addresses of this node.
    pub host: &'a Host,
}

impl Known<'_> {
    /// Explains the fate of the first packet of a connection. The work is linear
    /// in the size of the Services that hold its frontend.
    ///
    /// `about` names a Service that may have the destination address though the
    /// packet meets no frontend of it: see [`Self::find_address`].
    pub fn packet(&self, packet: &Packet, about: Option<&ServiceName>) -> Explanation {
        packet::explain(self, packet, about)
    }

    /// [`Self::packet`] that looks through all Services for the one that has the
    /// destination address, if the packet meets no frontend. For one answer from
    /// files; an agent lets its client ask for pages.
    pub fn packet_of_any(&self, packet: &Packet) -> Explanation {
        let answer = self.packet(packet, None);
        if answer.service.is_some() {
            return answer;
        }
        let page = self.find_address(packet.destination, None, usize::MAX);
        match page.found {
            Some(name) => self.packet(packet, Some(&name)),
            None => answer,
        }
    }

    /// Explains a Service: its frontends, its endpoints, and whatever of it is
    /// not programmed.
    pub fn service(&self, name: &ServiceName) -> ServiceAnswer {
        service::explain(self, name, Detail::All)
    }

    /// [`Self::service`] with less in the answer, for a list.
    pub fn service_in(&self, name: &ServiceName, detail: Detail) -> ServiceAnswer {
        service::explain(self, name, detail)
    }

    /// Looks for a Service with this address (cluster IP, external IP or load
    /// balancer address) among the next `count` Services behind `after`. All
    /// Services that have an address count, programmed or not.
    pub fn find_address(&self, address: IpAddr, after: Option<&ServiceName>, count: usize) -> AddressPage {
        let family = Family::of(address);
        let mut page = AddressPage::default();
        for (seen, (name, entry)) in self.store.after(after).enumerate() {
            if seen == count {
                return page;
            }
            page.last = Some(name.clone());
            let has_address = entry.service[family].as_ref().is_some_and(|service| {
                service.cluster_ip == address
                    || service.external_ips.contains(&address)
                    || service.load_balancer_ips.contains(&address)
            });
            let unserved = || entry.unserved().into_iter().flat_map(|unserved| &unserved.addresses);
            if has_address || unserved().any(|(one, _)| *one == address) {
                page.found = Some(name.clone());
                return page;
            }
        }
        page.last = None;
        page
    }

    /// Looks for the address of a Pod in a family among the slices of the next `count`
    /// Services of its namespace behind `after`.
    pub fn find_pod(
        &self,
        (namespace, name): (&str, &str),
        family: Family,
        after: Option<&ServiceName>,
        count: usize,
    ) -> PodPage {
        let pod = NameDigest::of(name);
        let mut page = PodPage::default();
        if pod == NameDigest::NONE {
            return page;
        }
        let mut endpoints = 0;
        // The empty name comes before all others.
        let beginning = after.cloned().unwrap_or_else(|| ServiceName::new(namespace, ""));
        for (seen, (name, entry)) in self.store.after(Some(&beginning)).enumerate() {
            if name.namespace() != namespace {
                break;
            }
            if seen == count || endpoints > MOST_ENDPOINTS {
                return page;
            }
            for slice in entry.slices().filter(|slice| slice.family() == family) {
                endpoints += slice.endpoints.len();
                if let Some(found) = slice.endpoints.iter().find(|endpoint| endpoint.pod == pod) {
                    return PodPage { address: Some(found.address), last: None };
                }
            }
            page.last = Some(name.clone());
        }
        page.last = None;
        page
    }

    /// The first frontend of a port of a Service, to have a destination for "a
    /// packet to this Service": the cluster IP. `port` is a number or a name of a
    /// port; the first port if it is absent.
    pub fn destination(&self, name: &ServiceName, port: Option<&str>, family: Option<Family>) -> Option<Target> {
        let entry = self.store.get(name)?;
        let families = family.map_or_else(|| Family::ALL.to_vec(), |family| vec![family]);
        let service = families.into_iter().find_map(|family| entry.service[family].as_ref())?;
        let is_wanted = |position: usize| {
            let Some(found) = service.ports.get(position) else { return false };
            port.is_none_or(|text| *found.name == *text || found.port.to_string() == text)
        };
        let mut frontends = all_frontends(service).into_iter().filter(|frontend| is_wanted(frontend.position));
        let is_cluster_ip =
            |target: &Target| matches!(target, Target::Frontend(key) if key.address == service.cluster_ip);
        frontends.find(|frontend| is_cluster_ip(&frontend.target)).map(|frontend| frontend.target)
    }
}

/// Endpoints that a search for a Pod looks at, after which a page ends.
const MOST_ENDPOINTS: usize = 16_384;

/// The result of a search for a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodPage {
    /// Its address.
    pub address: Option<IpAddr>,
    /// The last Service that was looked at, if there are more behind it.
    pub last: Option<ServiceName>,
}

/// The result of a search for an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressPage {
    /// The Service that has it.
    pub found: Option<ServiceName>,
    /// The last Service that was looked at, if there are more behind it.
    pub last: Option<ServiceName>,
}
