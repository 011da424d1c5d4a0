//! The version of this program, and of the kube-proxy that it replaces.

/// Major version of the Kubernetes whose kube-proxy is matched.
pub const KUBERNETES_MAJOR: &str = "1";

/// Its minor version.
pub const KUBERNETES_MINOR: &str = "36";

/// Both versions in Kubernetes' form. The part after the plus sign is ours, as
/// in distributions. Alerts about mixed versions use the part before it.
pub const GIT_VERSION: &str = concat!("v1.36.0+vmap-proxy.", env!("CARGO_PKG_VERSION"));

/// The platform in Go's notation.
pub const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else if cfg!(target_arch = "x86_64") {
    "linux/amd64"
} else {
    "linux"
};
