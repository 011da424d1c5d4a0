//! A kernel that loads no modules any more. That lasts until the machine ends, so this is a suite of its own:
//! `scripts/kernel-matrix --suites locked 6.1`.

use vmap_proxy_lab::NetNs;

use super::lacking::{error_of, without};

#[test]
fn modules_that_cannot_be_loaded_any_more_are_named() {
    let Some(_without) = without(&[]) else { return };
    std::fs::write("/proc/sys/kernel/modules_disabled", "1").unwrap();
    let error = error_of(&NetNs::new("node").unwrap());
    for text in ["no nf_tables", "kernel.modules_disabled is 1", "/etc/modules-load.d"] {
        assert!(error.contains(text), "{error}");
    }
}
