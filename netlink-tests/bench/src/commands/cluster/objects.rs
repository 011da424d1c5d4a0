//! The objects of the measured cluster.

use serde_json::{Value, json};
use vmap_proxy_testbed::api_objects::{Endpoint, OTHER_NODE, named_slice, service};

/// The Service of an index.
pub(super) fn service_of(index: usize) -> Value {
    // The first addresses of the range belong to Services that every cluster has.
    service(&name(index), &address(96, index + 256), |_| {})
}

/// The slice of a Service, its first endpoint in the given version.
pub(super) fn slice_of(index: usize, endpoints: u8, version: usize) -> Value {
    let members: Vec<Endpoint> = (0..usize::from(endpoints))
        .map(|member| {
            let number = index * usize::from(endpoints) + member;
            let second = if member == 0 { 120 + 10 * (version % 8) } else { 200 };
            Endpoint::at(address(second, number), OTHER_NODE)
        })
        .collect();
    named_slice(&format!("{}-abcde", name(index)), &name(index), &members)
}

fn name(index: usize) -> String {
    format!("service-{index}")
}

/// `10.B.x.y` (and the ranges behind it): one for each index.
fn address(second: usize, index: usize) -> String {
    format!("10.{}.{}.{}", second + (index >> 16), (index >> 8) & 255, index & 255)
}

/// The parts of a real cluster's objects that a proxy does not need.
pub(in crate::commands) fn like_a_cluster(mut object: Value) -> Value {
    let metadata = &mut object["metadata"];
    metadata["uid"] = json!("6f1e7a52-8a0e-4a52-9c3e-1a2b3c4d5e6f");
    metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    metadata["generation"] = json!(3);
    metadata["managedFields"] = json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:internalTrafficPolicy": {}, "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}":
            {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}}, "f:selector": {},
            "f:sessionAffinity": {}, "f:type": {}}},
    }]);
    object
}
