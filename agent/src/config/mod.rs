//! Reads and checks kube-proxy's configuration, and converts it for the
//! compiler.
//!
//! * [`kube_proxy_configuration`]: the type, with kube-proxy's defaults;
//! * [`load`]: from a file, with a path for everything wrong or unknown;
//! * [`validate`]: kube-proxy's own checks;
//! * [`ignored`]: fields without effect, and the reasons;
//! * [`convert`]: to the compiler's [`vmap_proxy_compiler::model::config::ProxyConfig`];
//! * [`dns`]: the settings of the DNS server; [`flow_table`]: those of the flow table;
//! * [`localhost_node_ports`]: whether NodePorts are served on localhost;
//! * [`go_duration`], [`addresses`]: notations.

pub mod addresses;
pub mod convert;
pub mod dns;
pub mod flow_table;
pub mod go_duration;
pub mod ignored;
pub mod kube_proxy_configuration;
pub mod load;
pub mod localhost_node_ports;
pub mod validate;

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

pub use go_duration::GoDuration;
pub use kube_proxy_configuration::KubeProxyConfiguration;

/// A part of the configuration that may not do what its author expects. It is
/// logged once, and the proxy runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The field's path, such as `conntrack.min`, or the flag, such as `--ipvs-scheduler`.
    pub path: String,
    /// The consequence and the reason.
    pub message: String,
}

impl Warning {
    /// A warning about the field or flag `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// A field with an unusable value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// The field's path, such as `conntrack.min`.
    pub path: String,
    /// The value as given.
    pub value: String,
    /// The requirement for the value.
    pub reason: String,
}

impl fmt::Display for InvalidField {
    /// Prints like Kubernetes' `field.Error`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: Invalid value: {}: {}", self.path, self.value, self.reason)
    }
}

/// The reason why a configuration cannot be used. The operator can fix each of
/// them.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file (`--write-config-to`) cannot be written.
    #[error("cannot write the configuration to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is neither YAML nor JSON.
    #[error("the configuration is neither YAML nor JSON: {0}")]
    Syntax(String),
    /// The document is something else.
    #[error(
        "the configuration has apiVersion {api_version:?} and kind {kind:?}; \
         expected apiVersion: {} and kind: {}",
        kube_proxy_configuration::API_VERSION,
        kube_proxy_configuration::KIND
    )]
    OtherKind {
        /// `apiVersion` as found, empty if absent.
        api_version: String,
        /// `kind` as found, empty if absent.
        kind: String,
    },
    /// Fields of a wrong type or value: all of them, in the file's order.
    #[error("the configuration is invalid: {}", join(.0))]
    Invalid(Vec<InvalidField>),
    /// Flags of a wrong value.
    #[error("wrong usage: {}", join(.0))]
    Usage(Vec<InvalidField>),
    /// A mode of kube-proxy that this proxy does not have.
    #[error(
        "mode {mode:?} is not available: vmap-proxy programs nftables only. \
         Set `mode: nftables` in the configuration file (on kubeadm clusters: the ConfigMap kube-proxy in \
         kube-system), or pass --proxy-mode=nftables, and start again. Rules that kube-proxy left behind \
         are removed by --cleanup-kube-proxy"
    )]
    OtherMode {
        /// `mode` as given.
        mode: String,
    },
    /// The host has no usable name and none was given.
    #[error("the node's name is unknown: {0}; pass --hostname-override")]
    NodeName(String),
    /// The configuration cannot be printed; a defect of this program.
    #[error("cannot print the configuration as YAML: {0}")]
    Print(String),
}

impl ConfigError {
    /// The same error, of values that were given as flags and not in a file.
    pub fn of_flags(self) -> Self {
        match self {
            Self::Invalid(fields) => Self::Usage(fields),
            other => other,
        }
    }

    /// Returns whether the command line is wrong, whatever the files and the node are.
    pub fn is_wrong_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

fn join(fields: &[InvalidField]) -> String {
    fields.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
