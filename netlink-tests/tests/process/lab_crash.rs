//! A lab whose process is killed leaves nothing behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::StreamExt;
use nlink::{Connection, Route, RtnetlinkGroup};
use vmap_proxy_lab::{Lab, NetNs};

/// The beginning of the child's line with the descriptor of its node's namespace.
const NODE_AT: &str = "node at ";

/// The node's ends of the lab's links, by name. A module such as `sit` or `ipip` puts a device of its own (`sit0`,
/// `tunl0`) into every namespace there is: those are nobody's.
const OWN_LINKS: [&str; 2] = ["eth0", "vethab"];
/// The kernel takes a namespace down when it finds time; on an emulated machine that may take long.
const PATIENCE: Duration = Duration::from_secs(300);

async fn own_links(netlink: &Connection<Route>) -> Vec<&'static str> {
    let links = netlink.get_links().await.unwrap();
    let is_there = |name: &&str| links.iter().any(|link| link.name() == Some(name));
    OWN_LINKS.into_iter().filter(is_there).collect()
}

fn small_lab() -> Lab {
    let address = |text: &str| [text.parse().unwrap()];
    Lab::builder()
        .node_addresses(address("192.0.2.11"))
        .host("pod", "vethab", address("10.244.1.5"))
        .uplink("outside", "eth0", address("198.51.100.23"))
        .build()
        .unwrap()
}

/// Not a test by itself: the process that the other test kills.
#[test]
#[ignore = "the part of the test below that gets killed"]
fn child_with_a_lab() {
    let lab = small_lab();
    let mut output = std::io::stdout();
    writeln!(output, "\n{NODE_AT}{}", lab.node().fd().as_raw_fd()).unwrap();
    output.flush().unwrap();
    // Until killed, or until the parent is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

/// The node's namespace is kept open from here, so that it outlives its process; the hosts' are not. Their end of
/// each veth pair goes with them, which takes away the node's end.
#[test]
fn the_kernel_takes_a_killed_lab_away() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lab_crash::child_with_a_lab", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let descriptor = lines.find_map(|line| Some(line.strip_prefix(NODE_AT)?.to_owned())).unwrap();
    let node = NetNs::open("node", format!("/proc/{}/fd/{descriptor}", child.id())).unwrap();
    let links = node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let netlink = Connection::<Route>::new().unwrap();
            let watcher = Connection::<Route>::new().unwrap();
            watcher.subscribe(&[RtnetlinkGroup::Link]).unwrap();
            let mut events = watcher.events().await;
            assert_eq!(own_links(&netlink).await, OWN_LINKS);
            child.kill().unwrap();
            child.wait().unwrap();
            let gone = async {
                while !own_links(&netlink).await.is_empty() {
                    events.next().await.unwrap().unwrap();
                }
            };
            tokio::time::timeout(PATIENCE, gone).await
        })
    });
    links.unwrap().unwrap();
}
