//! Decides which Service holds a frontend that several claim: the oldest, then
//! the first by name. (In kube-proxy this is random, and decided again at every
//! sync.)

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::model::types::ServiceName;
use crate::ruleset::service::Claim;

/// A claimant, in the order of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claimant {
    created: i64,
    name: ServiceName,
}

/// The order in which Services win frontends: the oldest, then the first by
/// name.
pub(super) fn precedence(created: i64, name: &ServiceName) -> impl Ord {
    (created, name)
}

/// The reason why one Service has a frontend that another one wants, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It was created first.
    Older,
    /// It has no creation timestamp and the other one has.
    Undated,
    /// Both were created in the same second, and its name comes first.
    NameAtSameTime,
    /// Neither has a creation timestamp (as in manifests), and its name comes first.
    Name,
}

impl Reason {
    /// The reason, from the times of creation of the Service that has the frontend and
    /// of the one that wants it.
    pub fn of(holder: i64, wanting: i64) -> Self {
        match (holder, wanting) {
            (0, 0) => Self::Name,
            (0, _) => Self::Undated,
            _ if holder == wanting => Self::NameAtSameTime,
            _ => Self::Older,
        }
    }

    /// Returns whether the names decided.
    pub fn is_name(self) -> bool {
        matches!(self, Self::NameAtSameTime | Self::Name)
    }
}

impl fmt::Display for Reason {
    /// The predicate of a sentence about the Service that has the frontend.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Older => "is older",
            Self::Undated => "counts as older (it has no creationTimestamp)",
            Self::NameAtSameTime => "comes first by name (both were created at the same time)",
            Self::Name => "comes first by name (neither has a creationTimestamp)",
        })
    }
}

impl Ord for Claimant {
    fn cmp(&self, other: &Self) -> Ordering {
        precedence(self.created, &self.name).cmp(&precedence(other.created, &other.name))
    }
}

impl PartialOrd for Claimant {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The claims of one family. Nearly every frontend has one claimant.
#[derive(Debug, Default)]
pub struct Claims {
    holders: FxHashMap<Claim, Claimant>,
    /// In the order of precedence: any number of Services may ask for one frontend.
    waiting: FxHashMap<Claim, BTreeSet<Claimant>>,
}

impl Claims {
    /// Replaces the claims of one Service, each list with the time of creation
    /// that goes with it, and adds to `affected` every other Service that gains
    /// or loses a frontend by that.
    pub fn replace(
        &mut self,
        name: &ServiceName,
        (before, created_before): (&[Claim], i64),
        (now, created): (&[Claim], i64),
        affected: &mut Vec<ServiceName>,
    ) {
        let previous = Claimant { created: created_before, name: name.clone() };
        for claim in before {
            if let Some(heir) = self.release(*claim, &previous) {
                affected.push(heir);
            }
        }
        for claim in now {
            self.claim(*claim, Claimant { created, name: name.clone() }, affected);
        }
    }

    /// Adds claims of a Service; those that it has already stay. Returns the
    /// Services that lose a frontend by that.
    pub fn add(&mut self, name: &ServiceName, claims: &[Claim], created: i64) -> Vec<ServiceName> {
        let mut affected = Vec::new();
        self.replace(name, (&[], 0), (claims, created), &mut affected);
        affected
    }

    /// Gives up claims of a Service; returns the Services that gain a frontend.
    pub fn remove(&mut self, name: &ServiceName, claims: &[Claim], created: i64) -> Vec<ServiceName> {
        let mut affected = Vec::new();
        self.replace(name, (claims, created), (&[], 0), &mut affected);
        affected
    }

