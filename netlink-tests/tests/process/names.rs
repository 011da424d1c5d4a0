//! The DNS server of the agent, asked by the C library's resolver inside of pods.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use vmap_proxy_lab::{PodResolver, ResolveError};
use vmap_proxy_testbed::cluster::{CLIENT, Cluster, LOCAL, POD, REMOTE, SECOND_NODE_IP};
use vmap_proxy_testbed::skip::skipped_outside_ci;

use super::*;

const FLAGS: [&str; 2] = ["--cluster-cidr=10.244.0.0/16,fd00:10:244::/56", "--dns-upstream=192.0.2.254"];

fn sts() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "my-service"},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 8080}]},
    })
}

/// Pods by their addresses, as `my-sts-0` and so on.
fn slice(family: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| json!({"addresses": [address], "hostname": format!("my-sts-{number}")}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family, "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}],
        "metadata": {
            "namespace": "default", "name": format!("my-service-{}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": "my-service", "service.kubernetes.io/headless": ""},
        },
    })
}

fn named_manifests() -> ManifestDirectory {
    let manifests = manifests();
    let slices = [slice("IPv4", &[LOCAL[0][0], REMOTE[0][0]]), slice("IPv6", &[LOCAL[1][0]])];
    manifests.write_objects("sts.json", &[sts(), slices[0].clone(), slices[1].clone()]);
    manifests
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
    addresses.sort_unstable();
    addresses
}

fn resolver() -> PodResolver {
    PodResolver::new(&addresses(&[SECOND_NODE_IP]), "default", "cluster.local").unwrap()
}

