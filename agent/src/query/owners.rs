//! Which Service has a frontend, by the comments of the kernel's elements: works
//! without an agent.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde::Serialize;
use vmap_proxy_compiler::model::Family;
use vmap_proxy_compiler::ruleset::element::{Key, is_comment_of, is_cut};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::service::port_of_comment;
use vmap_proxy_compiler::ruleset::target::{Domain, FrontendKey, NodePortKey, Target};
use vmap_proxy_wire::nf_tables::OwnTable;

use crate::netlink::{Kernel, NetlinkError, families};

/// A service port; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Owner {
    /// The namespace of the Service.
    pub namespace: String,
    /// Its name. The kernel's comments are short: a long one ends with dots and a digest.
    pub name: String,
    /// The name of the port.
    pub port: String,
}

impl Owner {
    /// Parses the comment of an element, `namespace/name:port`.
    pub fn parse(comment: &str) -> Self {
        let [namespace, name, port] = port_of_comment(comment).unwrap_or(["", comment, ""]).map(str::to_owned);
        Self { namespace, name, port }
    }

    /// Returns whether its name is shortened: the kernel's comment had no place for it.
    pub fn is_cut(&self) -> bool {
        is_cut(&self.namespace) || is_cut(&self.name)
    }

    /// Returns whether it is this Service.
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        let own = match self.namespace.is_empty() {
            true => self.name.clone(),
            false => format!("{}/{}", self.namespace, self.name),
        };
        is_comment_of(&own, &format!("{namespace}/{name}"))
    }
}

/// The known frontends and their service ports.
#[derive(Debug)]
pub struct Owners {
    kernel: Kernel,
    own_addresses: HashSet<IpAddr>,
    known: HashMap<FrontendKey, Owner>,
}

impl Owners {
    /// None is known yet. NodePorts are served at `own_addresses`.
    ///
    /// # Errors
    /// If the kernel can't be spoken to.
    pub fn open(own_addresses: impl IntoIterator<Item = IpAddr>) -> Result<Self, NetlinkError> {
        Ok(Self { kernel: Kernel::open()?, own_addresses: own_addresses.into_iter().collect(), known: HashMap::new() })
    }

    /// The service port of a frontend, if it was [found](Self::find).
    pub fn of(&self, frontend: &FrontendKey) -> Option<&Owner> {
        self.known.get(frontend)
    }

    /// Returns whether the kernel has a frontend of a Service: lists all of them, which
    /// takes a second or more for 100,000.
    ///
    /// # Errors
    /// If the kernel can't be read.
    pub fn has(&mut self, namespace: &str, name: &str) -> Result<bool, NetlinkError> {
        for family in families() {
            if self.kernel.read_table(OwnTable::Main, family)?.is_none() {
                continue;
            }
            for domain in [Domain::Frontend, Domain::NodePort] {
                for map in [Map::Frontends(domain), Map::NoEndpoints(domain)] {
                    let (found, _) = self.kernel.read_contents(family, map)?;
                    let mut comments = found.iter().filter_map(|state| state.element.comment.as_deref());
                    if comments.any(|comment| Owner::parse(comment).is(namespace, name)) {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Looks up the frontends of a family that are not known yet.
    ///
    /// # Errors
    /// If the kernel can't be read.
    pub fn find(
        &mut self,
        family: Family,
        frontends: impl IntoIterator<Item = FrontendKey>,
    ) -> Result<(), NetlinkError> {
        let mut unknown: HashSet<FrontendKey> =
            frontends.into_iter().filter(|key| !self.known.contains_key(key)).collect();
        for domain in [Domain::Frontend, Domain::NodePort] {
            for map in [Map::Frontends(domain), Map::NoEndpoints(domain)] {
                let targets = self.targets(domain, &unknown);
                let keys: Vec<Key> = targets.keys().copied().map(Key::Target).collect();
                let (found, _) = self.kernel.look_up(family, map, &keys)?;
                for state in found {
                    let Key::Target(target) = state.element.key else { continue };
                    let owner = Owner::parse(state.element.comment.as_deref().unwrap_or_default());
                    for frontend in targets.get(&target).into_iter().flatten() {
                        unknown.remove(frontend);
                        self.known.insert(*frontend, owner.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// The elements under which frontends may be found.
    fn targets(&self, domain: Domain, frontends: &HashSet<FrontendKey>) -> HashMap<Target, Vec<FrontendKey>> {
        let mut targets: HashMap<Target, Vec<FrontendKey>> = HashMap::new();
        for frontend in frontends {
            let FrontendKey { address, protocol, port } = *frontend;
            let target = match domain {
                Domain::Frontend => Target::Frontend(*frontend),
                Domain::NodePort if self.own_addresses.contains(&address) => {
                    Target::NodePort(NodePortKey { protocol, port })
                }
                Domain::NodePort => continue,
            };
            targets.entry(target).or_default().push(*frontend);
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::ruleset::element::fit_comment;

    use super::*;

    #[test]
    fn a_long_name_is_known_by_its_beginning() {
        assert!(Owner::parse("shop/cart:http").is("shop", "cart"));
        assert!(!Owner::parse("shop/cart:http").is("shop", "car"));
        let long = |end: &str| format!("{}{end}", "very-long-".repeat(20));
        let comment = fit_comment(&format!("shop/{}", long("a"))).into_owned();
        assert!(Owner::parse(&comment).is_cut() && !Owner::parse("shop/a...b").is_cut());
        assert!(Owner::parse(&comment).is("shop", &long("a")) && !Owner::parse(&comment).is("shop", &long("b")));
        assert!(Owner::parse("shop/a?b:http").is("shop", "a\nb"));
    }
}
