//! Any bytes as a message of a client, in a datagram and over a connection. A reply is no question, has the client's
//! identifier, fits into what the client takes, and is a message for the library's reader.
#![no_main]

use std::sync::LazyLock;

use hickory_proto::op::Message;
use serde_json::{from_value, json};
use vmap_proxy_compiler::model::{Change, Object};
use vmap_proxy_dns::Answerer;
use vmap_proxy_dns_zone::{NameContent, Zone, ZoneConfig};

static ANSWERER: LazyLock<Answerer> = LazyLock::new(|| {
    let mut zone = Zone::new(ZoneConfig::default());
    let many: Vec<_> = (1..200).map(|pod| json!({"addresses": [format!("10.244.1.{pod}")], "hostname": format!("p{pod}")})).collect();
    for value in [
        json!({
            "kind": "Service", "metadata": {"namespace": "a", "name": "w"},
            "spec": {"clusterIPs": ["10.96.0.10", "fd00::a"], "ports": [{"name": "h", "port": 80}]},
        }),
        json!({
            "kind": "Service", "metadata": {"namespace": "a", "name": "e"},
            "spec": {"type": "ExternalName", "externalName": "w.a.svc.cluster.local"},
        }),
        json!({
            "kind": "Service", "metadata": {"namespace": "a", "name": "b"},
            "spec": {"clusterIP": "None", "ports": [{"name": "h", "port": 80}]},
        }),
        json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": many, "ports": [{"name": "h", "port": 8080}],
            "metadata": {"namespace": "a", "name": "b-1", "labels": {"kubernetes.io/service-name": "b"}},
        }),
    ] {
        let object: Object = from_value(value).expect("an object");
        let reference = object.reference();
        zone.apply(&reference, NameContent::read(&Change::Apply(object)).0);
    }
    zone.set_complete();
    Answerer::new(zone)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (is_tcp, most) in [(false, 1232), (true, usize::from(u16::MAX))] {
        let Some(answer) = ANSWERER.answer(bytes, is_tcp) else { continue };
        assert!(answer.len() <= most && answer.len() >= 12, "{} bytes", answer.len());
        assert_eq!(answer[..2], bytes[..2]);
        assert!(answer[2] & 0x80 != 0);
        Message::from_vec(&answer).expect("a message");
    }
});
