use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::CommandFactory;
use vmap_proxy_compiler::model::config::{DetectLocal, NodePortAddresses};

use super::*;
use crate::cli::{Cli, parse};

/// A file in the temporary directory that goes when it is dropped.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(content: &str) -> Self {
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("vmap-proxy-cli-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().write_all(content.as_bytes()).unwrap();
        Self(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const FILE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n";

fn resolve(arguments: &[&str]) -> Resolved {
    let arguments = std::iter::once("vmap-proxy").chain(arguments.iter().copied()).map(Into::into);
    parse(arguments).unwrap().resolve().unwrap()
}

fn run(arguments: &[&str]) -> RunOptions {
    match resolve(arguments).action {
        Action::Run(options) => *options,
        other => panic!("{other:?}"),
    }
}

fn usage_error(arguments: &[&str]) -> clap::Error {
    let arguments = std::iter::once("vmap-proxy").chain(arguments.iter().copied()).map(Into::into);
    parse(arguments).unwrap_err()
}

#[test]
fn the_command_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn no_arguments_run_against_the_cluster_with_the_defaults() {
    let options = run(&["--hostname-override", " Node-1 "]);
    assert_eq!(options.source, Source::Kubernetes { kubeconfig: None, master: None, encoding: Encoding::Protobuf });
    assert_eq!(options.proxy, ProxyConfig { node_name: "node-1".to_owned(), ..ProxyConfig::default() });
    assert_eq!(options.healthz_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(options.metrics_address, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(options.health_timeout, Duration::from_secs(60));
    assert_eq!(options.min_sync_period, MIN_GAP);
    assert!(options.service_metrics);
}

#[test]
fn the_hosts_name_is_the_default() {
    let name = nix::unistd::gethostname().unwrap().to_string_lossy().trim().to_lowercase();
    assert_eq!(run(&[]).proxy.node_name, name);
}

#[test]
fn manifests_are_a_source_of_their_own() {
    let options = run(&["run", "--manifests", "a.yaml", "b", "--node-name", "n", "--masquerade-all"]);
    assert_eq!(options.source, Source::Manifests(vec!["a.yaml".into(), "b".into()]));
    assert!(options.proxy.masquerade_all);
    assert!(!options.sysctl_failure_is_fatal());
    assert!(run(&["run", "--node-name", "n"]).sysctl_failure_is_fatal());
}

#[test]
fn flags_are_written_as_in_go() {
    for verbosity in [vec!["-v", "4"], vec!["-v=4"], vec!["-v4"], vec!["--v=4"], vec!["--v", "4"]] {
        assert_eq!(resolve(&verbosity).logging.verbosity, 4, "{verbosity:?}");
    }
    assert!(run(&["--masquerade-all"]).proxy.masquerade_all);
    assert!(run(&["--masquerade_all=T"]).proxy.masquerade_all);
    assert!(!run(&["--masquerade-all=true", "--masquerade-all=false"]).proxy.masquerade_all);
    assert_eq!(run(&["--oom-score-adj", "-998"]).configuration.oom_score_adj, -998);
    let lists = ["--nodeport-addresses=10.0.0.0/8,fd00::/64", "--nodeport-addresses", "192.0.2.0/24"];
    let NodePortAddresses::Ranges(ranges) = run(&lists).proxy.node_port_addresses else { panic!() };
    assert_eq!(ranges.len(), 3);
}

#[test]
fn every_flag_of_kube_proxy_is_accepted() {
    let flags = "--feature-gates=A=true,B=false --kubeconfig=k --master=https://m --kube-api-content-type=application/json \
        --kube-api-burst=1 --kube-api-qps=1.5 --bind-address=10.0.0.1 --healthz-bind-address=0.0.0.0 \
        --metrics-bind-address=0.0.0.0:1 --bind-address-hard-fail --profiling --show-hidden-metrics-for-version=1.35 \
        --init-only --proxy-mode=nftables --masquerade-all --detect-local-mode=ClusterCIDR --pod-bridge-interface=b \
        --pod-interface-name-prefix=p --cluster-cidr=10.0.0.0/8 --nodeport-addresses=primary --oom-score-adj=0 \
        --conntrack-max-per-core=1 --conntrack-min=2 --conntrack-tcp-timeout-established=1h \
        --conntrack-tcp-timeout-close-wait=2h --conntrack-tcp-be-liberal --conntrack-udp-timeout=1s \
        --conntrack-udp-timeout-stream=2s --config-sync-period=1m --iptables-sync-period=20s \
        --iptables-min-sync-period=2s --iptables-masquerade-bit=3 --iptables-localhost-nodeports=false \
        --ipvs-sync-period=1s --ipvs-min-sync-period=1s --ipvs-scheduler=rr --ipvs-exclude-cidrs=10.0.0.0/8 \
        --ipvs-strict-arp --ipvs-tcp-timeout=1s --ipvs-tcpfin-timeout=1s --ipvs-udp-timeout=1s --healthz-port=10256 \
        --metrics-port=10249 --boot-id-file=a --machine-id-file=b --logging-format=json --vmodule=a=1 \
        --log-flush-frequency=1s --log-json-info-buffer-size=0 --log-json-split-stream --log-text-info-buffer-size=0 \
        --log-text-split-stream -v=2 --version=false --cleanup=false --hostname-override=n";
    let resolved = resolve(&flags.split_whitespace().collect::<Vec<_>>());
    let warned: Vec<_> = resolved.warnings.iter().map(|warning| warning.path.as_str()).collect();
    for path in ["featureGates", "ipvs", "iptables", "enableProfiling", "--vmodule", "--boot-id-file"] {
        assert!(warned.contains(&path), "{path} is not among {warned:?}");
    }
    let Action::Run(options) = resolved.action else { panic!() };
    assert_eq!(options.sync_period, Duration::from_secs(20));
    assert_eq!(options.health_timeout, Duration::from_secs(40));
    assert_eq!(options.min_sync_period, Duration::from_secs(2));
    assert_eq!(options.healthz_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(options.metrics_address, Some("0.0.0.0:1".parse().unwrap()));
    assert!(options.init_only && options.bind_address_hard_fail);
    assert_eq!(
        options.source,
        Source::Kubernetes {
            kubeconfig: Some("k".into()),
            master: Some("https://m".to_owned()),
            encoding: Encoding::Json
        }
    );
    assert_eq!(options.configuration.conntrack.min, 2);
}

#[test]
fn the_shortest_time_between_syncs_is_honoured() {
    for (given, expected) in [("5s", 5000), ("100ms", 100), ("1s", 50), ("0", 50), ("1ms", 50)] {
        let options = run(&[&format!("--iptables-min-sync-period={given}")]);
        assert_eq!(options.min_sync_period, Duration::from_millis(expected), "{given}");
    }
    let file = TemporaryFile::new(&format!("{FILE}nftables: {{minSyncPeriod: 3s}}\n"));
    let config = format!("--config={}", file.0.display());
    let options = run(&[&config, "--service-metrics=false"]);
    assert_eq!(options.min_sync_period, Duration::from_secs(3));
    assert!(!options.service_metrics);
}

/// The arguments that distributions start kube-proxy with.
#[test]
fn the_arguments_of_common_installers_are_accepted() {
    for (name, arguments) in [
        (
            "k3s",
            "--cluster-cidr=10.42.0.0/16 --conntrack-max-per-core=0 --conntrack-tcp-timeout-close-wait=0s \
            --conntrack-tcp-timeout-established=0s --healthz-bind-address=127.0.0.1 --hostname-override=n \
            --kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig --proxy-mode=nftables",
        ),
        (
            "kops",
            "--cluster-cidr=100.96.0.0/11 --hostname-override=n --kubeconfig=/var/lib/kube-proxy/kubeconfig \
            --master=https://api.internal.example.com --oom-score-adj=-998 --v=2 --proxy-mode=nftables \
            --conntrack-max-per-core=131072 --feature-gates=",
        ),
        (
            "Talos",
            "--cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 --hostname-override=n \
            --kubeconfig=/etc/kubernetes/kubeconfig --proxy-mode=nftables",
        ),
    ] {
        let options = run(&arguments.split_whitespace().collect::<Vec<_>>());
        assert_eq!(options.proxy.node_name, "n", "{name}");
        assert_eq!(options.flags["hostname-override"], "n", "{name}");
    }
}

#[test]
fn beside_a_file_only_a_few_flags_count() {
    let file = TemporaryFile::new(&format!("{FILE}clusterCIDR: 10.0.0.0/8\nhostnameOverride: from-file\n"));
    let path = format!("--config={}", file.0.display());
    let arguments =
        [path.as_str(), "--cluster-cidr=11.0.0.0/8", "--hostname-override=from-flag", "-v=6", "--master=https://m"];
    let resolved = resolve(&arguments);
    let warned: Vec<_> = resolved.warnings.iter().map(|warning| warning.path.as_str()).collect();
    assert_eq!(warned, ["--cluster-cidr"]);
    assert_eq!(resolved.logging.verbosity, 6);
    let Action::Run(options) = resolved.action else { panic!() };
    assert_eq!(options.proxy.node_name, "from-flag");
    assert_eq!(options.proxy.detect_local, DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().unwrap()]));
    assert_eq!(options.configuration_file, Some(file.0.clone()));
    assert_eq!(
        options.source,
        Source::Kubernetes { kubeconfig: None, master: Some("https://m".to_owned()), encoding: Encoding::Protobuf }
    );
}

#[test]
fn every_flag_has_a_value_to_show() {
    let command = Cli::command();
    let longs = command.get_arguments().filter_map(|argument| argument.get_long()).filter(|long| *long != "help");
    let options = run(&["--cluster-cidr=10.0.0.0/8", "--nodeport-addresses=primary,10.0.0.0/8", "-v=4"]);
    for long in longs {
        assert!(options.flags.contains_key(long), "{long}");
    }
    for (flag, value) in [
        ("cluster-cidr", "10.0.0.0/8"),
        ("nodeport-addresses", "primary,10.0.0.0/8"),
        ("v", "4"),
        ("conntrack-min", "131072"),
        ("iptables-sync-period", "30s"),
        ("bind-address-hard-fail", "false"),
        ("config", ""),
    ] {
        assert_eq!(options.flags[flag], value, "{flag}");
    }
}

#[test]
fn servers_can_be_switched_off() {
    for arguments in [["--metrics-bind-address=", "--healthz-bind-address="], ["--metrics-port=0", "--healthz-port=0"]]
    {
        let options = run(&arguments);
        assert_eq!((options.healthz_address, options.metrics_address), (None, None), "{arguments:?}");
    }
    let file = TemporaryFile::new(&format!("{FILE}metricsBindAddress: \"0\"\n"));
    let options = run(&["--config", file.0.to_str().unwrap()]);
    assert!(options.metrics_address.is_none() && options.healthz_address.is_some());
}

#[test]
fn addresses_follow_the_family_of_the_bind_address() {
    let options = run(&["--bind-address=fd00::1"]);
    assert_eq!(options.healthz_address, Some("[::]:10256".parse().unwrap()));
    assert_eq!(options.metrics_address, Some("[::1]:10249".parse().unwrap()));
    assert_eq!(run(&["--bind-address=fd00::1", "--metrics-port=7"]).metrics_address, "[::1]:7".parse().ok());
}

#[test]
fn other_actions() {
    assert_eq!(resolve(&["--version"]).action, Action::PrintVersion);
    assert_eq!(resolve(&["--version=raw"]).action, Action::PrintVersion);
    assert_eq!(resolve(&["--cleanup"]).action, Action::Cleanup(CleanupOptions { kube_proxy: false }));
    let both = Action::Cleanup(CleanupOptions { kube_proxy: true });
    assert_eq!(resolve(&["--cleanup", "--cleanup-kube-proxy"]).action, both);
    assert_eq!(resolve(&["cleanup", "--cleanup-kube-proxy"]).action, both);
    #[cfg(feature = "demo")]
    assert_eq!(resolve(&["demo"]).action, Action::Demo { keep: false });
    assert_eq!(resolve(&["demo", "--keep"]).action, Action::Demo { keep: true });
    let Action::WriteConfiguration { path, configuration } =
        resolve(&["--write-config-to", "out.yaml", "--cluster-cidr=10.0.0.0/8"]).action
    else {
        panic!()
    };
    assert_eq!((path, configuration.cluster_cidr.as_str()), ("out.yaml".into(), "10.0.0.0/8"));
    let compile = ["compile", "--manifests", "m", "--node-name", "n", "-o", "json", "--cluster-cidr=10.0.0.0/8"];
    let Action::Compile(options) = resolve(&compile).action else { panic!() };
    assert_eq!((options.output, options.proxy.node_name.as_str()), (OutputFormat::Json, "n"));
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    for arguments in [vec!["stray"], vec!["--no-such-flag"], vec!["--masquerade-all=maybe"], vec!["compile"]] {
        assert_eq!(usage_error(&arguments).exit_code(), 2, "{arguments:?}");
    }
    assert_eq!(usage_error(&["--help"]).exit_code(), 0);
}

#[test]
fn wrong_values_are_refused_with_their_path() {
    let error = parse(["vmap-proxy", "--cluster-cidr=10.0.0.0"].map(Into::into)).unwrap().resolve().unwrap_err();
    assert!(error.to_string().contains("clusterCIDR: Invalid value: \"10.0.0.0\""), "{error}");
    let error = parse(["vmap-proxy", "--proxy-mode=iptables"].map(Into::into)).unwrap().resolve().unwrap_err();
    assert!(matches!(error, ConfigError::OtherMode { .. }));
    let error = parse(["vmap-proxy", "--config=/nonexistent"].map(Into::into)).unwrap().resolve().unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

#[test]
fn a_name_may_bring_its_namespace() {
    for (arguments, namespace) in [
        (&["get", "services", "shop/cart"][..], Some("shop")),
        (&["get", "services", "-n", "shop", "shop/cart"], Some("shop")),
        (&["get", "services", "-n", "shop", "cart"], Some("shop")),
        (&["get", "services", "cart"], None),
    ] {
        let Action::Get(options) = resolve(arguments).action else { panic!("{arguments:?}") };
        assert_eq!((options.namespace.as_deref(), options.name.as_deref()), (namespace, Some("cart")), "{arguments:?}");
    }
    let Action::GetConnections(options) = resolve(&["get", "connections", "shop/cart"]).action else { panic!() };
    assert_eq!((options.namespace.as_deref(), options.name.as_deref()), (Some("shop"), Some("cart")));
}
