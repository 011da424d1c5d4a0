//! What clients learned, and must forget.

use compiler::diff::{Action, Operation};
use compiler::ruleset::Family;
use compiler::ruleset::element::{Data, Key};
use compiler::ruleset::maps::Map;

use super::Syncer;
use crate::netlink::NetlinkError;

impl Syncer {
    /// Removes every affinity entry whose endpoint its frontend does not serve
    /// any more. Removing one that expires meanwhile is no error.
    pub(super) async fn stale_affinity(&mut self) -> Result<Vec<Operation>, NetlinkError> {
        let mut operations = Vec::new();
        for family in Family::ALL {
            if !self.enabled[compiler::model::convert::index(family)] {
                continue;
            }
            for state in self.kernel.read_elements(family, Map::Affinity).await? {
                let element = state.element;
                let (Key::Affinity(_, frontend), Data::Endpoint(endpoint)) = (element.key, element.data) else {
                    continue;
                };
                if !self.planner.serves(&frontend, &endpoint) {
                    operations.push(Operation { family, action: Action::DeleteElement(element), owner: None });
                }
            }
        }
        Ok(operations)
    }
}
