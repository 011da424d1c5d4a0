//! Clients that misbehave cost themselves alone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmap_proxy_lab::Transport::Tcp;
use vmap_proxy_testbed::cluster::{LOCAL, NODE, POD_PORT, REMOTE, at, node_object};
use vmap_proxy_testbed::manifests::{service, slice};

use crate::{Agent, HEALTH, METRICS, cluster, eventually, manifests, run_manifests, web};

fn connect(agent: &Agent, port: u16, text: &str) -> TcpStream {
    let address = SocketAddr::new(NODE[0].parse().unwrap(), port);
    let open = || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(text.as_bytes())?;
        Ok(stream)
    };
    agent.namespace.run(open).unwrap().unwrap()
}

#[test]
fn half_open_requests_and_scrapers_that_do_not_read_keep_nobody_out() {
    let (cluster, manifests) = (cluster(), manifests());
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[]));
    agent.wait_until_healthy();
    let half: Vec<_> = (0..600).map(|_| connect(&agent, HEALTH, "GET /healthz HTTP/1.1\r\nx: ")).collect();
    let scrape = "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n";
    let scrapers: Vec<_> = (0..200).map(|_| connect(&agent, METRICS, scrape)).collect();
    assert!(agent.is_healthy());
    assert!(agent.get(METRICS, "/metrics").is_some_and(|reply| reply.contains(" 200 ")));
    manifests.write_objects("web.json", &[node_object(), web(1), web(2)]);
    agent.wait_until_served("10.96.0.2");
    // All but the latest are closed by now.
    let first = &half[0];
    first.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let begun = Instant::now();
    let ended = { first }.read(&mut [0; 64]);
    assert!(matches!(ended, Ok(0) | Err(_)) && begun.elapsed() < Duration::from_secs(60), "{ended:?}");
    drop((half, scrapers));
    assert!(agent.stop().success());
}

/// As kube-proxy: nothing listens on an address of a family that the Service does not have.
#[test]
fn a_health_check_port_listens_on_the_families_of_its_service() {
    let (cluster, manifests) = (cluster(), manifests());
    let load_balancer = |name: &str, addresses: &[&str], port: u16| {
        let start = service(name).port(Tcp, 80).of_type("LoadBalancer").external_local();
        let start = addresses.iter().fold(start, |service, address| service.cluster_ip(address));
        start.spec("healthCheckNodePort", json!(port)).build()
    };
    let endpoint =
        |name: &str, suffix: &str, pod: &str| slice(name, suffix).port(Tcp, POD_PORT.into()).endpoint(pod).build();
    let objects = [
        load_balancer("shop/one", &["10.96.0.51"], 31001),
        endpoint("shop/one", "4", LOCAL[0][0]),
        load_balancer("shop/both", &["10.96.0.52", "fd00:10:96::52"], 31002),
        endpoint("shop/both", "4", LOCAL[0][0]),
        endpoint("shop/both", "6", LOCAL[1][0]),
    ];
    manifests.write_objects("lb.json", &objects);
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--nodeport-addresses=0.0.0.0/0,::/0"]));
    agent.wait_until_healthy();
    let status = |node: &str, port: u16| {
        let address = SocketAddr::new(node.parse().unwrap(), port);
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.get(9..12).unwrap_or_default().to_owned())
        };
        agent.namespace.run(ask).unwrap().map_err(|error| error.kind())
    };
    let ok = Ok("200".to_owned());
    eventually("they listen", || status(NODE[0], 31001) == ok && status(NODE[1], 31002) == ok);
    assert_eq!(status(NODE[0], 31002), ok);
    assert_eq!(status(NODE[1], 31001), Err(std::io::ErrorKind::ConnectionRefused));
}

#[test]
fn the_status_page_is_for_clients_on_the_node_and_counts_connections() {
    let (cluster, manifests) = (cluster(), manifests());
    let shop = [
        service("shop/one").port(Tcp, 80).cluster_ip("10.96.0.51").build(),
        slice("shop/one", "4").port(Tcp, POD_PORT.into()).endpoint(REMOTE[0][0]).build(),
    ];
    manifests.write_objects("shop.json", &shop);
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[]));
    agent.wait_until_healthy();
    let get = |address: &str, path: &str| cluster.get(at(address, METRICS), path).unwrap();
    let page = get("127.0.0.1", "/");
    assert!(page.status == 200 && page.body.contains("<title>vmap-proxy</title>"), "{page:?}");
    // The same server, by an address that others reach, too.
    for path in ["/", "/page/script.js", "/page/services", "/page/explain?to=svc:shop/one"] {
        let refused = get(NODE[0], path);
        assert!(refused.status == 403 && refused.body.contains("kubectl port-forward"), "{path}: {refused:?}");
    }
    assert_eq!(get(NODE[0], "/metrics").status, 200);
    let answer = |path: &str| -> Value { serde_json::from_str(&get("127.0.0.1", path).body).unwrap() };
    assert_eq!(answer("/page/status")["ready"], true);
    let names: Vec<Value> =
        answer("/page/services")["services"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["shop/one", "shop/web-1"]);
    cluster.assert_served(LOCAL[0][0], at("10.96.0.51", 80), Tcp, [REMOTE[0][0]]);
    assert_eq!(answer("/page/service?name=shop/one")["connections"], json!([2]));
    let explained = answer("/page/explain?from=outside&to=svc:shop/web-1");
    assert_eq!(explained["packet"]["verdict"], "reject", "{explained}");
    assert!(agent.stop().success());

    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--status-page=false"]));
    agent.wait_until_healthy();
    assert_eq!(get("127.0.0.1", "/").status, 404);
    assert_eq!(get("127.0.0.1", "/page/status").status, 404);
    assert!(agent.stop().success());
}
