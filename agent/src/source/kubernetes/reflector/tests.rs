use std::future::poll_fn;

use futures::io::Cursor;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use vmap_proxy_compiler::model::objects::Kind;

use super::*;
use crate::source::kubernetes::turns::TURN;

/// A reflector of Services that reaches no server.
fn reflector(events: EventSender) -> Reflector {
    let refuse = |_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(io::Error::other("no server"))
    };
    let options = KubernetesOptions {
        kubeconfig: None,
        master: None,
        node_name: "n1".to_owned(),
        encoding: Encoding::Json,
        timing: Timing::default(),
        metrics: Metrics::new(),
    };
    let client = kube::Client::new(tower::service_fn(refuse), "default");
    let source = KubernetesSource { client, options, with_names: false, pages_from_cache: Arc::default() };
    let [.., services, _] = Resource::all("n1", false);
    assert_eq!(services.kind, Kind::Service);
    Reflector::new(&source, services, events, oneshot::channel().0)
}

/// The events of a streaming list of Services.
fn streaming_list(services: usize) -> Vec<String> {
    let added = (0..services).map(|number| {
        format!(
            "{{\"type\":\"ADDED\",\"object\":{{\"metadata\":{{\"name\":\"s-{number}\",\"namespace\":\"n\"}},\"spec\":{{\"clusterIP\":\"10.0.0.1\"}}}}}}\n"
        )
    });
    let end = "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"7\",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n";
    added.chain([end.to_owned()]).collect()
}

/// Sends each event by itself, as a real API server does.
#[tokio::test]
async fn objects_of_a_list_are_handed_on_in_batches() {
    let chunks = stream::iter(streaming_list(1200)).then(|event| async move {
        tokio::task::yield_now().await;
        Ok(event.into_bytes())
    });
    let (sender, mut events) = mpsc::channel(5000);
    let mut reflector = reflector(sender);
    let response = Response { encoding: Encoding::Json, body: Box::pin(Box::pin(chunks).into_async_read()) };
    assert!(matches!(reflector.follow(response, true).await, Ok(())));
    let mut batches = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Changes(batch) = event {
            batches.push(batch.len());
        }
    }
    assert_eq!(batches, [BATCH, BATCH, 1200 - 2 * BATCH]);
}

/// A list that is all there, as one of a fast server is.
#[tokio::test]
async fn a_long_list_leaves_turns_to_everything_else() {
    let text = streaming_list(5000).concat();
    let turns = text.len() / TURN;
    assert!(turns > 10, "{turns}");

    // Nobody has to take the changes out before the list is read.
    let (sender, mut events) = mpsc::channel(5000);
    let mut reflector = reflector(sender);
    let response = Response { encoding: Encoding::Json, body: Box::pin(Cursor::new(text.into_bytes())) };
    let mut polls = 0;
    let mut following = Box::pin(reflector.follow(response, true));
    let followed = poll_fn(|context| {
        polls += 1;
        following.as_mut().poll(context)
    });
    assert!(matches!(followed.await, Ok(())));
    assert!(polls > turns, "{polls} polls");
    let mut changes = 0;
    while let Ok(event) = events.try_recv() {
        if let Event::Changes(batch) = event {
            changes += batch.len();
        }
    }
    assert_eq!(changes, 5000);
}
