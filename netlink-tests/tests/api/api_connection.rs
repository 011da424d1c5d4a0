//! A kubeconfig means the same as to client-go, against real TLS servers and
//! real proxies.

mod rotation;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P521_SHA512};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmap_proxy_agent::metrics::{Format, Metrics};
use vmap_proxy_agent::source::Event;
use vmap_proxy_agent::source::kubernetes::{ConnectError, Encoding, KubernetesOptions, KubernetesSource, Timing};
use vmap_proxy_testbed::apiserver::certificates::{Authority, Pair, self_signed, server_config};
use vmap_proxy_testbed::apiserver::{ApiServer, Front, Role};

use crate::kubernetes_source::follower::watched_by;

/// Nothing takes this long; a test that waits for what never comes ends.
const LIMIT: Duration = Duration::from_secs(60);

/// A directory that goes with the test.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("vmap-proxy-connection-").tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn options(kubeconfig: &Path) -> KubernetesOptions {
    KubernetesOptions {
        kubeconfig: Some(kubeconfig.to_owned()),
        master: None,
        node_name: "n1".to_owned(),
        encoding: Encoding::Protobuf,
        timing: Timing {
            shortest_retry: Duration::from_millis(10),
            longest_retry: Duration::from_millis(50),
            ..Timing::default()
        },
        metrics: Metrics::new(),
    }
}

/// A running source and the changes it sent.
struct Running {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    async fn start(options: KubernetesOptions) -> Result<Self, ConnectError> {
        let source = KubernetesSource::connect(options).await?;
        let (sender, events) = mpsc::channel(8);
        Ok(Self { events, task: tokio::spawn(source.run(sender)) })
    }

    async fn next(&mut self) -> Event {
        timeout(LIMIT, self.events.recv()).await.unwrap().unwrap()
    }

    /// Waits until everything is listed.
    async fn synced(&mut self) -> Result<(), String> {
        loop {
            match self.next().await {
                Event::Synced => return Ok(()),
                Event::Degraded(why) => return Err(why),
                _ => {}
            }
        }
    }
}

async fn connects(options: KubernetesOptions) -> Result<(), String> {
    let mut running = Running::start(options).await.map_err(|error| error.to_string())?;
    running.synced().await
}

/// A double behind TLS.
struct Secure {
    double: ApiServer,
    front: Front,
    directory: Directory,
}

impl Secure {
    async fn start(pair: &Pair, protocol: &str, clients: Option<&Authority>) -> Self {
        let double = ApiServer::start().await.unwrap();
        double.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
        let role = Role::Tls(server_config(pair, protocol, clients).unwrap(), double.address());
        let front = Front::start(([127, 0, 0, 1], 0).into(), role).unwrap();
        Self { double, front, directory: Directory::new() }
    }

    fn port(&self) -> u16 {
        self.front.address().port()
    }

    /// A kubeconfig with these fields, in a flow mapping each.
    fn kubeconfig(&self, cluster: &str, user: &str) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             contexts:\n\
             - {{name: elsewhere, context: {{cluster: elsewhere, user: nobody}}}}\n\
             - {{name: here, context: {{cluster: here, user: proxy}}}}\n\
             clusters:\n\
             - {{name: elsewhere, cluster: {{server: 'https://192.0.2.1', certificate-authority: absent.crt}}}}\n\
             - name: here\n  cluster:\n{}\
             users:\n- name: proxy\n  user:\n{}\
             preferences: {{}}\n",
            indented(cluster),
            indented(user)
        );
        self.directory.write("kubeconfig", &text.replace("PORT", &self.port().to_string()))
    }
}

