//! Ranges of addresses do not overlap.

use crate::doctor::facts::Facts;
use crate::doctor::{Finding, Severity};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let ranges = &facts.cluster_cidrs;
    let mut findings = Vec::new();
    for (index, one) in ranges.iter().enumerate() {
        for other in ranges.iter().skip(index + 1).filter(|other| one.contains(*other) || other.contains(one)) {
            findings.push(Finding::new(
                Severity::Warning,
                "clusterCIDR",
                format!("{one} and {other} overlap"),
                "name each pod range once; only the first of each family counts",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_are_named() {
        let node = |ranges: [&str; 2]| Facts {
            cluster_cidrs: ranges.map(|range| range.parse().unwrap()).to_vec(),
            ..Facts::default()
        };
        assert_eq!(check(&node(["10.244.0.0/16", "fd00::/48"])), []);
        let found = check(&node(["10.244.0.0/16", "10.244.3.0/24"]));
        assert!(found[0].finding.contains("10.244.3.0/24"), "{found:?}");
    }
}
