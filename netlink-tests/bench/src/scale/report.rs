//! The figures beside their goals.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::agent::{FirstSync, SyncTimes};
use super::changes::LargeService;
use super::child::Programmed;
use super::floor::Floor;
use super::large_change::LargeChange;
use super::memory::Resident;
use super::second_writer::SecondWriter;
use super::statistics::Summary;
use super::user_space::UserSpace;

/// Everything measured for one size of cluster.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The number of Services.
    pub services: u32,
    /// The number of endpoints of each Service.
    pub endpoints: u32,
    /// The machine it ran on.
    pub machine: Machine,
    /// First syncs, in the order in which they ran.
    pub first_syncs: Vec<FirstSync>,
    /// The floor, each right behind the first sync of the same position.
    pub floors: Vec<Floor>,
    /// Changes, burst and restart.
    pub programmed: Programmed,
    /// One Service with very many endpoints.
    pub large_service: LargeService,
    /// Another writer meanwhile.
    pub second_writer: SecondWriter,
    /// Changes with no kernel; older files lack them.
    #[serde(default)]
    pub user_space: UserSpace,
    /// Very many Services at once; older files lack them.
    #[serde(default)]
    pub large_change: LargeChange,
}

/// The machine that the figures are of.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// The CPU's model, as `/proc/cpuinfo` names it.
    pub model: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            model: model.map_or("unknown", |(_, model)| model.trim()).to_owned(),
        }
    }
}

/// A line of the report: a figure, and its goal where there is one for a
/// cluster of this size.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What.
    pub name: String,
    /// The measured value, with its unit.
    pub value: String,
    /// The goal, and whether it was met.
    pub goal: Option<(String, bool)>,
}

impl Report {
    /// The median over first syncs.
    pub fn first(&self, value: impl Fn(&FirstSync) -> f64) -> Summary {
        Summary::of(self.first_syncs.iter().map(value).collect())
    }

    /// First sync against floor, each pair by itself.
    pub fn ratio(&self) -> Summary {
        let pairs = self.first_syncs.iter().zip(&self.floors);
        Summary::of(pairs.map(|(first, floor)| first.sync.sync_ms / floor.commit_ms).collect())
    }

    /// The same in processor time, which other work on the machine distorts less.
    pub fn processor_ratio(&self) -> Summary {
        let pairs = self.first_syncs.iter().zip(&self.floors);
        Summary::of(pairs.map(|(first, floor)| first.processor_ms / floor.processor_ms).collect())
    }

    /// Bytes of kernel memory for each element.
    pub fn kernel_bytes_per_element(&self) -> f64 {
        self.first(|first| first.kernel_bytes as f64 / first.sync.added.max(1) as f64).p50
    }

