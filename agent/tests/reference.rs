//! The reference pages for flags, configuration, metrics and chains are generated
//! from the code. These tests compare them with the pages in `docs/`.
//!
//! After a deliberate change, write the pages again and read the difference:
//! `UPDATE_GOLDEN=1 cargo test -p vmap-proxy --test reference`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "../../compiler/tests/support/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Arg, Command, CommandFactory};
use serde_json::Value;
use vmap_proxy_agent::cli::{Cli, FLAGS_OF_FIELDS};
use vmap_proxy_agent::config::KubeProxyConfiguration;
use vmap_proxy_agent::config::ignored::IGNORED_FIELDS;
use vmap_proxy_agent::metrics::{
    ElementOperation, Format, Metrics, Refusal, ServiceConnections, SyncKind, TrafficPolicy,
};
use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_dns::DnsMetrics;

/// Compares a page with the generated text, or writes it if `UPDATE_GOLDEN` is set.
fn check(page: &str, generated: &str) {
    golden::check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page), generated);
}

/// A text as a table cell: one line, and no column separators.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The help text without the default at its end, and the default.
fn split_default(help: &str) -> (String, String) {
    match help.split_once("[default: ") {
        Some((help, default)) => (cell(help), format!("`{}`", cell(default.trim_end_matches(']')))),
        None => (cell(help), String::new()),
    }
}

/// `--flag VALUE` with its short form and its visible aliases.
fn flag(argument: &Arg) -> String {
    let value = match argument.get_value_names() {
        Some(names) if argument.get_action().takes_values() => format!(" {}", names.join(" ").replace('|', "/")),
        _ => String::new(),
    };
    let mut names = vec![format!("`--{}{value}`", argument.get_long().unwrap())];
    names.extend(argument.get_short().map(|short| format!("`-{short}`")));
    names.extend(argument.get_visible_aliases().into_iter().flatten().map(|alias| format!("`--{alias}`")));
    names.join(", ")
}

/// A table of these flags; nothing if there are none.
fn flag_table<'a>(flags: impl Iterator<Item = &'a Arg>) -> String {
    let mut table = String::new();
    for argument in flags {
        if table.is_empty() {
            table.push_str("| flag | meaning | default |\n|---|---|---|\n");
        }
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let (help, default) = split_default(&help);
        writeln!(table, "| {} | {help} | {default} |", flag(argument)).unwrap();
    }
    table
}

/// The flags of a command that have a long name, without clap's own.
fn flags_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|argument| argument.get_long().is_some_and(|long| long != "help") && !argument.is_hide_set())
}

#[test]
fn flags() {
    let command = Cli::command().disable_version_flag(true);
    let mut page = String::from(
        "# Flags\n\nThis page is generated from the code.\n\nWithout a subcommand, `vmap-proxy` runs against the cluster \
         and accepts kube-proxy's flags.\n\n| subcommand | purpose |\n|---|---|\n",
    );
    for subcommand in command.get_subcommands() {
        let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(page, "| `vmap-proxy {}` | {} |", subcommand.get_name(), cell(&about)).unwrap();
    }
    let mut headings: Vec<&str> = Vec::new();
    for heading in flags_of(&command).filter_map(Arg::get_help_heading) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        let table = flag_table(flags_of(&command).filter(|flag| flag.get_help_heading() == Some(heading)));
        write!(page, "\n## {heading}\n\n{table}").unwrap();
    }
    page.push_str("\n## Flags of the subcommands\n\n`run` also accepts all flags above; the others accept those for logging, and `compile` those for traffic.\n");
    for subcommand in command.get_subcommands() {
        let table = flag_table(flags_of(subcommand).filter(|flag| flag.get_help_heading().is_none()));
        if !table.is_empty() {
            write!(page, "\n### {}\n\n{table}", subcommand.get_name()).unwrap();
        }
    }
    check("flags.md", &page);
}

/// The paths and values of all fields; lists and empty maps are values.
fn leaves(path: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(&path, value, found);
            }
        }
        other => found.push((path.to_owned(), other.to_string())),
    }
}

/// Meanings of the fields that no flag explains.
const WITHOUT_FLAG: &[(&str, &str)] = &[
    ("apiVersion", "the version of the format"),
    ("kind", "the kind of the document"),
    (
        "clientConnection.acceptContentTypes",
        "a list of encodings for lists and watches, the most wanted first, instead of `contentType`",
    ),
    ("featureGates", "as `--feature-gates`"),
    ("nodePortAddresses", "as `--nodeport-addresses`; an empty list means `primary`"),
];

