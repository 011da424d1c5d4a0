//! A vector against a running proxy, with real packets on a real kernel.
//!
//! For each vector a [`Lab`](vmap_proxy_lab::Lab) is built around the vector's node: its pods behind one
//! interface, pods and nodes elsewhere behind another, everybody else behind the uplink. Every address and port
//! that a packet could reach has an echo server, also where nothing should arrive, so that a wrong outcome is
//! named instead of just missed. Then the [`ProxyUnderTest`] runs, and each packet becomes many new
//! connections.
//!
//! Effects that are invisible on the wire are not asserted: whether a connection to an endpoint on the node
//! itself was masqueraded (it never passes postrouting).

mod judge;
mod stage;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmap_proxy_lab::{LabError, NetNs};

use crate::run_model;
use crate::schema::{ObjectRef, Probe, Vector};
use judge::Check;
use stage::Stage;

/// Any error of a proxy under test.
pub type ProxyError = vmap_proxy_testbed::Failure;

/// A proxy that programs a node's kernel.
pub trait ProxyUnderTest {
    /// Programs the node's network namespace from the vector's configuration and objects. Returns once packets
    /// are handled accordingly.
    ///
    /// # Errors
    ///
    /// Ends the vector, and fails it.
    fn start(&mut self, node: &NetNs, vector: &Vector) -> Result<(), ProxyError>;

    /// Follows a change of the cluster: first `delete`, then `apply` (create or replace). Returns once it is
    /// committed.
    ///
    /// # Errors
    ///
    /// Ends the vector, and fails it.
    fn step(&mut self, delete: &[ObjectRef], apply: &[Value]) -> Result<(), ProxyError>;
}

/// The reason why a vector failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The namespaces or the probes themselves failed: says nothing about the proxy.
    #[error("the lab: {0}")]
    Lab(#[from] LabError),
    /// The proxy gave up.
    #[error("phase {phase}: the proxy: {source}")]
    Proxy {
        /// 0 is the start, 1 the first step.
        phase: usize,
        /// The log of the proxy.
        source: ProxyError,
    },
    /// A packet met another fate than it had to.
    #[error("{0}")]
    Packet(Box<Mismatch>),
}

/// A packet whose fate is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// 0 is the start, 1 the first step.
    pub phase: usize,
    /// The packet's place in its phase, from 0.
    pub index: usize,
    /// The packet.
    pub probe: Probe,
    /// The actual fate, in words.
    pub actual: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packet = run_model::packet(&self.probe);
        let expected = run_model::outcome(&self.probe.expect);
        let Self { phase, index, actual, .. } = self;
        write!(formatter, "phase {phase}, packet {index}: {packet}\n  expected: {expected}\n  actual:   {actual}")
    }
}

/// How a vector went.
#[derive(Debug)]
pub struct VectorReport {
    /// Name of the vector.
    pub name: String,
    /// Packets of the vector, all phases together.
    pub packets: usize,
    /// Connections tried for them.
    pub connections: usize,
    /// Whether SCTP was among them (see [`vmap_proxy_lab::SCTP_METHOD`] for how).
    pub sctp: bool,
    /// Time from the first namespace to the last answer.
    pub elapsed: Duration,
    /// Nothing, if the vector passed.
    pub failures: Vec<Failure>,
}

impl VectorReport {
    /// Returns whether every packet met its fate.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// The outcome of many vectors, for people: every failure, then one line of totals, and how SCTP was probed.
#[derive(Debug)]
pub struct Summary<'r>(pub &'r [VectorReport]);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in self.0 {
            for failure in &report.failures {
                writeln!(formatter, "FAILED {}, {failure}", report.name)?;
            }
        }
        let passed = self.0.iter().filter(|report| report.passed()).count();
        let sum = |part: fn(&VectorReport) -> usize| self.0.iter().map(part).sum::<usize>();
        let (packets, connections) = (sum(|report| report.packets), sum(|report| report.connections));
        let of = self.0.len();
        write!(formatter, "{passed} of {of} vectors passed: {packets} packets, {connections} connections")?;
        if self.0.iter().any(|report| report.sctp) {
            write!(formatter, "\n{}", vmap_proxy_lab::SCTP_METHOD)?;
        }
        Ok(())
    }
}

/// Runs one vector.
pub fn run(vector: &Vector, proxy: &mut dyn ProxyUnderTest) -> VectorReport {
    let started = Instant::now();
    let mut report = VectorReport {
        name: vector.name.clone(),
        packets: vector.phases().map(|(_, probes)| probes.len()).sum(),
        connections: 0,
        sctp: stage::uses_sctp(vector),
        elapsed: Duration::ZERO,
        failures: Vec::new(),
    };
    if let Err(failure) = run_phases(vector, proxy, &mut report) {
        report.failures.push(failure);
    }
    report.elapsed = started.elapsed();
    report
}

/// Runs all vectors, `parallel` at a time (at least one), each with a proxy of its own, and reports in the order
/// given. Vectors mostly wait for answers that must not come, so more of them at a time than there are
/// processors is fine.
pub fn run_all(
    vectors: &[Vector],
    parallel: usize,
    new_proxy: &(dyn Fn() -> Box<dyn ProxyUnderTest> + Sync),
) -> Vec<VectorReport> {
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::with_capacity(vectors.len()));
    thread::scope(|scope| {
        for _ in 0..parallel.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(vector) = vectors.get(index) else {
                        return;
                    };
                    let report = run(vector, new_proxy().as_mut());
                    if let Ok(mut reports) = reports.lock() {
                        reports.push((index, report));
                    }
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_default();
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, report)| report).collect()
}

fn run_phases(vector: &Vector, proxy: &mut dyn ProxyUnderTest, report: &mut VectorReport) -> Result<(), Failure> {
    let stage = Stage::build(vector)?;
    for (phase, (step, probes)) in vector.phases().enumerate() {
        let programmed = match step {
            None => proxy.start(stage.lab.node(), vector),
            Some(step) => proxy.step(&step.delete, &step.apply),
        };
        programmed.map_err(|source| Failure::Proxy { phase, source })?;
        let checks = judge::run(&stage, probes)?;
        report.connections += checks.iter().map(Check::connections).sum::<usize>();
        let wrong = checks.iter().enumerate().filter_map(|(index, check)| {
            let actual = check.complaint()?.to_owned();
            Some(Box::new(Mismatch { phase, index, probe: check.packet().clone(), actual }))
        });
        report.failures.extend(wrong.map(Failure::Packet));
    }
    Ok(())
}
