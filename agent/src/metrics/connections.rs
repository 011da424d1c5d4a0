//! Connections per Service, read from the counters on elements of the
//! `services` and `nodeports` maps when metrics are requested.
//!
//! They are not kept in the registry: a large cluster has tens of thousands,
//! and the kernel counts them anyway.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use futures::future::BoxFuture;

/// The connections that one port of a Service was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConnections {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The port's name; empty if it has none.
    pub port: String,
    /// Connections since the rules were made.
    pub connections: u64,
}

/// Reads the counters; called for each reply of `/metrics`.
pub type ConnectionSource = Arc<dyn Fn() -> BoxFuture<'static, Arc<[ServiceConnections]>> + Send + Sync>;

const NAME: &str = "vmap_proxy_service_connections";

/// Appends the counter in OpenMetrics text; nothing without connections.
pub(super) fn encode(all: &[ServiceConnections], text: &mut String) {
    if all.is_empty() {
        return;
    }
    text.push_str(&format!(
        "# HELP {NAME} Connections given to endpoints, by port of a Service.\n# TYPE {NAME} counter\n"
    ));
    for one in all {
        let [namespace, service, port] = [&one.namespace, &one.service, &one.port].map(|text| escaped(text));
        // Writing into a String doesn't fail.
        let _ = writeln!(
            text,
            "{NAME}_total{{namespace=\"{namespace}\",service=\"{service}\",port=\"{port}\"}} {}",
            one.connections
        );
    }
}

/// A label's value: the API server lets no such names in, manifests may have them.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("shop"), "shop");
        assert_eq!(escaped("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