    /// Returns whether any claim has several claimants.
    pub fn any_contested(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns whether this Service has the frontend.
    pub fn holds(&self, claim: &Claim, name: &ServiceName) -> bool {
        self.holders.get(claim).is_some_and(|holder| holder.name == *name)
    }

    /// Returns the Service that holds the frontend.
    pub fn holder(&self, claim: &Claim) -> Option<&ServiceName> {
        self.holders.get(claim).map(|holder| &holder.name)
    }

    /// Returns the Service that holds the frontend, and why it has it and not one that
    /// was created then.
    pub fn holder_before(&self, claim: &Claim, created: i64) -> Option<(&ServiceName, Reason)> {
        self.holders.get(claim).map(|holder| (&holder.name, Reason::of(holder.created, created)))
    }

    /// Each claim that another Service holds, with the Service that wants it, the
    /// holder and the reason, in no order. The work depends on these alone.
    pub fn contested(&self) -> impl Iterator<Item = (&ServiceName, Claim, &ServiceName, Reason)> {
        self.waiting.iter().flat_map(|(claim, claimants)| {
            let holder = self.holders.get(claim);
            claimants.iter().filter_map(move |claimant| {
                Some((&claimant.name, *claim, &holder?.name, Reason::of(holder?.created, claimant.created)))
            })
        })
    }

    /// The Services that want the frontend while another one holds it, in the
    /// order in which they would get it.
    pub fn waiting(&self, claim: &Claim) -> impl Iterator<Item = &ServiceName> {
        self.waiting.get(claim).into_iter().flatten().map(|claimant| &claimant.name)
    }

    fn claim(&mut self, claim: Claim, claimant: Claimant, affected: &mut Vec<ServiceName>) {
        let Some(holder) = self.holders.get_mut(&claim) else {
            self.holders.insert(claim, claimant);
            return;
        };
        if holder.name == claimant.name {
            *holder = claimant;
            return;
        }
        let waits = if claimant < *holder {
            affected.push(holder.name.clone());
            std::mem::replace(holder, claimant)
        } else {
            claimant
        };
        self.waiting.entry(claim).or_default().insert(waits);
    }

    /// Gives up a claim. Returns the new holder of the frontend, if it changed.
    fn release(&mut self, claim: Claim, claimant: &Claimant) -> Option<ServiceName> {
        if !self.holds(&claim, &claimant.name) {
            let waiting = self.waiting.get_mut(&claim)?;
            if !waiting.remove(claimant) {
                waiting.retain(|other| other.name != claimant.name);
            }
            if waiting.is_empty() {
                self.waiting.remove(&claim);
            }
            return None;
        }
        let Some(waiting) = self.waiting.get_mut(&claim) else {
            self.holders.remove(&claim);
            return None;
        };
        let heir = waiting.pop_first();
        if waiting.is_empty() {
            self.waiting.remove(&claim);
        }
        let Some(heir) = heir else {
            self.holders.remove(&claim);
            return None;
        };
        let heir_name = heir.name.clone();
        self.holders.insert(claim, heir);
        Some(heir_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::ruleset::target::{NodePortKey, Target};

    const CLAIM: Claim = Claim::Serve(Target::NodePort(NodePortKey { protocol: Protocol::Tcp, port: 30080 }));

    #[test]
    fn the_oldest_wins_and_the_next_inherits() {
        let mut claims = Claims::default();
        let (young, old) = (ServiceName::new("shop", "a"), ServiceName::new("shop", "b"));
        let mut affected = Vec::new();
        claims.replace(&young, (&[], 0), (&[CLAIM], 20), &mut affected);
        assert!(affected.is_empty());
        claims.replace(&old, (&[], 0), (&[CLAIM], 10), &mut affected);
        assert_eq!(affected, std::slice::from_ref(&young));
        assert!(claims.holds(&CLAIM, &old) && !claims.holds(&CLAIM, &young));
        affected.clear();
        claims.replace(&old, (&[CLAIM], 10), (&[], 0), &mut affected);
        assert_eq!(affected, std::slice::from_ref(&young));
        assert!(claims.holds(&CLAIM, &young));
        claims.replace(&young, (&[CLAIM], 20), (&[], 0), &mut affected);
        assert_eq!(claims.holder(&CLAIM), None);
    }
}
