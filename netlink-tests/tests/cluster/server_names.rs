//! An API server that the kubeconfig names by a host name, under the seccomp profile of `deploy/seccomp`.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;

use rcgen::PKCS_ECDSA_P256_SHA256;
use vmap_proxy_lab::PodResolver;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::apiserver::certificates::{Authority, server_config};
use vmap_proxy_testbed::apiserver::{Front, Role};
use vmap_proxy_testbed::cluster::{NODE, SECOND_NODE_IP};
use vmap_proxy_testbed::confined::confine;
use vmap_proxy_testbed::end_to_end::EndToEnd;

use crate::confined::profile;
use crate::connection::flags;
use crate::{PROGRAM, cluster};

const PORT: u16 = 6443;

const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

/// A name, the answer's code for A and for AAAA, and the addresses.
type Record = (&'static str, [u8; 2], &'static [&'static str]);

/// Beside usual names, those of load balancers that know no AAAA records.
const RECORDS: [Record; 6] = [
    ("four.example", [NO_ERROR, NO_ERROR], &[NODE[0]]),
    ("six.example", [NO_ERROR, NO_ERROR], &[NODE[1]]),
    ("both.example", [NO_ERROR, NO_ERROR], &NODE),
    ("fails-for-six.example", [NO_ERROR, SERVER_FAILURE], &[NODE[0]]),
    ("denies-six.example", [NO_ERROR, NO_SUCH_NAME], &[NODE[0]]),
    ("short.default.svc.cluster.local", [NO_ERROR, NO_ERROR], &[NODE[0]]),
];

/// The answer to a question for addresses.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let (mut labels, mut rest) = (Vec::new(), question.get(HEADER..)?);
    while let Some((&length, more)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, more) = more.split_at_checked(length.into())?;
        labels.push(std::str::from_utf8(label).ok()?);
        rest = more;
    }
    // The end of the name, kind and class.
    let question = question.get(..question.len() - rest.len() + 5)?;
    let is_six = rest.get(1..3)? == [0, 28];
    let name = labels.join(".");
    let record = RECORDS.iter().find(|(known, ..)| *known == name);
    let code = record.map_or(NO_SUCH_NAME, |(_, codes, _)| codes[usize::from(is_six)]);
    let addresses = record.map_or(&[][..], |(.., addresses)| addresses).iter();
    let addresses: Vec<IpAddr> = addresses.map(|address| address.parse().unwrap()).collect();
    let addresses: Vec<IpAddr> = addresses.into_iter().filter(|address| address.is_ipv6() == is_six).collect();
    let mut reply = question[..2].to_vec();
    reply.extend([0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    reply.extend(&question[HEADER..]);
    for address in addresses {
        let data = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        reply.extend([0xc0, HEADER as u8, 0, if is_six { 28 } else { 1 }, 0, 1, 0, 0, 0, 5, 0, data.len() as u8]);
        reply.extend(data);
    }
    Some(reply)
}

/// Answers on the node until the process ends.
fn serve_names(cluster: &EndToEnd) {
    let socket = cluster.node().run(|| UdpSocket::bind((SECOND_NODE_IP, 53))).unwrap().unwrap();
    std::thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer)?;
            if let Some(reply) = answer(&buffer[..length]) {
                socket.send_to(&reply, client)?;
            }
        }
    });
}

/// The double behind TLS on both addresses of the node, with a certificate for these hosts.
fn behind_tls(cluster: &mut EndToEnd, hosts: &[&str]) -> Option<Vec<Front>> {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let pair = authority.server(hosts, &PKCS_ECDSA_P256_SHA256).unwrap();
    let role = Role::Tls(server_config(&pair, "h2", None).unwrap(), cluster.api.double()?.server.address());
    std::fs::write(cluster.directory().join("ca.crt"), authority.certificate()).unwrap();
    let start = |address: &str| {
        let address = SocketAddr::new(address.parse().unwrap(), PORT);
        cluster.node().run(|| Front::start(address, role.clone())).unwrap().unwrap()
    };
    Some(NODE.map(start).into())
}

fn kubeconfig(cluster: &EndToEnd, host: &str) -> PathBuf {
    let path = cluster.directory().join(format!("{host}.conf"));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         clusters: [{{name: a, cluster: {{server: 'https://{host}:{PORT}', certificate-authority: ca.crt}}}}]\n\
         users: [{{name: a, user: {{token: secret}}}}]\n\
         contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn agent(cluster: &EndToEnd, etc: &PodResolver, host: &str) -> AgentProcess {
    let mut command = Command::new(PROGRAM);
    let kubeconfig = format!("--kubeconfig={}", kubeconfig(cluster, host).display());
    command.arg("--query-socket=").args(flags(kubeconfig));
    confine(&mut command, &profile());
    etc.inside(cluster.node(), || AgentProcess::spawn(cluster.node(), command)).unwrap()
}

#[test]
fn the_host_of_the_kubeconfig_may_be_a_name() {
    let mut cluster = cluster();
    serve_names(&cluster);
    // `short` is found by the search list.
    let hosts = ["four.example", "six.example", "both.example", "fails-for-six.example", "denies-six.example", "short"];
    let Some(_fronts) = behind_tls(&mut cluster, &hosts) else { return };
    let etc = PodResolver::new(&[SECOND_NODE_IP.parse().unwrap()], "default", "cluster.local").unwrap();
    for host in hosts {
        let agent = agent(&cluster, &etc, host);
        agent.wait_until_ready();
        agent.terminate();
    }
}

#[test]
fn a_host_without_an_address_is_named_with_the_remedy() {
    let cluster = cluster();
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    std::fs::write(cluster.directory().join("ca.crt"), authority.certificate()).unwrap();
    serve_names(&cluster);
    let etc = PodResolver::new(&[SECOND_NODE_IP.parse().unwrap()], "default", "cluster.local").unwrap();
    let agent = agent(&cluster, &etc, "missing.example");
    let line = agent.wait_for_line("can't follow");
    assert!(line.contains("address of missing.example:") && line.contains("servers in /etc/resolv.conf"), "{line}");
    agent.terminate();
}
