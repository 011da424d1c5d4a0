//! Manifests that are no files: each is named, and the others are served.

use std::fs::File;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use vmap_proxy_testbed::cluster::node_object;

use crate::{Agent, Scratch, cluster, eventually, manifests, run_manifests, web};
use vmap_proxy_testbed::skip::skipped_outside_ci;

#[test]
fn what_is_no_regular_file_is_named_and_skipped() {
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("odd"));
    let path = |name: &str| manifests.path().join(name);
    nix::unistd::mkfifo(&path("fifo.yaml"), Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", path("device.yaml")).unwrap();
    symlink("loop.yaml", path("loop.yaml")).unwrap();
    symlink("/nonexistent", path("nowhere.yaml")).unwrap();
    symlink("..", path("directory.yaml")).unwrap();
    File::create(path("huge.yaml")).unwrap().set_len(1 << 40).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(path("socket.yaml")).unwrap();
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &[]), &log.0);
    agent.wait_until_healthy();
    agent.wait_until_served("10.96.0.1");
    for (name, why) in [
        ("fifo.yaml", "is a FIFO"),
        ("device.yaml", "is a device"),
        ("loop.yaml", "(os error 40)"),
        ("nowhere.yaml", "a link to a file that does not exist"),
        ("directory.yaml", "is a directory"),
        ("huge.yaml", "is larger than"),
        ("socket.yaml", "is a socket"),
    ] {
        let is_told = |line: &&str| line.contains(name) && line.contains(why);
        assert_eq!(log.text().lines().filter(is_told).count(), 1, "{name}: {why}");
    }
    // One of them becomes a manifest.
    std::fs::remove_file(path("fifo.yaml")).unwrap();
    manifests.write("fifo.yaml", &web(2).to_string());
    agent.wait_until_served("10.96.0.2");
    assert!(agent.stop().success());
}

#[test]
fn a_fifo_or_a_file_that_never_ends_as_the_only_manifest() {
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("only"));
    let fifo = manifests.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut command = run_manifests(&manifests, &[]);
    command.arg(&fifo).arg("/proc/kmsg");
    let mut agent = Agent::with_log(cluster.node(), command, &log.0);
    agent.wait_until_healthy();
    agent.wait_until_served("10.96.0.1");
    for path in [fifo.to_str().unwrap(), "/proc/kmsg"] {
        assert!(log.text().lines().any(|line| line.contains(" WARN ") && line.contains(path)), "{path}");
    }
    assert!(agent.stop().success());
}

/// A file system that gives no answer: a FUSE mount that nobody serves, in a mount namespace of the agent's own.
#[test]
fn a_file_system_that_does_not_answer_costs_its_files_alone() {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;

    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("hung"));
    let Ok(fuse) = File::options().read(true).write(true).open("/dev/fuse") else {
        skipped_outside_ci("this machine has no FUSE");
        return;
    };
    let mount_point = manifests.path().join(".hung");
    std::fs::create_dir(&mount_point).unwrap();
    symlink(mount_point.join("file"), manifests.path().join("a-hung.yaml")).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let mut command = run_manifests(&manifests, &[]);
    // SAFETY: between fork and exec only system calls are made, on memory that exists already but for small
    // allocations by this thread, the only one of the child.
    unsafe {
        command.pre_exec(move || {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("hung"), &mount_point, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
            Ok(())
        })
    };
    let mut agent = Agent::with_log(cluster.node(), command, &log.0);
    agent.wait_until_healthy();
    agent.wait_until_served("10.96.0.1");
    eventually("the file is named", || {
        log.text().lines().any(|line| line.contains("a-hung.yaml") && line.contains("has not answered"))
    });
    manifests.write_objects("web.json", &[node_object(), web(1), web(2)]);
    agent.wait_until_served("10.96.0.2");
    assert!(agent.stop().success());
    drop(fuse);
}
