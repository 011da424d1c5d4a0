//! Conntrack has places left.

use crate::doctor::facts::Facts;
use crate::doctor::{Finding, Severity};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let (Some(used), Some(most)) = (facts.tracked_connections, facts.number("net/netfilter/nf_conntrack_max")) else {
        return Vec::new();
    };
    // 0 means no limit.
    let Some(percent) = (used * 100).checked_div(most) else { return Vec::new() };
    let severity = match percent {
        0..70 => return Vec::new(),
        70..95 => Severity::Warning,
        _ => Severity::Error,
    };
    vec![Finding::new(
        severity,
        "net.netfilter.nf_conntrack_max",
        format!("{used} of {most} connections are in use ({percent} %); beyond that the kernel drops new ones"),
        "raise conntrack.maxPerCore or conntrack.min in the configuration, or shorten the timeouts of UDP",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_found_before_it_drops() {
        let node = |used: u64, most: &str| Facts {
            tracked_connections: Some(used),
            settings: [("net/netfilter/nf_conntrack_max".to_owned(), most.to_owned())].into(),
            ..Facts::default()
        };
        assert_eq!(check(&node(69, "100")), []);
        assert_eq!(check(&node(70, "100"))[0].severity, Severity::Warning);
        assert_eq!(check(&node(100, "100"))[0].severity, Severity::Error);
        assert_eq!(check(&node(100, "0")), []);
    }
}
