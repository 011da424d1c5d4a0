//! The Services and addresses that a sync touches, for the journal: a bounded
//! sample, gathered while the operations go by.

use std::net::IpAddr;

use arcstr::ArcStr;
use vmap_proxy_compiler::plan::{Action, Operation};
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key};
use vmap_proxy_compiler::ruleset::target::Target;

/// Maximum number of Services that are named.
const MAX_SERVICES: usize = 8;

/// Maximum number of addresses that are kept.
const MAX_ADDRESSES: usize = 64;

/// The elements of one Service that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TouchedService {
    /// `namespace/name`, or `node`.
    pub name: ArcStr,
    /// Added elements.
    pub added: usize,
    /// Removed elements.
    pub removed: usize,
}

/// What a sync touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// The first Services.
    pub services: Vec<TouchedService>,
    /// Whether there were more.
    pub more_services: bool,
    /// The first addresses of frontends and endpoints.
    pub addresses: Vec<IpAddr>,
    /// Whether there were more.
    pub more_addresses: bool,
    /// Where the last operation was counted: the next is mostly of the same
    /// Service.
    last: usize,
}

impl Touched {
    /// Counts an operation.
    pub(super) fn note(&mut self, operation: &Operation) {
        let (element, is_added) = match &operation.action {
            Action::AddElement(element) => (element, true),
            Action::DeleteElement(element) => (element, false),
            _ => return,
        };
        if let Some(owner) = &operation.owner {
            self.note_owner(owner, is_added);
        }
        self.note_addresses(element);
    }

    fn note_owner(&mut self, owner: &ArcStr, is_added: bool) {
        let is_last = self.services.get(self.last).is_some_and(|last| ArcStr::ptr_eq(&last.name, owner));
        if !is_last {
            match self.services.iter().position(|service| service.name == *owner) {
                Some(position) => self.last = position,
                None if self.services.len() == MAX_SERVICES => {
                    self.more_services = true;
                    return;
                }
                None => {
                    self.last = self.services.len();
                    self.services.push(TouchedService { name: owner.clone(), added: 0, removed: 0 });
                }
            }
        }
        if let Some(service) = self.services.get_mut(self.last) {
            *(if is_added { &mut service.added } else { &mut service.removed }) += 1;
        }
    }

    fn note_addresses(&mut self, element: &Element) {
        if self.more_addresses {
            return;
        }
        let of_key = match element.key {
            Key::Address(address) => Some(address),
            Key::Target(Target::Frontend(key)) | Key::Slot(Target::Frontend(key), _) | Key::SourceRange(key, _) => {
                Some(key.address)
            }
            Key::Hairpin(endpoint, _) => Some(endpoint.address),
            Key::Target(Target::NodePort(_)) | Key::Slot(Target::NodePort(_), _) => None,
            Key::Prefix(_) | Key::Affinity(..) | Key::List(_) => None,
        };
        let of_data = match element.data {
            Data::Endpoint(endpoint) => Some(endpoint.address),
            _ => None,
        };
        for address in of_key.into_iter().chain(of_data) {
            if self.addresses.contains(&address) {
                continue;
            }
            if self.addresses.len() == MAX_ADDRESSES {
                self.more_addresses = true;
                return;
            }
            self.addresses.push(address);
        }
    }
}
