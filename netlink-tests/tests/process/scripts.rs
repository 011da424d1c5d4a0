//! Tests the project's scripts with stand-ins for the real programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts");

/// A directory of programs that stand in for real ones; removed when dropped.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("vmap-proxy-scripts-").tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::write(&path, format!("#!/bin/bash\nstate={}\n{text}\n", self.path().display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A script of the project, which finds these programs first.
    fn run(&self, script: &str, variables: &[(&str, &str)]) -> Output {
        let path = format!("{}:{}", self.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("timeout");
        command.arg("300").arg(Path::new(SCRIPTS).join(script)).env("PATH", path);
        command.envs(variables.iter().copied()).output().unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// kubectl beside a `kube-apiserver` without a controller manager: a deleted namespace is Terminating, and stays so until
/// somebody empties its finalizers. A deletion that waits never ends. Like kubectl it reads its input to the end, or the script's
/// pipe would break.
const KUBECTL_WITHOUT_CONTROLLERS: &str = r#"
case "$*" in
  "config view --minify -o jsonpath={.clusters[0].cluster.server}") echo https://192.0.2.1:6443 ;;
  "config view --minify -o jsonpath={.clusters[0].name}") echo bare ;;
  *"config "*) ;;
  "create namespace "*) echo "kind: Namespace" ;;
  "apply -f -") cat >/dev/null; grep -q Terminating $state/namespace 2>/dev/null && exit 1; echo Active >$state/namespace ;;
  "get namespace "*jsonpath*) cat $state/namespace 2>/dev/null ;;
  "get namespace "*) [ ! -e $state/namespace ] || echo namespace/vmap-proxy-test ;;
  "delete namespace "*--wait=false*) echo Terminating >$state/namespace ;;
  "delete namespace "*) sleep 10000 ;;
  "replace --raw /api/v1/namespaces/vmap-proxy-test/finalize -f -")
    grep '"finalizers":\[\]' >/dev/null && grep -q Terminating $state/namespace && rm $state/namespace ;;
  *) echo "kubectl $*: not expected" >&2; exit 1 ;;
esac"#;

#[test]
fn real_cluster_ends_where_nothing_finalizes_namespaces() {
    let programs = Programs::new();
    programs.write("kubectl", KUBECTL_WITHOUT_CONTROLLERS);
    programs.write("socat", "exec sleep 10000");
    programs.write("cargo", "cat $state/namespace >$state/during");
    // The leftovers of an interrupted run.
    fs::write(programs.path().join("namespace"), "Terminating\n").unwrap();
    let output = programs.run("real-cluster", &[("KUBECONFIG", "/nowhere")]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(programs.read("during"), "Active\n");
    assert!(!programs.path().join("namespace").exists());
}

#[test]
fn real_cluster_ends_as_the_tests_do() {
    let programs = Programs::new();
    programs.write("kubectl", KUBECTL_WITHOUT_CONTROLLERS);
    programs.write("socat", "exec sleep 10000");
    programs.write("cargo", "exit 101");
    let output = programs.run("real-cluster", &[("KUBECONFIG", "/nowhere")]);
    assert_eq!(output.status.code(), Some(101), "{}", text(&output));
    assert!(!programs.path().join("namespace").exists());
}

/// `cargo` builds where the variable points, and so must each script look.
#[test]
fn no_script_names_the_target_directory_itself() {
    let mut looked_at = 0;
    let root = Path::new(SCRIPTS).parent().unwrap();
    let folders = ["scripts", "scripts/lib", ".ci", "."].map(|folder| root.join(folder));
    for path in folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path()) {
        let Ok(script) = fs::read_to_string(&path) else { continue };
        if !script.starts_with("#!") {
            continue;
        }
        looked_at += 1;
        let mut help = false;
        for line in script.lines() {
            help = (help || line.contains("<<USAGE")) && line != "USAGE";
            let code = if help || line.trim_start().starts_with('#') { "" } else { line };
            let named = code.match_indices("target/").filter(|(at, _)| !code[..*at].ends_with(['$', '/', '-', '{']));
            assert_eq!(named.count(), 0, "{}: {line}", path.display());
        }
    }
    assert!(looked_at > 8, "{looked_at}");
}