fn indented(text: &str) -> String {
    let text = if text.is_empty() { "{}" } else { text };
    text.lines().map(|line| format!("    {line}\n")).collect()
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// As the program `base64` writes it, below a YAML key.
fn in_lines(text: &str) -> String {
    let text = base64(text);
    let lines: Vec<_> = text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

#[tokio::test]
async fn kubeconfigs_that_work_for_client_go() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let server = authority.server(&["127.0.0.1", "localhost"], &PKCS_ECDSA_P256_SHA256).unwrap();
    let client = authority.client("system:kube-proxy", &PKCS_ECDSA_P256_SHA256).unwrap();
    let secure = Secure::start(&server, "http/1.1", Some(&authority)).await;
    secure.directory.write("ca.crt", &format!("some words\n{}", authority.certificate()));
    secure.directory.write("client.crt", &client.certificate);
    secure.directory.write("client.key", &client.key);
    secure.directory.write("token", "from-the-file\n");
    let plugin = "#!/bin/sh\necho '{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\",\
                  \"status\": {\"token\": \"'\"$1$SUFFIX\"'\"}}'\n";
    let path = secure.directory.write("plugin", plugin);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();

    const BY_FILE: &str = "server: https://127.0.0.1:PORT\ncertificate-authority: ca.crt";
    let ca = in_lines(&authority.certificate());
    let (certificate, key) = (in_lines(&client.certificate), in_lines(&client.key));
    let one_line = base64(&authority.certificate());
    for (what, cluster, user, authorization, is_known) in [
        ("a file beside the kubeconfig", BY_FILE, "token: inline", "Bearer inline", false),
        (
            "many lines of comments",
            &format!("{}{BY_FILE}", "# a line\n".repeat(50)),
            "token: inline",
            "Bearer inline",
            false,
        ),
        ("no scheme", "server: 127.0.0.1:PORT\ncertificate-authority: ca.crt", "token: inline", "Bearer inline", false),
        ("a token with a newline", BY_FILE, "token: |\n  inline\n", "Bearer inline", false),
        ("a token file with a newline", BY_FILE, "tokenFile: token", "Bearer from-the-file", false),
        ("a token file beside a token", BY_FILE, "tokenFile: token\ntoken: inline", "Bearer from-the-file", false),
        ("a token file that is absent", BY_FILE, "tokenFile: absent\ntoken: inline", "Bearer inline", false),
        ("user and password", BY_FILE, "username: us\npassword: 'p:w'", "Basic dXM6cDp3", false),
        (
            "base64 in lines",
            &format!("server: https://127.0.0.1:PORT\ncertificate-authority-data: |{ca}"),
            "",
            "",
            false,
        ),
        (
            "base64 folded",
            &format!("server: https://127.0.0.1:PORT\ncertificate-authority-data: >-{ca}"),
            "",
            "",
            false,
        ),
        (
            "data before a file",
            &format!(
                "server: https://127.0.0.1:PORT\ncertificate-authority: absent\ncertificate-authority-data: {one_line}"
            ),
            "",
            "",
            false,
        ),
        ("empty data beside the file", &format!("{BY_FILE}\ncertificate-authority-data: ''"), "", "", false),
        (
            "empty client certificate",
            BY_FILE,
            "client-certificate-data: ''\nclient-key-data: ''\nclient-certificate: ''\nclient-key: ''\ntokenFile: ''\ntoken: inline",
            "Bearer inline",
            false,
        ),
        ("nulls", BY_FILE, "client-certificate-data: null\ntoken: null\nexec: null", "", false),
        ("client certificate in files", BY_FILE, "client-certificate: client.crt\nclient-key: client.key", "", true),
        (
            "client certificate in lines",
            BY_FILE,
            &format!("client-certificate-data: |{certificate}\nclient-key-data: |{key}"),
            "",
            true,
        ),
        ("a key alone", BY_FILE, "client-key: absent", "", false),
        (
            "nobody checks",
            "server: https://127.0.0.1:PORT\ninsecure-skip-tls-verify: true",
            "token: t",
            "Bearer t",
            false,
        ),
        (
            "another name",
            "server: https://127.0.0.1:PORT\ncertificate-authority: ca.crt\ntls-server-name: localhost",
            "",
            "",
            false,
        ),
        (
            "a plugin",
            BY_FILE,
            "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, args: [told], interactiveMode: Never, \
             env: [{name: SUFFIX, value: -x}]}",
            "Bearer told-x",
            false,
        ),
        ("impersonation", BY_FILE, "token: t\nas: somebody\nas-groups: [a, b]", "Bearer t", false),
    ] {
        let (seen, asked) = (secure.front.seen().len(), secure.double.requests().len());
        let mut running = Running::start(options(&secure.kubeconfig(cluster, user))).await.unwrap();
        assert_eq!(running.synced().await, Ok(()), "{what}");
        watched_by(&secure.double, 1).await;
        drop(running);
        watched_by(&secure.double, 0).await;
        let sent = secure.double.header("authorization").split_off(asked);
        assert!(sent.iter().all(|sent| sent == authorization), "{what}: {sent:?}");
        let connected = secure.front.seen().split_off(seen);
        let expected = format!("http/1.1 client certificate: {is_known}");
        assert!(connected.contains(&expected), "{what}: {connected:?}");
    }
    assert!(secure.double.header("impersonate-user").contains(&"somebody".to_owned()));
    let agents = secure.double.header("user-agent");
    let expected = concat!("vmap-proxy/v", env!("CARGO_PKG_VERSION"), " (linux/");
    assert!(agents.iter().all(|agent| agent.starts_with(expected) && agent.contains(") kubernetes/")), "{agents:?}");
}

#[tokio::test]
async fn keys_and_authorities_of_every_kind() {
    let p521 = Authority::new(&PKCS_ECDSA_P521_SHA512).unwrap();
    let p256 = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let named = ["127.0.0.1"];
    let client = p521.client("system:kube-proxy", &PKCS_ECDSA_P521_SHA512).unwrap();
    let its_own_authority = self_signed(&named, true, false).unwrap();
    let self_signed_server = self_signed(&named, false, false).unwrap();
    let pinned = p256.server(&named, &PKCS_ECDSA_P256_SHA256).unwrap();
    for (what, server, trusted) in [
        ("P-521 throughout", p521.server(&named, &PKCS_ECDSA_P521_SHA512).unwrap(), p521.certificate()),
        ("a server that is its own CA", its_own_authority.clone(), its_own_authority.certificate.clone()),
        ("a certificate that signs itself", self_signed_server.clone(), self_signed_server.certificate.clone()),
        ("the server's certificate alone", pinned.clone(), pinned.certificate.clone()),
        ("two authorities", pinned.clone(), format!("{}{}", p521.certificate(), p256.certificate())),
    ] {
        for protocol in ["h2", "http/1.1"] {
            let secure = Secure::start(&server, protocol, Some(&p521)).await;
            let cluster = format!("server: https://127.0.0.1:PORT\ncertificate-authority-data: {}", base64(&trusted));
            let user = format!(
                "client-certificate-data: {}\nclient-key-data: {}",
                base64(&client.certificate),
                base64(&client.key)
            );
            assert_eq!(connects(options(&secure.kubeconfig(&cluster, &user))).await, Ok(()), "{what}, {protocol}");
            let seen = secure.front.seen();
            assert!(seen.contains(&format!("{protocol} client certificate: true")), "{what}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn servers_that_are_not_the_one_meant_are_refused() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let other = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let expired_authority = self_signed(&["127.0.0.1"], true, true).unwrap();
    let expired = self_signed(&["127.0.0.1"], false, true).unwrap();
    let misnamed = self_signed(&["localhost"], true, false).unwrap();
    for (what, server, trusted) in [
        ("another authority", authority.server(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256).unwrap(), other.certificate()),
        ("another name", authority.server(&["localhost"], &PKCS_ECDSA_P256_SHA256).unwrap(), authority.certificate()),
        ("its own CA, with another name", misnamed.clone(), misnamed.certificate.clone()),
        ("its own CA, expired", expired_authority.clone(), expired_authority.certificate.clone()),
        ("itself, expired", expired.clone(), expired.certificate.clone()),
    ] {
        let secure = Secure::start(&server, "h2", None).await;
        let cluster = format!("server: https://127.0.0.1:PORT\ncertificate-authority-data: {}", base64(&trusted));
        let refused = connects(options(&secure.kubeconfig(&cluster, "token: secret"))).await.unwrap_err();
        assert!(refused.contains("invalid peer certificate"), "{what}: {refused}");
        assert!(secure.double.requests().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn kubeconfigs_that_cannot_work_say_what_is_wrong() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let server = authority.server(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256).unwrap();
    let secure = Secure::start(&server, "h2", None).await;
    secure.directory.write("ca.crt", &authority.certificate());
    secure.directory.write("empty", "");
    secure.directory.write("certificate", &server.certificate);
    secure.directory.write("key", &server.key);
    secure.directory.write("other-key", &authority.client("c", &PKCS_ECDSA_P256_SHA256).unwrap().key);
    nix::unistd::mkfifo(&secure.directory.0.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    const GOOD: &str = "server: https://127.0.0.1:PORT\ncertificate-authority: ca.crt";
    for (cluster, user, expected) in [
        ("{}", "", "the server of cluster \"here\": it is not set"),
        ("server: ''", "", "it is not set"),
        ("server: 'https://[oops'", "", "is not a URL"),
        ("server: 'https://host:port'", "", "is not a URL"),
        ("server: ftp://host", "", "another scheme"),
        ("server: https://127.0.0.1:PORT\ncertificate-authority: absent", "", "absent"),
        ("server: https://127.0.0.1:PORT\ncertificate-authority: fifo", "", "not a plain file"),
        ("server: https://127.0.0.1:PORT\ncertificate-authority: empty", "", "empty has no certificate"),
        (
            "server: https://127.0.0.1:PORT\ncertificate-authority-data: '%%%'",
            "",
            "certificate-authority-data is not base64",
        ),
        (
            &format!("{GOOD}\ninsecure-skip-tls-verify: true"),
            "",
            "both a certificate authority and insecure-skip-tls-verify",
        ),
        (&format!("{GOOD}\nproxy-url: ftp://127.0.0.1"), "", "proxy-url has the scheme \"ftp\""),
        (&format!("{GOOD}\ntls-server-name: 'a b'"), "", "tls-server-name"),
        (GOOD, "token: \"a\\nb\"", "token of user \"proxy\" has a control character"),
        (GOOD, "tokenFile: absent", "absent"),
        (GOOD, "tokenFile: empty", "empty holds no token"),
        (GOOD, "tokenFile: fifo", "not a plain file"),
        (GOOD, "client-certificate: certificate", "no client-key"),
        (GOOD, "client-certificate: certificate\nclient-key: absent", "absent"),
        (GOOD, "client-certificate: certificate\nclient-key: empty", "empty has no private key"),
        (GOOD, "client-certificate: key\nclient-key: key", "key has no client certificate"),
        (GOOD, "client-certificate: certificate\nclient-key: other-key", "certificate"),
        (GOOD, "auth-provider: {name: gcp}", "auth-provider \"gcp\""),
        (GOOD, "exec: {apiVersion: client.authentication.k8s.io/v1}", "command is not set"),
        (GOOD, "exec: {command: x}", "apiVersion \"\""),
    ] {
        let path = secure.kubeconfig(cluster, user);
        let error = Running::start(options(&path)).await.err().unwrap_or_else(|| panic!("{cluster} {user} is taken"));
        assert!(error.to_string().contains(expected), "{cluster} {user}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    for (text, expected) in [
        ("", "current-context is not set"),
        ("current-context: a", "current-context is \"a\", but there is no such context"),
        (
            "current-context: a\ncontexts: [{name: a, context: {cluster: b}}]",
            "context \"a\" refers to cluster \"b\", but there is no such cluster",
        ),
        ("[", "kubeconfig"),
        ("\u{0}", "kubeconfig"),
        ("just words", "kubeconfig"),
    ] {
        let error = Running::start(options(&secure.directory.write("bad", text))).await.err().unwrap();
        assert!(matches!(error, ConnectError::Kubeconfig { .. }) && error.to_string().contains(expected), "{error}");
    }
}

/// A plugin that fails is reported and tried again, because what it needs may
/// come later. Its standard error goes into the line.
#[tokio::test]
async fn a_plugin_that_fails_is_told_and_tried_again() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let server = authority.server(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256).unwrap();
    let secure = Secure::start(&server, "h2", None).await;
    secure.directory.write("ca.crt", &authority.certificate());
    let user = "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: sh, args: ['-c', 'echo no network >&2; exit 3']}";
    let path = secure.kubeconfig("server: https://127.0.0.1:PORT\ncertificate-authority: ca.crt", user);
    let error = connects(options(&path)).await.unwrap_err();
    assert!(error.contains("sh failed") && error.contains("no network"), "{error}");
}

#[tokio::test]
async fn a_token_file_is_read_again_after_it_was_refused() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let server = authority.server(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256).unwrap();
    let secure = Secure::start(&server, "h2", None).await;
    secure.directory.write("ca.crt", &authority.certificate());
    secure.directory.write("token", "first");
    let path = secure.kubeconfig("server: https://127.0.0.1:PORT\ncertificate-authority: ca.crt", "tokenFile: token");
    let mut running = Running::start(options(&path)).await.unwrap();
    assert_eq!(running.synced().await, Ok(()));
    secure.directory.write("token", "second\n");
    for resource in vmap_proxy_testbed::apiserver::Resource::ALL {
        secure.double.refuse(resource, 401, "Unauthorized");
        secure.double.end_watches(resource);
    }
    let has_second = |double: &ApiServer| double.header("authorization").iter().any(|token| token == "Bearer second");
    let draining = async {
        loop {
            running.next().await;
        }
    };
    tokio::select! {
        waited = timeout(LIMIT, secure.double.wait_until(has_second)) => waited.unwrap(),
        () = draining => {}
    }
}

#[tokio::test]
async fn proxies_of_the_kubeconfig() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let server = authority.server(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256).unwrap();
    let config = server_config(&server, "http/1.1", None).unwrap();
    let here = ([127, 0, 0, 1], 0).into();
    for (scheme, role, expected) in [
        ("http", Role::HttpProxy, "CONNECT TARGET Basic dXM6cDp3"),
        ("https", Role::OverTls(config, Box::new(Role::HttpProxy)), "CONNECT TARGET Basic dXM6cDp3"),
        ("socks5", Role::Socks5, "us:p:w TARGET"),
        ("socks5h", Role::Socks5, "us:p:w TARGET"),
    ] {
        for protocol in ["h2", "http/1.1"] {
            let secure = Secure::start(&server, protocol, None).await;
            let proxy = Front::start(here, role.clone()).unwrap();
            // The credentials are decoded. Not even a server on this machine
            // is exempt: only the environment has exceptions.
            let cluster = format!(
                "server: https://127.0.0.1:PORT\ncertificate-authority-data: {}\nproxy-url: {scheme}://us:p%3Aw@{}",
                base64(&authority.certificate()),
                proxy.address()
            );
            assert_eq!(
                connects(options(&secure.kubeconfig(&cluster, "token: t"))).await,
                Ok(()),
                "{scheme} {protocol}"
            );
            let mut seen = proxy.seen();
            // Of the connections that are begun at once, the first to speak
            // HTTP/2 is enough.
            seen.retain(|line| !line.starts_with("failed"));
            let expected = expected.replace("TARGET", &secure.front.address().to_string());
            assert!(!seen.is_empty() && seen.iter().all(|line| *line == expected), "{scheme} {protocol}: {seen:?}");
        }
    }
    // A server without TLS is asked for by its whole URL.
    let secure = Secure::start(&server, "http/1.1", None).await;
    let proxy = Front::start(here, Role::HttpProxy).unwrap();
    let cluster = format!("server: {}\nproxy-url: http://us:p%3Aw@{}", secure.double.url(), proxy.address());
    assert_eq!(connects(options(&secure.kubeconfig(&cluster, ""))).await, Ok(()));
    let expected = format!("GET {}/", secure.double.url());
    let seen = proxy.seen();
    assert!(seen.iter().any(|line| line.starts_with(&expected) && line.ends_with("Basic dXM6cDp3")), "{seen:?}");
    // One that is not there is named.
    let cluster = format!("server: {}\nproxy-url: http://us:secret@127.0.0.1:1", secure.double.url());
    let error = connects(options(&secure.kubeconfig(&cluster, ""))).await.unwrap_err();
    assert!(error.contains("proxy http://127.0.0.1:1/") && !error.contains("secret"), "{error}");
}

/// The connection stays open and nothing comes any more: what a machine that
/// loses power leaves behind a load balancer. Pings notice.
#[tokio::test]
async fn a_mute_connection_is_given_up() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let server = authority.server(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256).unwrap();
    let secure = Secure::start(&server, "h2", None).await;
    let cluster =
        format!("server: https://127.0.0.1:PORT\ncertificate-authority-data: {}", base64(&authority.certificate()));
    let mut options = options(&secure.kubeconfig(&cluster, ""));
    options.timing.ping_interval = Duration::from_millis(300);
    options.timing.ping_patience = Duration::from_millis(300);
    let metrics = options.metrics.clone();
    let mut running = Running::start(options).await.unwrap();
    assert_eq!(running.synced().await, Ok(()));
    watched_by(&secure.double, 1).await;
    let received = |metrics: &Metrics| {
        let text = metrics.encode(Format::Prometheus, &[]);
        let line = text
            .lines()
            .find(|line| line.starts_with("vmap_proxy_api_last_received_timestamp_seconds{resource=\"nodes\"}"));
        line.unwrap().rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    let (before, connections) = (received(&metrics), secure.front.seen().len());
    secure.front.freeze();
    // And the next connection goes on where that one was.
    secure.double.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"a": "b"}}}));
    while !matches!(running.next().await, Event::Changes(_)) {}
    assert!(received(&metrics) > before);
    assert!(secure.front.seen().len() > connections);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Whatever a kubeconfig holds is taken or refused in words.
    #[test]
    fn no_kubeconfig_makes_it_panic(
        server in ".{0,40}",
        field in 0..12_usize,
        value in "\\PC{0,40}|[ -~\\n]{0,60}|-----BEGIN [A-Z ]{0,12}-----\\n[A-Za-z0-9+/=\\n]{0,80}",
        is_base64 in proptest::bool::ANY,
        cuts in proptest::collection::vec((0..1000_usize, proptest::num::u8::ANY), 0..4),
    ) {
        const CLUSTER: [&str; 5] =
            ["certificate-authority-data", "certificate-authority", "proxy-url", "tls-server-name", "server"];
        const USER: [&str; 7] =
            ["token", "tokenFile", "client-certificate-data", "client-key-data", "username", "as", "client-certificate"];
        let value = if is_base64 { base64(&value) } else { value };
        let mut cluster = json!({"server": format!("https://{server}"), "insecure-skip-tls-verify": field > 1});
        let mut user = json!({});
        match field {
            0..5 => cluster[CLUSTER[field]] = json!(value),
            _ => user[USER[field - 5]] = json!(value),
        }
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": cluster}], "users": [{"name": "a", "user": user}],
        });
        let mut bytes = text.to_string().into_bytes();
        for (position, byte) in cuts {
            let position = position % bytes.len();
            bytes[position] = byte;
        }
        let directory = Directory::new();
        let path = directory.0.path().join("kubeconfig");
        fs::write(&path, bytes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if let Err(error) = runtime.block_on(async { KubernetesSource::connect(options(&path)).await.map(drop) }) {
            proptest::prop_assert!(!error.to_string().is_empty());
        }
    }
}