    /// All figures, one a line.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = self.first_sync_lines();
        lines.extend(self.change_lines());
        lines.extend(self.user_space_lines());
        lines.extend(self.other_lines());
        lines.extend(self.large_change_lines());
        lines
    }

    fn large_change_lines(&self) -> Vec<Line> {
        let large = &self.large_change;
        let line = |what: &str, times: &SyncTimes, [before, after]: &[Resident; 2]| {
            let ratio = large.ratio(times);
            let state = before.now_mib.max(after.now_mib);
            let memory = after.peak_mib / state;
            let value = format!(
                "{:.0} ms, {ratio:.1} x a first sync; {} commits, the longest {:.1} ms; peak RSS {:.1} MiB, {memory:.2} x the state",
                times.sync_ms, times.transactions, times.longest_commit_ms, after.peak_mib
            );
            let name = format!("{} Services {what} at once", self.services);
            goal(&name, value, "at most 3 x the first sync, 1.5 x the state", ratio <= 3.0 && memory <= 1.5)
        };
        if large.first.added == 0 {
            return Vec::new();
        }
        vec![
            line("added", &large.add, &large.add_memory),
            line("removed", &large.remove, &large.remove_memory),
            plain(
                &format!("{} Services added one object at a time", self.services),
                format!(
                    "{:.0} ms, {:.1} x the first sync, in {} syncs",
                    large.stream_ms,
                    large.stream_ms / large.first.sync_ms,
                    large.stream_syncs
                ),
            ),
        ]
    }

    fn first_sync_lines(&self) -> Vec<Line> {
        let objects = self.first_syncs.first().map(|first| first.objects).unwrap_or_default();
        let sync = self.first(|first| first.sync.sync_ms);
        let floor = Summary::of(self.floors.iter().map(|floor| floor.commit_ms).collect());
        let ratio = self.ratio();
        let part = |value: fn(&FirstSync) -> f64| self.first(value).p50;
        let longest = part(|first| first.sync.longest_commit_ms);
        let peak = part(|first| first.resident.peak_mib);
        let resident = part(|first| first.resident.now_mib);
        let peak_goal = match self.services {
            10_000 => Some(25.0),
            100_000 => Some(150.0),
            _ => None,
        };
        let per_element = self.kernel_bytes_per_element();
        vec![
            plain(
                "objects",
                format!(
                    "{} tables, {} chains, {} rules, {} sets and maps",
                    objects.tables, objects.chains, objects.rules, objects.maps
                ),
            ),
            plain(
                "elements, transactions",
                format!("{}, {}", part(|first| first.sync.added as f64), part(|first| first.sync.transactions as f64)),
            ),
            plain("first sync", format!("{} ms", spread(&sync))),
            plain(
                "of that: planning alone, encoding, kernel",
                format!(
                    "{:.1}, {:.1}, {:.1} ms",
                    part(|first| first.sync.compile_ms),
                    part(|first| first.sync.encode_ms),
                    part(|first| first.sync.commit_ms)
                ),
            ),
            plain(
                "before it: parsing, taking into the store",
                format!("{:.1}, {:.1} ms", part(|first| first.parse_ms), part(|first| first.take_ms)),
            ),
            plain("floor", format!("{} ms", spread(&floor))),
            goal("first sync / floor", format!("{} x", spread(&ratio)), "at most 1.3 x", ratio.p50 <= 1.3),
            plain("the same in processor time", format!("{} x", spread(&self.processor_ratio()))),
            goal("longest commit", format!("{longest:.1} ms"), "at most 50 ms", longest <= 50.0),
            Line {
                name: "peak RSS, RSS after".to_owned(),
                value: format!("{peak:.1}, {resident:.1} MiB"),
                goal: peak_goal.map(|goal| (format!("at most {goal} MiB"), peak <= goal)),
            },
            goal(
                "kernel memory per element",
                format!("{per_element:.0} bytes"),
                "at most 200 bytes",
                per_element <= 200.0,
            ),
        ]
    }

    fn change_lines(&self) -> Vec<Line> {
        let changes = &self.programmed.changes;
        let limit = match self.services {
            0..=10_000 => 10.0,
            _ => 25.0,
        };
        let kinds = [
            ("one endpoint replaced", changes.replace),
            ("one endpoint more", changes.grow),
            ("one endpoint less", changes.shrink),
            ("one Service more", changes.add_service),
            ("one Service less", changes.remove_service),
        ];
        kinds
            .into_iter()
            .map(|(name, figures)| {
                let (total, user) = (figures.total_ms, figures.user_us);
                let value = format!(
                    "p50 {:.2}, p99 {:.2} ms; user space {:.0} us; {:.1} elements in {:.1} commits",
                    total.p50, total.p99, user.p50, figures.elements, figures.transactions
                );
                let met = total.p50 <= limit && total.p99 <= 3.0 * limit;
                goal(name, value, &format!("p50 at most {limit} ms, p99 {} ms", 3.0 * limit), met)
            })
            .collect()
    }

    fn user_space_lines(&self) -> Vec<Line> {
        let kinds = [
            ("one endpoint replaced", self.user_space.replace),
            ("one endpoint more", self.user_space.grow),
            ("one endpoint less", self.user_space.shrink),
        ];
        let measured = kinds.into_iter().filter(|(_, caches)| caches.warm_us.count > 0);
        measured
            .map(|(name, caches)| {
                let (warm, emptied) = (caches.warm_us, caches.emptied_us);
                let value = format!("p50 {:.1}, after emptied caches {:.1} us", warm.p50, emptied.p50);
                plain(&format!("{name}: user space, no kernel"), value)
            })
            .collect()
    }

    fn other_lines(&self) -> Vec<Line> {
        let (burst, restart) = (&self.programmed.burst, &self.programmed.restart);
        let (large, writer) = (&self.large_service, &self.second_writer);
        let ready = restart.ready_ms;
        vec![
            goal(
                "burst of changes in a second",
                format!(
                    "{} changes live {:.1} ms after the last; {} syncs, {} commits",
                    burst.changes, burst.live_after_ms, burst.syncs, burst.transactions
                ),
                "at most 250 ms",
                burst.live_after_ms <= 250.0,
            ),
            goal(
                "restart, nothing changed: sent",
                format!(
                    "{} elements, {} commits",
                    restart.sync.added + restart.sync.removed,
                    restart.sync.transactions
                ),
                "nothing",
                restart.sync.transactions == 0,
            ),
            Line {
                name: "restart: ready after".to_owned(),
                value: format!(
                    "{ready:.0} ms (parse {:.0}, take {:.0}, read and compare {:.0}); peak RSS {:.1} MiB",
                    restart.parse_ms, restart.take_ms, restart.sync.sync_ms, restart.resident.peak_mib
                ),
                goal: (self.services <= 10_000).then(|| ("at most 1000 ms".to_owned(), ready <= 1000.0)),
            },
            goal(
                &format!("one Service with {} endpoints: one replaced", large.endpoints),
                format!(
                    "p50 {:.2}, p99 {:.2} ms; user space {:.0} us; created in {:.1} ms",
                    large.replace.total_ms.p50,
                    large.replace.total_ms.p99,
                    large.replace.user_us.p50,
                    large.create.total_ms.p50
                ),
                "at most 25 ms",
                large.replace.total_ms.p50 <= 25.0,
            ),
            goal(
                "the same: one more",
                format!("p50 {:.2}, p99 {:.2} ms", large.grow.total_ms.p50, large.grow.total_ms.p99),
                "at most 25 ms",
                large.grow.total_ms.p50 <= 25.0,
            ),
            goal(
                "second writer during the first sync",
                format!(
                    "p50 {:.2}, p99 {:.1}, max {:.1} ms (alone: p50 {:.2} ms)",
                    writer.beside_ms.p50, writer.beside_ms.p99, writer.beside_ms.max, writer.alone_ms.p50
                ),
                "at most 50 ms",
                writer.beside_ms.max <= 50.0,
            ),
        ]
    }

    /// A table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{} Services x {} endpoints; kernel {}, {} CPUs ({})\n",
            self.services, self.endpoints, machine.kernel, machine.cpus, machine.model
        );
        text.push_str("| figure | measured | goal | met |\n|---|---|---|---|\n");
        for line in self.lines() {
            let (goal, met) =
                line.goal.map_or((String::new(), ""), |(goal, met)| (goal, if met { "yes" } else { "no" }));
            let _ = writeln!(text, "| {} | {} | {goal} | {met} |", line.name, line.value);
        }
        text
    }

    /// Lines for people.
    pub fn plain(&self) -> String {
        let mut text = format!("{} Services x {} endpoints\n", self.services, self.endpoints);
        for line in self.lines() {
            let goal = line
                .goal
                .map_or(String::new(), |(goal, met)| format!("  [{}; {}]", goal, if met { "met" } else { "NOT met" }));
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {:<44} {}{goal}", line.name, line.value);
        }
        text
    }
}

fn plain(name: &str, value: String) -> Line {
    Line { name: name.to_owned(), value, goal: None }
}

fn goal(name: &str, value: String, goal: &str, met: bool) -> Line {
    Line { name: name.to_owned(), value, goal: Some((goal.to_owned(), met)) }
}

/// The median, and from where to where.
fn spread(summary: &Summary) -> String {
    format!("{:.2} ({:.2} to {:.2})", summary.p50, summary.min, summary.max)
}
