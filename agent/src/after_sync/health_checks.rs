//! Opens, closes and updates the health check ports of Services.

use vmap_proxy_compiler::model::types::ServiceName;

use super::{HealthChecks, Observer, SyncDone};
use crate::health::service_servers::{ServiceHealth, ServiceHealthServers};

/// Keeps [`ServiceHealthServers`] as the programmed Services want them.
#[derive(Debug)]
pub struct ServiceHealthChecks {
    servers: ServiceHealthServers,
}

impl ServiceHealthChecks {
    /// For these servers, which have none yet.
    pub fn new(servers: ServiceHealthServers) -> Self {
        Self { servers }
    }
}

impl Observer for ServiceHealthChecks {
    fn on_sync(&mut self, done: &SyncDone) {
        let HealthChecks { addresses, is_complete, services } = &done.health_checks;
        if let Some(addresses) = addresses {
            self.servers.set_addresses(addresses);
        }
        if *is_complete {
            let existing = |(name, service): (&ServiceName, &Option<ServiceHealth>)| Some((name.clone(), (*service)?));
            self.servers.set(services.iter().filter_map(existing).collect());
        } else if !services.is_empty() {
            self.servers.change(services);
        }
    }
}
