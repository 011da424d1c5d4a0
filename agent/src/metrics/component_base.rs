//! The metrics of every Kubernetes component: its version and its feature gates
//! (`staging/src/k8s.io/component-base/metrics`).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::version::{GIT_VERSION, KUBERNETES_MAJOR, KUBERNETES_MINOR, PLATFORM};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildInfo {
    build_date: &'static str,
    compiler: &'static str,
    git_commit: &'static str,
    git_tree_state: &'static str,
    git_version: &'static str,
    go_version: &'static str,
    major: &'static str,
    minor: &'static str,
    platform: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Feature {
    name: &'static str,
    stage: &'static str,
}

/// Gates of kube-proxy 1.36 whose behaviour is built in here, with their stage
/// (empty: generally available).
const FEATURES: [(&str, &str); 6] = [
    ("ComponentFlagz", "BETA"),
    ("ComponentStatusz", "BETA"),
    ("MultiCIDRServiceAllocator", ""),
    ("NFTablesProxyMode", ""),
    ("PreferSameTrafficDistribution", ""),
    ("TopologyAwareHints", ""),
];

/// Adds `kubernetes_build_info` and `kubernetes_feature_enabled`.
pub(super) fn register(registry: &mut Registry) {
    let build: Family<BuildInfo, Gauge> = Family::default();
    let info = BuildInfo {
        build_date: "",
        compiler: "rustc",
        git_commit: "",
        git_tree_state: "",
        git_version: GIT_VERSION,
        go_version: "",
        major: KUBERNETES_MAJOR,
        minor: KUBERNETES_MINOR,
        platform: PLATFORM,
    };
    build.get_or_create(&info).set(1);
    registry.register(
        "kubernetes_build_info",
        "A metric with a constant '1' value labeled by the version of kube-proxy that is stood in for",
        build,
    );
    let features: Family<Feature, Gauge> = Family::default();
    for (name, stage) in FEATURES {
        features.get_or_create(&Feature { name, stage }).set(1);
    }
    registry.register("kubernetes_feature_enabled", "The name and stage of a k8s feature that is built in", features);
}

#[cfg(test)]
mod tests {
    use crate::metrics::{Format, Metrics};

    #[test]
    fn version_and_features_are_named_as_kubernetes_names_them() {
        let text = Metrics::new().encode(Format::Prometheus, &[]);
        let info = text.lines().find(|line| line.starts_with("kubernetes_build_info{")).unwrap_or_default();
        assert!(info.contains(r#"git_version="v1.36.0+vmap-proxy."#) && info.ends_with(" 1"), "{text}");
        let feature = r#"kubernetes_feature_enabled{name="NFTablesProxyMode",stage=""} 1"#;
        assert!(text.lines().any(|line| line == feature), "{text}");
    }
}
