//! Names the Services with addresses of a family that this node does not serve.

use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::ruleset::Family;

use crate::sync::Syncer;
use crate::sync::report::SyncReport;

/// The most Services that a line names.
const NAMED: usize = 3;

/// Logs them: after the first sync all of them, then those that are new. The work after later syncs depends on the change.
pub(super) fn log_unserved(syncer: &Syncer, report: &SyncReport, first: bool) {
    let served = syncer.families();
    for family in Family::ALL.into_iter().filter(|family| !served.contains(family)) {
        let names = if first { all(syncer, family) } else { new(report, family) };
        if !names.is_empty() {
            let is_served =
                |name: &ServiceName| served.iter().any(|family| syncer.planner().compiled(name, *family).is_some());
            tracing::warn!("{}", line(family, names, is_served));
        }
    }
}

fn all(syncer: &Syncer, family: Family) -> Vec<&ServiceName> {
    syncer.planner().all_compiled(family).map(|(name, _)| name).collect()
}

fn new(report: &SyncReport, family: Family) -> Vec<&ServiceName> {
    let is_new = report.changed.iter().filter(|change| change.family == family && change.before.is_none());
    is_new.filter(|change| change.after.is_some()).map(|change| &change.name).collect()
}

/// Services that nothing serves come first.
fn line(family: Family, mut names: Vec<&ServiceName>, is_served: impl Fn(&ServiceName) -> bool) -> String {
    names.sort_by_cached_key(|name| (is_served(name), (*name).clone()));
    let lost = names.iter().take_while(|name| !is_served(name)).count();
    let mut listed: Vec<String> = names.iter().take(NAMED).map(ToString::to_string).collect();
    listed.extend(names.len().checked_sub(NAMED + 1).map(|more| format!("{} more", more + 1)));
    let (services, have) = if names.len() == 1 { ("Service", "has") } else { ("Services", "have") };
    let lost = if lost == 0 { String::new() } else { format!(" ({lost} without any other)") };
    format!(
        "{} {services} {have} {family} addresses, which this node does not serve{lost}: {}",
        names.len(),
        listed.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_nothing_serves_are_named_first() {
        let names = ["a/both", "b/both", "c/alone", "d/both", "e/both"].map(|name| ServiceName::parse(name).unwrap());
        let is_served = |name: &ServiceName| name != &names[2];
        assert_eq!(
            line(Family::Ipv6, names.iter().collect(), is_served),
            "5 Services have IPv6 addresses, which this node does not serve (1 without any other): c/alone, a/both, b/both, \
             2 more"
        );
        assert_eq!(
            line(Family::Ipv6, vec![&names[0]], is_served),
            "1 Service has IPv6 addresses, which this node does not serve: a/both"
        );
    }
}
