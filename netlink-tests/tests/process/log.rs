//! Whatever becomes of the log, lines are lost and nothing else.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use vmap_proxy_testbed::manifests::NODE_NAME;

use crate::{Agent, Scratch, cluster, eventually, manifests, run_manifests, vmap_proxy, web};

/// It starts, follows a change that makes it log, and ends well.
#[track_caller]
fn assert_works(mut command: Command, error_output: Stdio) {
    let (cluster, manifests) = (cluster(), manifests());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(error_output);
    command.args(["--manifests"]).arg(manifests.path());
    let mut agent = Agent::start(cluster.node(), command);
    agent.wait_until_healthy();
    let bad = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad"}, "spec": 7});
    manifests.write_objects("more.json", &[web(2), bad]);
    agent.wait_until_served("10.96.0.2");
    assert!(agent.is_healthy());
    assert!(agent.stop().success());
}

fn run(flags: &[&str]) -> Command {
    let mut command = vmap_proxy(&["run", "--node-name", vmap_proxy_testbed::manifests::NODE_NAME]);
    command.args(flags);
    command
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader has gone.
fn broken() -> OwnedFd {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    writer
}

#[test]
fn a_full_disk_costs_lines() {
    assert_works(run(&[]), full());
    assert_works(run(&["--logging-format", "json", "-v", "6"]), full());
}

#[test]
fn a_reader_that_has_gone_costs_lines() {
    assert_works(run(&[]), broken().into());
}

#[test]
fn a_reader_that_never_reads_costs_lines() {
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    assert_works(run(&["-v", "6"]), writer.into());
}

#[test]
fn closed_streams_cost_lines() {
    let (cluster, manifests) = (cluster(), manifests());
    let mut command = run_manifests(&manifests, &[]);
    // SAFETY: between fork and exec only close(2) is called.
    unsafe {
        command.pre_exec(|| {
            for descriptor in 0..3 {
                libc::close(descriptor);
            }
            Ok(())
        })
    };
    let mut agent = Agent::start(cluster.node(), command);
    agent.wait_until_healthy();
    assert!(agent.stop().success());
}

#[test]
fn lines_that_were_lost_are_counted() {
    let (cluster, manifests) = (cluster(), manifests());
    let (reader, writer) = nix::unistd::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = run_manifests(&manifests, &["-v", "6"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let mut agent = Agent::start(cluster.node(), command);
    agent.wait_until_healthy();
    // Now it is read, and the next line counts the lost ones.
    let lines = std::io::BufRead::lines(std::io::BufReader::new(File::from(reader)));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut number = 2;
    eventually("a line tells of lost ones", || {
        manifests.write_objects("more.json", &[web(number)]);
        number = number % 200 + 1;
        receiver.try_iter().any(|line| line.contains(" log lines could not be written"))
    });
    assert!(agent.stop().success());
}

#[test]
fn whoever_reads_a_rule_set_may_stop_in_the_middle() {
    let manifests = manifests();
    let mut command = vmap_proxy(&["compile", "--node-name", NODE_NAME, "--manifests"]);
    command.arg(manifests.path()).stdout(broken());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    for arguments in [&["--version"][..], &["--help"]] {
        let output = vmap_proxy(arguments).stdout(broken()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn signals_that_mean_nothing_do_not_end_it() {
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("signals"));
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &[]), &log.0);
    agent.wait_until_healthy();
    for signal in [Signal::SIGHUP, Signal::SIGPIPE] {
        kill(agent.pid(), signal).unwrap();
    }
    eventually("SIGHUP is logged", || log.text().contains("SIGHUP: ignored"));
    agent.wait_until_healthy();
    assert!(agent.stop().success());
}

/// As many lines as help, and one that tells how many more there would be.
#[test]
fn thousands_of_bad_documents_make_a_bounded_log() {
    const BAD: usize = 3000;
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("bounded"));
    let bad: Vec<_> = (0..BAD)
        .map(|number| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("bad-{number}")}, "spec": 7}))
        .collect();
    manifests.write_objects("bad.json", &bad);
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &[]), &log.0);
    agent.wait_until_healthy();
    eventually("the number of lines left out is logged", || log.text().contains(" more like this in "));
    assert!(agent.stop().success());
    let text = log.text();
    let logged = text.lines().filter(|line| line.contains("bad.json:") && !line.contains("more like this")).count();
    assert!((50..=200).contains(&logged), "{logged} lines");
    let left_out: usize = text
        .lines()
        .filter_map(|line| line.split_once(" and ").or(line.split_once(": and "))?.1.split_once(" more like this"))
        .filter_map(|(count, _)| count.parse::<usize>().ok())
        .sum();
    assert_eq!(logged + left_out, BAD, "{text}");
    assert!(fs::metadata(&log.0).unwrap().len() < 200_000);
}

/// A line of the log is one line, whatever an object is called.
#[test]
fn an_objects_name_forges_no_line() {
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("forged"));
    let name = "bad\n2026-01-01T00:00:00.000000Z  INFO agent: forged\u{1b}[2J";
    let bad = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": 7});
    manifests.write_objects("bad.json", &[bad]);
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &[]), &log.0);
    agent.wait_until_healthy();
    assert!(agent.stop().success());
    let text = log.text();
    assert!(text.contains("forged"), "it is not named: {text}");
    assert!(!text.contains('\u{1b}') && !text.lines().any(|line| line.ends_with(" INFO agent: forged")), "{text}");
    let is_log_line = |line: &str| line.starts_with("20") && line.contains(": ");
    assert!(text.lines().all(|line| is_log_line(line) && !line.starts_with("2026-01-01T")), "{text}");
}