#[test]
fn configuration() {
    let command = Cli::command();
    let help: BTreeMap<&str, String> = flags_of(&command)
        .map(|flag| (flag.get_long().unwrap(), split_default(&flag.get_help().unwrap().to_string()).0))
        .collect();
    let mut fields = Vec::new();
    leaves("", &serde_json::to_value(KubeProxyConfiguration::default()).unwrap(), &mut fields);
    let mut page = String::from(
        "# Configuration\n\nThis page is generated from the code.\n\n`--config FILE` reads a `KubeProxyConfiguration` of \
         `kubeproxy.config.k8s.io/v1alpha1`, in\nYAML or JSON. Every field of kube-proxy's configuration is accepted. If \
         a field without effect is\nset, the log gives the reason. A field that the file leaves out, or sets to `null`, \
         has its\ndefault.\n\n| field | default | meaning |\n|---|---|---|\n",
    );
    for (path, default) in fields {
        let of = |field: &str| path == field || path.starts_with(&format!("{field}."));
        let flag =
            FLAGS_OF_FIELDS.iter().find(|(_, pointer)| pointer.trim_start_matches('/').replace('/', ".") == path);
        let ignored = IGNORED_FIELDS.iter().find(|(field, _)| of(field));
        let meaning = match (ignored, flag) {
            (Some((_, why)), _) => format!("no effect: {why}"),
            (None, Some((flag, _))) => format!("`--{flag}`: {}", help[flag]),
            (None, None) => WITHOUT_FLAG
                .iter()
                .find(|(field, _)| *field == path)
                .map(|(_, meaning)| (*meaning).to_owned())
                .unwrap_or_else(|| panic!("neither a flag nor WITHOUT_FLAG explains the field {path}")),
        };
        writeln!(page, "| `{path}` | `{default}` | {meaning} |").unwrap();
    }
    check("configuration.md", &page);
}

/// Metrics in which every family with labels has a value; others are not shown.
fn exercised() -> Metrics {
    let dns = DnsMetrics::new("cluster.local");
    dns.count_examples();
    let metrics = Metrics::new().with_dns(dns);
    let (family, moment) = (Family::Ipv4, Duration::from_millis(1));
    metrics.sync_queued(family, UNIX_EPOCH);
    metrics.sync_succeeded(family, SyncKind::Full, moment, UNIX_EPOCH);
    metrics.sync_succeeded(family, SyncKind::Partial, moment, UNIX_EPOCH);
    metrics.sync_failed(family, SyncKind::Full, moment);
    metrics.cleanup_failed(family);
    metrics.network_programmed(family, moment);
    metrics.set_no_local_endpoints(family, TrafficPolicy::External, 1);
    metrics.healthz_replied(200);
    metrics.livez_replied(200);
    metrics.conntrack_reconciled(family, moment, 1);
    metrics.elements_changed(ElementOperation::Add, 1);
    metrics.foreign_removed("chain", 1);
    let localhost = metrics.localhost();
    localhost.listener_opened(family);
    localhost.listener_failed(family);
    localhost.connected(family, Protocol::Tcp);
    localhost.refused(family, Protocol::Tcp, Refusal::Limit);
    metrics.api_answered("GET", "server", Some(200), Some(moment));
    metrics.api_received(Kind::Service, std::time::SystemTime::now());
    metrics
}

/// The label names of a sample line, without those of histogram buckets.
fn labels(sample: &str) -> Vec<String> {
    let inside = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(inside, _)| inside);
    let names = inside.into_iter().flat_map(|inside| inside.split("\",")).filter_map(|pair| pair.split('=').next());
    names.map(str::to_owned).filter(|name| name != "le" && !name.is_empty()).collect()
}

#[test]
fn metrics() {
    let connections = [ServiceConnections {
        namespace: "default".to_owned(),
        service: "web".to_owned(),
        port: "http".to_owned(),
        connections: 1,
    }];
    let text = exercised().encode(Format::Prometheus, &connections);
    let mut page = String::from(
        "# Metrics\n\nThis page is generated from the code. The metrics are served at `/metrics` on\n\
         `--metrics-bind-address` (default `127.0.0.1:10249`). Names that begin with `kubeproxy_` are\nkube-proxy's, with \
         the same meaning and labels. [Operations](operations.md#health-and-metrics) explains\nthe most useful ones.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    let mut rows = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let Some(rest) = line.strip_prefix("# HELP ") else { continue };
        let (name, help) = rest.split_once(' ').unwrap();
        let kind = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
        let sample = text.lines().skip(index).find(|line| line.starts_with(name)).unwrap_or_default();
        let labels: Vec<String> = labels(sample).iter().map(|label| format!("`{label}`")).collect();
        rows.insert(name.to_owned(), format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), cell(help)));
    }
    assert!(rows.len() > 30, "only {} metrics are shown", rows.len());
    page.extend(rows.into_values());
    check("metrics.md", &page);
}