/// The addresses of a name for a host of the cluster; none if there are none.
fn lookup(cluster: &Cluster, from: &str, name: &str) -> Vec<IpAddr> {
    match resolver().lookup(cluster.lab().owner(from.parse().unwrap()).unwrap(), name) {
        Ok(addresses) => addresses,
        Err(ResolveError::NotFound { .. }) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

/// The code of the answer to `web-1.shop.svc.cluster.local` for a client with this address: 0, or 5 if it is refused.
fn code(cluster: &Cluster, from: &str) -> u8 {
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x05web-1\x04shop\x03svc\x07cluster\x05local\0\0\x01\0\x01";
    let client = cluster.lab().owner(from.parse().unwrap()).unwrap();
    let ask = || -> std::io::Result<u8> {
        let socket = std::net::UdpSocket::bind((from, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(question, (SECOND_NODE_IP, 53))?;
        let mut answer = [0; 512];
        socket.recv(&mut answer)?;
        Ok(answer[3] & 15)
    };
    client.run(ask).unwrap().unwrap()
}

fn start(cluster: &Cluster, manifests: &ManifestDirectory, log: &Scratch, more: &[&str]) -> Agent {
    let flags = [&FLAGS[..], more].concat();
    let mut agent = Agent::with_log(cluster.node(), run_manifests(manifests, &flags), &log.0);
    agent.wait_until_healthy();
    agent
}

#[test]
fn pods_find_each_other_by_name() {
    let (cluster, manifests, log) = (cluster(), named_manifests(), Scratch::new("log"));
    let bind = format!("--dns-bind-address={SECOND_NODE_IP}");
    let agent = start(&cluster, &manifests, &log, &[&bind]);
    eventually("the server listens", || log.text().contains("DNS: listening on"));

    let pod = |name: &str| lookup(&cluster, POD[0], name);
    assert_eq!(pod("my-sts-0.my-service.default.svc"), addresses(&[LOCAL[0][0], LOCAL[1][0]]));
    assert_eq!(pod("my-sts-1.my-service"), addresses(&[REMOTE[0][0]]));
    assert_eq!(pod("my-service"), addresses(&[LOCAL[0][0], REMOTE[0][0], LOCAL[1][0]]));
    assert_eq!(pod("web-1.shop"), addresses(&["10.96.0.1"]));
    assert!(pod("no-such-name.shop.svc.cluster.local").is_empty());
    // The node itself.
    assert_eq!(lookup(&cluster, SECOND_NODE_IP, "web-1.shop.svc"), addresses(&["10.96.0.1"]));
    // Pods of the cluster's range, and nobody else.
    assert_eq!([code(&cluster, POD[0]), code(&cluster, REMOTE[0][1]), code(&cluster, CLIENT[0])], [0, 0, 5]);

    // A pod leaves, another becomes known.
    manifests.write_objects("sts.json", &[sts(), slice("IPv4", &[LOCAL[0][0], REMOTE[0][1], LOCAL[0][2]])]);
    eventually("the third pod has a name", || !pod("my-sts-2.my-service").is_empty());
    assert_eq!(pod("my-sts-1.my-service"), addresses(&[REMOTE[0][1]]));
    assert_eq!(pod("my-sts-0.my-service"), addresses(&[LOCAL[0][0]]));

    let metrics = agent.get(METRICS, "/metrics").unwrap();
    assert!(metrics.contains("coredns_dns_requests_total{server=\"dns://192.0.2.13:53\""), "{metrics}");
    assert!(agent.stop().success());
}

#[test]
fn without_the_flag_there_is_no_server_and_no_thread_of_it() {
    let (cluster, manifests, log) = (cluster(), named_manifests(), Scratch::new("log"));
    let agent = start(&cluster, &manifests, &log, &[]);
    assert!(lookup(&cluster, SECOND_NODE_IP, "web-1.shop.svc.cluster.local").is_empty());
    let names = || fs::read_dir(format!("/proc/{}/task", agent.child.id())).unwrap();
    let threads = names().filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    assert!(threads.into_iter().all(|thread| thread.trim() != "dns"));
    assert!(!agent.get(METRICS, "/metrics").unwrap().contains("coredns_"));
}

#[test]
fn a_port_in_use_and_a_missing_address_cost_names_only() {
    let (cluster, manifests, log) = (cluster(), named_manifests(), Scratch::new("log"));
    let taken = cluster.node().run(|| std::net::UdpSocket::bind((SECOND_NODE_IP, 53))).unwrap().unwrap();
    let bind = format!("--dns-bind-address={SECOND_NODE_IP},169.254.20.10");
    let agent = start(&cluster, &manifests, &log, &[&bind]);
    agent.wait_until_served("10.96.0.1");
    for address in ["192.0.2.13:53", "169.254.20.10:53"] {
        eventually("the log names the address", || log.text().contains(&format!("DNS: cannot listen on {address}")));
    }
    // As soon as the port is free, names are served.
    drop(taken);
    eventually("the server listens", || log.text().contains("DNS: listening on 192.0.2.13:53"));
    assert_eq!(lookup(&cluster, POD[0], "web-1.shop"), addresses(&["10.96.0.1"]));
    assert!(agent.stop().success());
}

/// The output of a program in a pod, or `None` if the machine does not have it.
fn output(cluster: &Cluster, command: &mut Command) -> Option<String> {
    let pod = cluster.lab().owner(POD[0].parse().unwrap()).unwrap();
    match resolver().output(pod, command).unwrap() {
        Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skipped_outside_ci(format_args!("{} is missing", command.get_program().display()));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn dig_understands_every_answer() {
    let (cluster, manifests, log) = (cluster(), named_manifests(), Scratch::new("log"));
    let bind = format!("--dns-bind-address={SECOND_NODE_IP}");
    let _agent = start(&cluster, &manifests, &log, &[&bind]);
    eventually("the server listens", || log.text().contains("DNS: listening on"));
    let dig = |arguments: &str| {
        let mut command = Command::new("dig");
        command.args(arguments.split(' '));
        output(&cluster, &mut command)
    };
    let lines = |arguments: &str| {
        let mut lines: Vec<String> = dig(arguments)?.lines().map(str::to_owned).collect();
        lines.sort();
        Some(lines)
    };
    if dig("-v").is_none() {
        return;
    }
    let service = "my-service.default.svc.cluster.local";
    for transport in ["+notcp", "+tcp", "+noedns", "+bufsize=4096", "+cookie", "+subnet=192.0.2.0/24", "+dnssec"] {
        let found = lines(&format!("+short {transport} {service}")).unwrap();
        assert_eq!(found, [LOCAL[0][0], REMOTE[0][0]], "{transport}");
    }
    assert_eq!(lines(&format!("+short +search {} AAAA", "my-sts-0.my-service")).unwrap(), [LOCAL[1][0]]);
    let targets = lines(&format!("+short _http._tcp.{service} SRV")).unwrap();
    assert_eq!(targets.len(), 2, "{targets:?}");
    assert!(targets.iter().all(|line| line.contains(" 8080 my-sts-") && line.ends_with(&format!(".{service}."))));
    assert_eq!(lines(&format!("+short -x {}", LOCAL[0][0])).unwrap(), [format!("my-sts-0.{service}.")]);
    assert_eq!(lines("+short dns-version.cluster.local TXT").unwrap(), ["\"1.1.0\""]);
    // What dig makes of the header.
    for (arguments, status) in [
        ("no-such.shop.svc.cluster.local", "NXDOMAIN"),
        ("cluster.local AXFR", "Transfer failed"),
        ("+edns=1 +noednsnegotiation web-1.shop.svc.cluster.local", "BADVERS"),
        ("+opcode=status web-1.shop.svc.cluster.local", "NOTIMP"),
        ("CH TXT version.bind", "REFUSED"),
    ] {
        let text = dig(arguments).unwrap();
        assert!(text.contains(status), "{arguments}: {text}");
        assert!(!text.contains("extra bytes") && !text.contains("malformed"), "{arguments}: {text}");
    }
}

#[test]
fn programs_with_musl_find_names() {
    let (cluster, manifests, log) = (cluster(), named_manifests(), Scratch::new("log"));
    let directory = ManifestDirectory::new();
    let program = directory.path().join("musl-resolver");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/process/musl_resolver.c");
    match Command::new("musl-gcc").args(["-static", "-o"]).arg(&program).arg(source).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            skipped_outside_ci(format_args!("musl-gcc is missing: {error}"));
            return;
        }
    }
    let bind = format!("--dns-bind-address={SECOND_NODE_IP}");
    let _agent = start(&cluster, &manifests, &log, &[&bind]);
    eventually("the server listens", || log.text().contains("DNS: listening on"));
    let pod = |name: &str| {
        let text = output(&cluster, Command::new(&program).arg(name)).unwrap();
        let mut found: Vec<IpAddr> = text.lines().map(|line| line.parse().unwrap()).collect();
        found.sort_unstable();
        found
    };
    assert_eq!(pod("my-sts-0.my-service.default.svc"), addresses(&[LOCAL[0][0], LOCAL[1][0]]));
    assert_eq!(pod("my-service"), addresses(&[LOCAL[0][0], REMOTE[0][0], LOCAL[1][0]]));
    assert_eq!(pod("web-1.shop"), addresses(&["10.96.0.1"]));
    assert!(pod("no-such-name.shop.svc.cluster.local").is_empty());
}

/// An upstream server that has no records, and the number of its questions.
fn upstream(cluster: &Cluster, address: &str) -> Arc<AtomicUsize> {
    let host = cluster.lab().owner(address.parse().unwrap()).unwrap();
    let socket = host.run(|| std::net::UdpSocket::bind((address, 53))).unwrap().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            counted.fetch_add(1, Ordering::Relaxed);
            buffer[2] |= 0x80;
            let _ = socket.send_to(&buffer[..length], client);
        }
    });
    asked
}

#[test]
fn resolv_conf_is_followed() {
    let (cluster, manifests, log) = (cluster(), named_manifests(), Scratch::new("log"));
    let servers = [REMOTE[0][2], REMOTE[0][3]];
    let [first, second] = servers.map(|address| upstream(&cluster, address));
    let etc = PodResolver::new(&addresses(&servers[..1]), "default", "cluster.local").unwrap();
    let bind = format!("--dns-bind-address={SECOND_NODE_IP}");
    let mut command = run_manifests(&manifests, &[FLAGS[0], &bind]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log.0).unwrap());
    let child = etc.spawn(cluster.node(), &mut command).unwrap().unwrap();
    let mut agent = Agent { child, namespace: cluster.node().try_clone().unwrap() };
    agent.wait_until_healthy();
    eventually("the server listens", || log.text().contains("DNS: listening on"));
    eventually("the first server is asked", || {
        lookup(&cluster, POD[0], "one.example.");
        first.load(Ordering::Relaxed) > 0
    });
    assert_eq!(second.load(Ordering::Relaxed), 0);
    etc.replace_servers(&addresses(&servers[1..])).unwrap();
    eventually("the second server is asked", || {
        lookup(&cluster, POD[0], "two.example.");
        second.load(Ordering::Relaxed) > 0
    });
    assert!(log.text().contains("DNS: the upstream servers are now"));
    assert!(agent.stop().success());
}
