//! The assignment of endpoints to slots.

use rustc_hash::FxHashSet;

use crate::model::{Endpoint, EndpointList};

/// Puts `wanted` into slots 0..n-1, moving as few endpoints as possible: an
/// endpoint that stays keeps its slot, a new one takes a vacated slot, and if
/// the list got shorter the last ones move into the holes.
///
/// `wanted` holds no endpoint twice.
pub fn assign(current: impl Iterator<Item = Endpoint> + Clone, wanted: &[Endpoint]) -> EndpointList {
    if current.clone().next().is_none() || current.clone().eq(wanted.iter().copied()) {
        return wanted.into();
    }
    let wanted_set: FxHashSet<Endpoint> = wanted.iter().copied().collect();
    let mut placed = FxHashSet::default();
    let mut slots: Vec<Option<Endpoint>> = vec![None; wanted.len()];
    let mut homeless = Vec::new();
    for (slot, endpoint) in current.enumerate() {
        // The slots adopted from the kernel may contain one endpoint twice.
        if !wanted_set.contains(&endpoint) || !placed.insert(endpoint) {
            continue;
        }
        match slots.get_mut(slot) {
            Some(place) => *place = Some(endpoint),
            None => homeless.push(endpoint),
        }
    }
    homeless.extend(wanted.iter().filter(|endpoint| !placed.contains(endpoint)));
    let mut homeless = homeless.into_iter();
    let assigned: Vec<Endpoint> = slots.into_iter().filter_map(|slot| slot.or_else(|| homeless.next())).collect();
    assigned.as_slice().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(hosts: &[u8]) -> Vec<Endpoint> {
        hosts.iter().map(|host| Endpoint { address: [10, 244, 0, *host].into(), port: 80 }).collect()
    }

    #[test]
    fn who_stays_keeps_its_slot() {
        for (current, wanted, expected) in [
            (vec![], vec![1, 2, 3], vec![1, 2, 3]),
            (vec![3, 1, 2], vec![1, 2, 3], vec![3, 1, 2]),
            (vec![1, 2, 3], vec![1, 3, 4], vec![1, 4, 3]),
            (vec![1, 2, 3], vec![1, 2, 3, 4], vec![1, 2, 3, 4]),
            (vec![1, 2, 3], vec![2, 3], vec![3, 2]),
            (vec![1, 2, 3, 4], vec![4], vec![4]),
            (vec![1, 1, 2], vec![1, 2, 3], vec![1, 3, 2]),
            (vec![1, 2], vec![], vec![]),
        ] {
            let assigned = assign(list(&current).into_iter(), &list(&wanted));
            assert!(assigned.iter().eq(list(&expected)), "{current:?} -> {wanted:?}: {assigned:?}");
        }
    }
}