/// The purpose of each chain, in the order of the page. `N`, `M`, `T` and `L`
/// stand for numbers.
const CHAINS: &[(&str, &str)] = &[
    (
        "filter-prerouting-pre-dnat",
        "sends new connections that arrive to `firewall-check`, before their translation; exists once a Service has source ranges",
    ),
    ("filter-output-pre-dnat", "the same for new connections of the node itself"),
    ("nat-prerouting", "sends connections that arrive to `services`"),
    ("nat-output", "sends connections of the node itself to `services`"),
    ("filter-input", "rejects or drops new connections to this node at frontends without endpoints"),
    ("filter-forward", "the same for forwarded connections; then checks unused ports and cluster IPs"),
    ("filter-output", "the same for connections of the node itself"),
    ("nat-postrouting", "sends translated connections to `masquerading`"),
    ("firewall-check", "looks up frontends with `loadBalancerSourceRanges`"),
    ("services", "looks up the frontend, and then NodePorts at addresses that serve them"),
    ("nodeports", "looks up the NodePort"),
    (
        "local-policy",
        "`externalTrafficPolicy: Local`: chooses between all endpoints and those of this node, by the client",
    ),
    ("nodeport-local-policy", "the same for NodePorts"),
    ("masquerading", "decides whether a translated connection is masqueraded"),
    ("service-endpoints-check", "looks up frontends without a usable endpoint"),
    ("nodeport-endpoints-check", "looks up NodePorts without a usable endpoint"),
    ("cluster-ips-check", "rejects unused ports of cluster IPs, and drops packets to unallocated cluster IPs"),
    ("reject-chain", "rejects with ICMP port unreachable"),
    ("lb-N", "chooses one of exactly N endpoints (1 to 3) at random"),
    ("lb-max-M", "chooses one of more than M/2 and at most M endpoints at random"),
    ("draw-M", "draws a slot for `lb-max-M`"),
    (
        "sticky-N",
        "session affinity: looks up the client, and goes on to `lb-N` if it is not remembered; `sticky-max-M` likewise",
    ),
    ("learn-prerouting", "session affinity: learns the chosen endpoint of connections that arrive"),
    ("learn-output", "the same for connections of the node itself"),
    ("learn-T", "remembers the client for T seconds"),
    ("source-ranges-ipv4", "begins the search for the client among the source ranges; `source-ranges-ipv6` likewise"),
    ("source-ranges-L", "looks up the client's prefix of length L"),
];

/// The general name of a chain: `lb-N` for `nodeport-lb-3`.
fn general(chain: &str) -> String {
    let balances = |name: &str| ["lb-", "sticky-", "draw-"].iter().any(|start| name.starts_with(start));
    let plain = chain.trim_start_matches("nodeport-").trim_start_matches("short-circuit-");
    let chain = if balances(plain) { plain } else { chain };
    match chain.rsplit_once('-') {
        Some((start, number)) if number.chars().all(|c| c.is_ascii_digit()) => {
            let letter = match start {
                "lb" | "sticky" => 'N',
                "learn" => 'T',
                "source-ranges" => 'L',
                _ => 'M',
            };
            format!("{start}-{letter}")
        }
        _ => chain.to_owned(),
    }
}

#[test]
fn chains() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut hooks: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "nft") {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let Some(name) = pair[0].strip_prefix("chain ").and_then(|name| name.strip_suffix(" {")) else { continue };
            let hook = pair[1].strip_prefix("type ").and_then(|hook| hook.strip_suffix("; policy accept;"));
            let hook = hook.map(|hook| format!("`{}`", hook.replace(" hook ", " ").replace(" priority ", ", ")));
            hooks.insert(general(name), hook.unwrap_or_default());
        }
    }
    let mut page = String::from(
        "# Chains\n\nThis page is generated from the golden rule sets in `agent/tests/golden`, which show the rules of each\n\
         chain. A chain with a hook is a base chain; packets reach the others by jumps. The chains `lb-…`,\n\
         `draw-…` and `sticky-…` also exist with the prefixes `nodeport-`, `short-circuit-` and\n\
         `nodeport-short-circuit-`, for the maps of these names. `lb-1` to `lb-max-1023` and their draws are made\n\
         with the table; other chains with a number exist once a Service needs them. [The architecture](architecture.md#one-packet-followed) follows a packet through the chains.\n\n\
         | chain | hook, priority | purpose |\n|---|---|---|\n",
    );
    for (chain, purpose) in CHAINS {
        let hook = hooks.remove(*chain).unwrap_or_else(|| panic!("no golden rule set has the chain {chain}"));
        writeln!(page, "| `{chain}` | {hook} | {purpose} |").unwrap();
    }
    assert!(hooks.is_empty(), "CHAINS names no purpose of {:?}", hooks.keys());
    check("chains.md", &page);
}
