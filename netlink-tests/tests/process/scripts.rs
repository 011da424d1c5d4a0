//! Tests the project's scripts with stand-ins for the real programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use vmap_proxy_testbed::skip::skipped_outside_ci;

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
        self.command(script).envs(variables.iter().copied()).output().unwrap()
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("timeout");
        command.arg("300").arg(Path::new(SCRIPTS).join(script));
        command.env("PATH", format!("{}:{}", self.path().display(), std::env::var("PATH").unwrap()));
        command
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
    write_compiler(&programs, rust, binary);
    let output = programs
        .command("build-static")
        .arg(programs.path().join("vmap-proxy"))
        .env("CARGO_TARGET_DIR", programs.path().join("elsewhere"))
        .output()
        .unwrap();
    (programs, output)
}

fn write_compiler(programs: &Programs, rust: &str, binary: &str) {
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
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(programs.read("installed").contains("apt-get update"), "{}", programs.read("installed"));
    let message = text(&output);
    assert!(message.contains("musl-tools") && message.contains("--gnu"), "{message}");
}

/// CI goes on where the binary of the image can't be built, and where it fails there is no such way out.
#[test]
fn the_static_binary_is_tested_or_named_as_not_tested() {
    for (rust_has_musl, build, status) in [(false, "exit 0", 3), (true, "exit 139", 1)] {
        let programs = Programs::new();
        write_compiler(&programs, "1.95.0", build);
        if !rust_has_musl {
            programs.write("rustc", "echo $state");
            programs.write("rustup", "exit 1");
        }
        let output = programs
            .command("test-static")
            .env("CARGO_TARGET_DIR", programs.path().join("elsewhere"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
        assert_eq!(text(&output).contains("NOT TESTED"), !rust_has_musl, "{}", text(&output));
    }
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

/// Stands in for the programs in Python that write the bill of materials and the licences.
const PYTHON: &str = r#"case $1 in */notices) echo "licences for $2" ;; *) echo '{}' ;; esac"#;

/// The image, from a stand-in for the binary.
#[test]
fn the_same_binary_gives_the_same_image() {
    let programs = Programs::new();
    programs.write("readelf", "");
    programs.write("python3", PYTHON);
    let binary = programs.path().join("binary");
    fs::write(&binary, "not really").unwrap();
    let images: Vec<_> = ["first", "second"]
        .map(|name| {
            let directory = programs.path().join(name);
            let output = programs.command("build-image").arg("--binary").args([&binary, &directory]).output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
            files_of(&directory, "tar")
        })
        .concat();
    let [first, second] = images.as_slice() else { panic!("{images:?}") };
    assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    let listing = Command::new("tar").arg("tf").arg(first).output().unwrap();
    for file in ["./oci-layout", "./index.json", "./blobs/sha256/"] {
        assert!(text(&listing).contains(file), "no {file} in {}", text(&listing));
    }
    let unpack = r#"tar xf "$1" && for blob in blobs/sha256/*; do tar tzf $blob 2>/dev/null || :; done"#;
    let layer =
        Command::new("bash").args(["-c", unpack, "unpack"]).arg(first).current_dir(programs.path()).output().unwrap();
    for file in ["./LICENSE", "./THIRD-PARTY-NOTICES", "./usr/local/bin/kube-proxy", "./vmap-proxy"] {
        assert!(text(&layer).lines().any(|line| line == file), "no {file} in {}", text(&layer));
    }
}

fn files_of(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == extension)).collect()
}

fn musl_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

#[test]
fn the_files_of_the_image_and_of_a_release_include_the_licences() {
    let programs = Programs::new();
    write_compiler(&programs, "1.95.0", "exit 0");
    programs.write("python3", PYTHON);
    programs.write("helm", r#"touch "${@: -1}/chart.tgz""#);
    let root = programs.path().join("root");
    let release = programs.path().join("release");
    for arguments in [&["build-image", "--root"][..], &["release", "files", "1.2.3"]] {
        let [script, arguments @ ..] = arguments else { unreachable!() };
        let directory = if *script == "release" { &release } else { &root };
        let output = programs
            .command(script)
            .args(arguments)
            .arg(directory)
            .env("CARGO_TARGET_DIR", programs.path().join("elsewhere"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    let expected = format!("licences for {}\n", musl_target());
    assert_eq!(fs::read_to_string(root.join("THIRD-PARTY-NOTICES")).unwrap(), expected);
    let [archive] = &files_of(&release, "gz")[..] else { panic!("{:?}", files_of(&release, "gz")) };
    let name = format!("vmap-proxy-1.2.3-{}-linux/THIRD-PARTY-NOTICES", std::env::consts::ARCH);
    let notices = Command::new("tar").arg("xzOf").arg(archive).arg(name).output().unwrap();
    assert_eq!(text(&notices), expected);
}

/// Whether there is a Python that runs `scripts/lib/notices`.
fn has_python() -> bool {
    let found =
        Command::new("python3").args(["-c", "import tomllib"]).output().is_ok_and(|output| output.status.success());
    if !found {
        skipped_outside_ci("this machine has no Python 3.11, which collects the licences");
    }
    found
}

/// A crate that is linked into a made-up binary: its name, its licence, and its files.
type Crate<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// `scripts/lib/notices` for these crates, and the programs with which it ran, in whose directory its Rust is installed.
fn notices(crates: &[Crate<'_>]) -> (Programs, Output) {
    let programs = Programs::new();
    programs.write("cargo", "cat $state/$1");
    programs.write(
        "rustc",
        r#"case $1 in --version) echo "rustc 1.95.0 (59807616e 2026-04-14)" ;; *) echo $state ;; esac"#,
    );
    let mut packages = vec![];
    for (name, licence, files) in crates {
        let root = programs.path().join("crates").join(name);
        for (file, content) in *files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        packages.push(serde_json::json!({
            "id": name, "name": name, "version": "1.0.0", "license": licence, "license_file": null, "source": "registry",
            "repository": format!("https://example.com/{name}"), "homepage": null, "authors": ["Ada <ada@example.com>"],
            "manifest_path": root.join("Cargo.toml"),
        }));
    }
    let tree: String = crates.iter().map(|(name, ..)| format!("{name} v1.0.0\n")).collect();
    fs::write(programs.path().join("tree"), tree).unwrap();
    let metadata = serde_json::json!({"packages": packages, "resolve": {"nodes": []}});
    fs::write(programs.path().join("metadata"), metadata.to_string()).unwrap();
    let library = programs.path().join("share/doc/rust");
    fs::create_dir_all(&library).unwrap();
    fs::write(library.join("COPYRIGHT-library.html"), LIBRARY).unwrap();
    let linked = programs.path().join("lib/rustlib").join(musl_target()).join("lib");
    fs::create_dir_all(&linked).unwrap();
    fs::write(linked.join("libfor_all-0123456789abcdef.rlib"), "").unwrap();
    let output = programs.command("lib/notices").arg(musl_target()).output().unwrap();
    (programs, output)
}

/// The page that Rust has about its standard library, of two crates, one of them for another platform.
const LIBRARY: &str = r#"
<h2 id="in-tree-files">In-tree files</h2><p><b>Copyright:</b> 1991-2024 Unicode, Inc</p>
<h2 id="out-of-tree-dependencies">Out-of-tree dependencies</h2>
<h3>📦 for-all-1.2.3</h3> <p><b>License:</b> MIT/Apache-2.0</p>
<details> <summary><code>LICENSE-MIT</code></summary> <pre>Copyright &#34;All&#34;</pre> </details>
<h3>📦 elsewhere-1.2.3</h3> <p><b>License:</b> MPL-2.0</p>"#;

#[test]
fn every_text_is_printed_once_with_those_who_have_it() {
    if !has_python() {
        return;
    }
    let (_programs, output) = notices(&[
        (
            "second",
            "Apache-2.0 OR MIT",
            &[("LICENSE-MIT", "\n Copyright Ada,\n as is"), ("src/license.rs", "no licence")],
        ),
        (
            "first",
            "MIT AND BSD-3-Clause",
            &[
                ("COPYING", "Copyright Ada,  as is\n"),
                ("vendored/LICENSES/bsd.txt", "Copyright Babbage"),
                (".github/LICENSE", "of the server"),
            ],
        ),
        ("third", "Apache-2.0", &[("src/lib.rs", "")]),
        ("fourth", "ISC", &[]),
    ]);
    let notices = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(notices.matches("Copyright Ada").count(), 1, "{notices}");
    for expected in [
        "\nfirst 1.0.0\n    licence: MIT AND BSD-3-Clause\n    source:  https://example.com/first\n    texts:   COPYING [1], vendored/LICENSES/bsd.txt [2]\n",
        "\nsecond 1.0.0\n    licence: Apache-2.0 OR MIT\n    source:  https://example.com/second\n    texts:   LICENSE-MIT [1]\n",
        "\n[1] of first 1.0.0, second 1.0.0\n\nCopyright Ada,  as is\n",
        "\n[2] of first 1.0.0\n\nCopyright Babbage\n",
        // Without a text: the standard one where there is one.
        "\n    texts:   LICENSE [3]\n    It ships no licence text. Its Cargo.toml names Ada <ada@example.com>.\n",
        "[3] of third 1.0.0, Rust's standard library 1.95.0\n\n                                 Apache License\n",
        "Copyright: 1991-2024 Unicode, Inc\n",
        "\nfor-all 1.2.3\n    licence: MIT OR Apache-2.0\n",
        "\nCopyright \"All\"\n",
        "\nmusl libc\n    licence: MIT\n",
        "Copyright © 2005-2020 Rich Felker, et al.\n",
    ] {
        assert!(notices.contains(expected), "no {expected} in {notices}");
    }
    for foreign in ["no licence\n", "of the server", "elsewhere"] {
        assert!(!notices.contains(foreign), "{foreign}: {notices}");
    }
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(complaints, "notices: fourth 1.0.0 ships no text of its licence, ISC: ask its authors for one\n");
}

#[test]
fn a_crate_with_no_permissive_licence_is_refused_by_name() {
    if !has_python() {
        return;
    }
    let cases = [
        ("GPL-3.0-or-later", false),
        ("MPL-2.0", false),
        ("MIT OR GPL-3.0-only", true),
        ("MIT/LGPL-2.1", true),
        ("MIT AND MPL-2.0", false),
        ("LGPL-2.1-only OR (MIT AND AGPL-3.0-only)", false),
        ("(MIT OR GPL-2.0-only) AND (ISC OR MIT-0)", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-2.0-only WITH Classpath-exception-2.0", false),
        ("(MIT", false),
        ("", false),
    ];
    for (licence, is_accepted) in cases {
        let (_programs, output) = notices(&[("other", licence, &[("LICENSE", "text")])]);
        assert_eq!(output.status.code(), Some(i32::from(!is_accepted)), "{licence}: {}", text(&output));
        let shown = if licence.is_empty() { "(none)" } else { licence };
        let refused = text(&output).contains(&format!("notices: other 1.0.0 has the licence {shown}, which deny.toml"));
        assert_eq!(refused, !is_accepted, "{licence}: {}", text(&output));
    }
}

#[test]
fn a_rust_without_its_notices_is_named() {
    if !has_python() {
        return;
    }
    let (programs, _) = notices(&[]);
    fs::remove_dir_all(programs.path().join("share")).unwrap();
    let output = programs.command("lib/notices").arg(musl_target()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(complaints.contains("share/doc/rust has no COPYRIGHT-library.html"), "{complaints}");
    assert!(text(&output).contains("The notices of the crates in it are missing here"), "{}", text(&output));
}

/// The real binary's: every crate has a licence that the project accepts, and the text of it.
#[test]
fn every_linked_crate_has_its_licence() {
    if !has_python() {
        return;
    }
    let output = Programs::new().command("lib/notices").arg(musl_target()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let notices = String::from_utf8(output.stdout).unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(!complaints.contains("ships no text"), "{complaints}");
    for expected in [
        "\ntokio 1.",
        "aws-lc/third_party/fiat/LICENSE [",
        "jemalloc/COPYING [",
        "Copyright (C) 2002-present Jason Evans",
        "\nRust's standard library 1.",
        "Copyright © 2005-2020 Rich Felker, et al.\n",
    ] {
        assert!(notices.contains(expected), "no {expected} in {} bytes", notices.len());
    }
    // Neither our own crates nor those of the demo and the tests.
    for own in ["\nvmap-proxy", "\nrustables ", "\ntempfile "] {
        assert!(!notices.contains(own), "{own}");
    }
}