/// The static build without its compiler: programs of that name that leave `binary` where Cargo builds.
fn static_build(rust: &str, binary: &str) -> (Programs, Output) {
    let programs = Programs::new();
    programs.write("musl-gcc", "");
    programs.write("rustup", "");
    programs.write(
        "rustc",
        &format!(
            r#"if [ "$1" = --version ]; then echo "rustc {rust} (59807616e 2026-04-14)"; exit; fi
            mkdir -p $state/lib/rustlib/$(uname -m)-unknown-linux-musl; echo $state"#
        ),
    );
    programs.write(
        "cargo",
        &format!(
            r#"echo "$RUSTFLAGS" >$state/flags
            mkdir -p $CARGO_TARGET_DIR/$(uname -m)-unknown-linux-musl/release
            printf '#!/bin/sh\n%s\n' '{binary}' >$CARGO_TARGET_DIR/$(uname -m)-unknown-linux-musl/release/vmap-proxy
            chmod +x $CARGO_TARGET_DIR/$(uname -m)-unknown-linux-musl/release/vmap-proxy"#
        ),
    );
    programs.write("readelf", "");
    let output = Command::new("timeout")
        .args(["300", &format!("{SCRIPTS}/build-static")])
        .arg(programs.path().join("vmap-proxy"))
        .env("PATH", format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap()))
        .env("CARGO_TARGET_DIR", programs.path().join("elsewhere"))
        .output()
        .unwrap();
    (programs, output)
}

/// The directory is the variable's, and only a Rust whose musl applies packed relocations gets them.
#[test]
fn the_static_build_looks_where_cargo_builds() {
    for (rust, is_new) in [("1.95.0", true), ("1.93.0-beta.2", true), ("1.92.1", false), ("2.0.0", true)] {
        let (programs, output) = static_build(rust, "exit 0");
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(programs.read("vmap-proxy"), "#!/bin/sh\nexit 0\n");
        let flags = programs.read("flags");
        assert!(flags.contains("target-feature=+crt-static"), "{flags}");
        assert_eq!(flags.contains("pack-relative-relocs"), is_new, "{rust}: {flags}");
        assert_eq!(text(&output).contains("musl 1.2.3"), !is_new, "{rust}: {}", text(&output));
    }
}

#[test]
fn a_static_build_that_does_not_start_is_no_build() {
    let (programs, output) = static_build("1.95.0", "exit 139");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("does not start"), "{}", text(&output));
    assert!(!programs.path().join("vmap-proxy").exists());
}

#[test]
fn the_static_build_installs_or_names_the_compiler_that_is_missing() {
    let programs = Programs::new();
    for program in ["dirname", "uname", "env", "id", "readelf"] {
        let path = String::from_utf8(Command::new("which").arg(program).output().unwrap().stdout).unwrap();
        std::os::unix::fs::symlink(path.trim(), programs.path().join(program)).unwrap();
    }
    programs.write("apt-get", "echo apt-get $* >>$state/installed; exit 100");
    programs.write("sudo", "exec \"$@\"");
    let output =
        Command::new("/bin/bash").arg(format!("{SCRIPTS}/build-static")).env("PATH", programs.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(programs.read("installed").contains("apt-get update"), "{}", programs.read("installed"));
    let message = text(&output);
    assert!(message.contains("musl-tools") && message.contains("--gnu"), "{message}");
}

/// `scripts/release check`, and what it complains about.
fn release_check(version: &str) -> (Output, Vec<String>) {
    let mut command = Command::new("timeout");
    let output = command.args(["300", &format!("{SCRIPTS}/release"), "check", version]).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    (output, complaints)
}

#[test]
fn every_file_that_names_the_version_names_this_one() {
    let (output, complaints) = release_check(env!("CARGO_PKG_VERSION"));
    // The changelog gets its date with the release.
    let others: Vec<_> = complaints.iter().filter(|line| !line.starts_with("release: CHANGELOG.md ")).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(text(&output).matches("release: ok: ").count() > 8, "{}", text(&output));
}

#[test]
fn a_version_that_was_missed_is_named_with_its_file() {
    let (output, complaints) = release_check("99.0.0");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for file in
        ["Cargo.toml", "Cargo.lock", "deploy/chart/vmap-proxy/Chart.yaml", "deploy/daemonset.yaml", "docs/install.md"]
    {
        assert!(complaints.iter().any(|line| line.contains(&format!(" {file} names "))), "{file}: {complaints:?}");
    }
}

/// The image, from a stand-in for the binary. The bill of materials needs Python, which a fresh machine does not have.
#[test]
fn the_same_binary_gives_the_same_image() {
    let programs = Programs::new();
    programs.write("readelf", "");
    programs.write("python3", "echo '{}'");
    let binary = programs.path().join("binary");
    fs::write(&binary, "not really").unwrap();
    let images: Vec<_> = ["first", "second"]
        .map(|name| {
            let directory = programs.path().join(name);
            let output = Command::new("timeout")
                .args(["300", &format!("{SCRIPTS}/build-image"), "--binary"])
                .args([&binary, &directory])
                .env("PATH", format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap()))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", text(&output));
            let files = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
            files.filter(|path| path.extension().is_some_and(|end| end == "tar")).collect::<Vec<_>>()
        })
        .concat();
    let [first, second] = images.as_slice() else { panic!("{images:?}") };
    assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    let listing = Command::new("tar").arg("tf").arg(first).output().unwrap();
    for file in ["./oci-layout", "./index.json", "./blobs/sha256/"] {
        assert!(text(&listing).contains(file), "no {file} in {}", text(&listing));
    }
}
