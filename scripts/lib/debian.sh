# shellcheck shell=bash
# Sourced by the scripts that work with Debian packages of other releases: kernels, root file systems, nft versions.
# Nothing here changes the machine: packages, and apt's state and sources, are stored below $scratch.
#
# VMAP_PROXY_SCRATCH  the folder for all files (default: a folder in the user's cache)
# DEBIAN_MIRROR       the Debian mirror (default: the mirror in this system's own sources)

scratch="${VMAP_PROXY_SCRATCH:-${XDG_CACHE_HOME:-$HOME/.cache}/vmap-proxy}"
debian_releases="bullseye bookworm bookworm-backports trixie trixie-backports sid"
# An ordinary Debian user does not have sbin in PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

me="$(basename "$0")"
say() { echo "$me: $*" >&2; }
die() { say "$*"; exit 2; }

# need_root: root file systems need device nodes, mounts and namespaces.
need_root() { [ "$(id -u)" -eq 0 ] || die "needs root: makes root file systems, mounts and namespaces of its own. Run it with sudo."; }

# need_packages COMMAND:PACKAGE...: installs on this machine the packages whose command is missing (plain Debian packages
# of this system's own release).
need_packages() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  say "installing ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 || return 1
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

debian_mirror() {
  local found="${DEBIAN_MIRROR:-}"
  # One line "deb URL ..." or "URIs: URL". A mirror's folder is called debian.
  [ -n "$found" ] || found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    sed -nE 's#^(URIs:|deb( \[[^]]*\])?) *(https?://[^ ]*/debian)/?( .*)?$#\3#p' | head -n 1) || true
  [ -n "$found" ] || die "no Debian mirror in this system's apt sources: name one in DEBIAN_MIRROR"
  echo "$found"
}

# own_apt PROGRAM ARGUMENTS...: runs apt-get or apt-cache with separate configuration and state, for several releases.
own_apt() {
  local program=$1 apt="$scratch/apt" mirror release
  shift
  if [ ! -e "$apt/sources.list" ]; then
    mirror=$(debian_mirror)
    mkdir -p "$apt"/lists/partial "$apt"/cache/archives/partial "$apt/empty"
    : >"$apt/status"
    for release in $debian_releases; do
      echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main"
      case $release in
        bookworm | trixie) echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror-security $release-security main" ;;
      esac
    done >"$apt/sources.list.new"
    mv "$apt/sources.list.new" "$apt/sources.list"
  fi
  "$program" -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/empty" -o Dir::Etc::preferencesparts="$apt/empty" \
    -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" \
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Architecture=amd64 "$@"
}

# own_apt_update: refreshes the package lists when they are missing or older than a day.
own_apt_update() {
  local stamp="$scratch/apt/updated"
  [ -z "$(find "$stamp" -mmin -1440 2>/dev/null)" ] || return 0
  say "reading the package lists of $debian_releases"
  own_apt apt-get update -qq >&2 || return 1
  touch "$stamp"
}

# make_root RELEASE: creates, once, a root file system at $scratch/roots/RELEASE with the programs that the tests call.
# RELEASE is one of Debian's, or vX.Y.Z: nft of that version, built from source.
make_root() {
  local release=$1 root="$scratch/roots/$1" packages
  case $release in v[0-9]*) "$(dirname "${BASH_SOURCE[0]}")/nft-from-source" "$release"; return ;; esac
  packages=nftables,iproute2,iptables,ipset,conntrack,ipvsadm,kmod,procps,iputils-ping,socat,jq
  [ ! -e "$root.done" ] || return 0
  rm -rf "$root"
  mkdir -p "$scratch/roots"
  say "making a root file system of $release (some minutes)"
  if ! nice -n 5 debootstrap --variant=minbase --include="$packages" "$release" "$root" "$(debian_mirror)" >"$root.log" 2>&1; then
    tail -n 5 "$root.log" >&2
    say "debootstrap of $release failed; all of its output: $root.log"
    return 1
  fi
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,locale,man}
  touch "$root.done"
}
