//! The clock of the time of day jumps, as after a suspend, or when a node without a clock of its own first hears of the
//! time. Nothing of the agent may wait for it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use vmap_proxy_testbed::api_objects::{Endpoint, slice};
use vmap_proxy_testbed::apiserver::Resource;
use vmap_proxy_testbed::end_to_end::{CLIENT_POD, local_pod};
use vmap_proxy_testbed::skip::skipped_outside_ci;

use crate::connection::flags;
use crate::servers::HEALTHZ;
use crate::trouble::lists;
use crate::{apply, apply_service, cluster};

const YEAR: i64 = 365 * 24 * 3600;

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let mut cluster = cluster();
    let library = cluster.directory().join("moved_clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/moved_clock.c");
    match Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            skipped_outside_ci(format_args!("cc is missing: {error}"));
            return;
        }
    }
    let offset = cluster.directory().join("offset");
    fs::write(&offset, "0").unwrap();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let mut flags = flags(format!("--kubeconfig={}", cluster.api.kubeconfig().display())).to_vec();
    flags.push("-v=2".to_owned());
    let variables = [("LD_PRELOAD", library.to_str().unwrap()), ("CLOCK_OFFSET", offset.to_str().unwrap())];
    let agent = cluster.agent_in_environment(&flags, &variables);
    agent.wait_until_ready();
    let before = agent.log().len();
    for (jump, pod) in [(10 * YEAR, 2), (-30 * YEAR, 3), (0, 1), (3600, 2), (-3600, 3), (0, 1)] {
        fs::write(&offset, jump.to_string()).unwrap();
        apply(&cluster, &[slice("shop", &[Endpoint::local(pod)])]);
        cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(pod)]);
        cluster.eventually_replies(HEALTHZ, "/healthz", |reply| reply.status == 200);
    }
    let log = agent.log().split_off(before);
    // The library was loaded: the lines are of several years.
    let years: BTreeSet<_> = log.iter().filter_map(|line| line.get(..4)?.parse::<u16>().ok()).collect();
    assert!(years.len() >= 3, "{years:?}");
    assert!(!log.iter().any(|line| line.contains("WARN") || line.contains("ERROR")), "{log:#?}");
    let Some(double) = cluster.api.double() else { return };
    for resource in Resource::ALL {
        assert_eq!(lists(double.server.requests(), resource), 1, "{resource} was listed again");
    }
    agent.stop();
}
