"""Finds the crates that are linked into vmap-proxy. For scripts/lib/sbom and scripts/lib/notices."""
import json
import os
import re
import subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
PACKAGE = "vmap-proxy"


def linked_packages(target):
    """Returns cargo's packages by their ids, and the nodes of its graph, of the binary that scripts/build-static builds.

    Crates that only build, test or expand macros are left out.
    """
    linked = linked_crates(target)
    metadata = json.loads(cargo("metadata", "--format-version=1", f"--filter-platform={target}"))
    packages = {p["id"]: p for p in metadata["packages"] if (p["name"], p["version"]) in linked}
    return packages, [node for node in metadata["resolve"]["nodes"] if node["id"] in packages]


def linked_crates(target):
    """Names and versions. `cargo metadata` cannot tell: it joins the features of all members, the demo's among them."""
    tree = cargo(
        "tree", f"--package={PACKAGE}", "--no-default-features", "--edges=normal,no-proc-macro", f"--target={target}",
        "--prefix=none", "--format={p}",
    )
    return set(re.findall(r"^(\S+) v(\S+)", tree, re.MULTILINE))


def cargo(*arguments):
    command = ["cargo", *arguments, "--locked"]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def licence(package):
    """Returns the licence expression. A slash is Cargo's old notation for a choice."""
    return (package["license"] or "").replace(" / ", " OR ").replace("/", " OR ")
