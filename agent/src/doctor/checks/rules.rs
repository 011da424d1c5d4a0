//! The kernel takes the rules of both families.

use vmap_proxy_compiler::ruleset::Family;

use crate::doctor::facts::Facts;
use crate::doctor::probe::ProbeFailure;
use crate::doctor::{Finding, Severity};

/// The options of a kernel that our rules need, for people who build or trim one.
const OPTIONS: &str = "CONFIG_NF_TABLES_IPV4, _IPV6, CONFIG_NFT_CT, _NAT, _MASQ, _REJECT, _FIB_IPV4, _FIB_IPV6, _NUMGEN \
                       and CONFIG_NF_CONNTRACK";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    facts.without_ipv6.map(no_ipv6).into_iter().chain(loaded(facts)).collect()
}

fn no_ipv6(reason: &str) -> Finding {
    Finding::new(
        Severity::Note,
        "kernel, IPv6",
        format!("the node has no IPv6 ({reason}): Services are served over IPv4 alone"),
        "in a cluster with IPv6: undo that, and restart vmap-proxy",
    )
}

fn loaded(facts: &Facts) -> Vec<Finding> {
    let subject = "kernel";
    match &facts.rules.failed {
        Some(ProbeFailure::NfTables(error)) => vec![Finding::new(
            Severity::Error,
            subject,
            format!("nf_tables can't be used: {error}"),
            "make nf_tables available in that way; a container also needs the capability NET_ADMIN",
        )],
        Some(ProbeFailure::Namespace(error)) => vec![Finding::new(
            Severity::Note,
            subject,
            format!("not checked whether it takes the rules, because no network namespace could be made: {error}"),
            "run doctor as root, in a container with the capability SYS_ADMIN",
        )],
        None => facts
            .rules
            .refused
            .iter()
            .filter(|(family, _)| *family == Family::Ipv4 || facts.without_ipv6.is_none())
            .map(|(family, error)| {
                Finding::new(
                    Severity::Error,
                    format!("kernel, {family}"),
                    format!("it refuses the rules of {family}: {error}"),
                    error.lacking().map_or_else(all_modules, |lacking| lacking.remedy()),
                )
            })
            .collect(),
    }
}

fn all_modules() -> String {
    format!(
        "load the modules that the kernel has for nf_tables (modprobe nft_ct nft_nat nft_masq nft_reject nft_fib \
         nft_numgen); a kernel of your own needs {OPTIONS}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::probe::Probed;
    use crate::netlink::{CommitError, Lacking, Refusal};

    #[test]
    fn a_refused_family_is_an_error_and_a_missing_namespace_is_none() {
        let with = |rules| check(&Facts { rules, ..Facts::default() });
        assert_eq!(with(Probed::default()), []);
        let lacking = Lacking { module: Some("nft_fib_ipv6"), options: "CONFIG_NFT_FIB_IPV6" };
        for (lacking, remedy) in [(Some(lacking), "nft_fib_ipv6"), (None, "nft_numgen")] {
            let description = "no fib".to_owned();
            let failure = Refusal { operation: 0, span: 1, errno: libc::ENOENT, ext_ack: None, lacking, description };
            let error = CommitError::Refused { failures: vec![failure] };
            let refused = with(Probed { refused: vec![(Family::Ipv6, error)], failed: None });
            assert!(refused[0].severity == Severity::Error && refused[0].finding.contains("no fib"), "{refused:?}");
            assert!(refused[0].remedy.contains(remedy), "{refused:?}");
        }
        let error = CommitError::Refused { failures: Vec::new() };
        let rules = Probed { refused: vec![(Family::Ipv6, error)], failed: None };
        let found = check(&Facts { rules, without_ipv6: Some("switched off"), ..Facts::default() });
        assert!(found.len() == 1 && found[0].severity == Severity::Note, "{found:?}");
        let failed = |failure| with(Probed { refused: Vec::new(), failed: Some(failure) });
        assert_eq!(failed(ProbeFailure::Namespace("denied".to_owned()))[0].severity, Severity::Note);
        assert_eq!(failed(ProbeFailure::NfTables("absent".to_owned()))[0].severity, Severity::Error);
    }
}
