# shellcheck shell=bash disable=SC2154 # debian.sh sets scratch
# Sourced after debian.sh: kernels of Debian's source packages built as User Mode Linux. Such a kernel is a process of this machine: it
# boots in seconds and runs at nearly native speed where the processor can't run a virtual machine. It has Debian's network code, but one
# CPU, no modules, and our own configuration (user-mode-kernel.config), not Debian's.
#
# $scratch/user-mode/VERSION/   linux, release (what uname -r prints), wanted and config (the options we asked for, and all of them),
#                               missing (options that this kernel does not know)

# make_user_mode_kernel VERSION: builds it, once a version. 6.12 means Debian's linux-source-6.12.
make_user_mode_kernel() {
  local version=$1 to="$scratch/user-mode/$1" source="$scratch/user-mode/source-$1" option lib
  lib="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
  [ -e "$to/release" ] && cmp -s "$to/wanted" "$lib/user-mode-kernel.config" && return 0
  need_packages flex:flex bison:bison bc:bc make:make gcc:gcc xz:xz-utils || return 1
  own_apt_update || { say "no package lists: is the mirror reachable?"; return 1; }
  mkdir -p "$source" "$to"
  rm -f "$to/release"
  if [ ! -e "$source.unpacked" ]; then
    say "downloading the source of kernel $version"
    [ -n "$(find "$source" -maxdepth 1 -name "*.deb")" ] || (cd "$source" && own_apt apt-get -qq download "linux-source-$version" >/dev/null) ||
      { say "Debian has no linux-source-$version"; return 1; }
    dpkg -x "$source"/*.deb "$source/deb"
    tar xf "$source"/deb/usr/src/linux-source-*.tar.xz -C "$source" --strip-components=1
    rm -r "$source"/*.deb "$source/deb"
    touch "$source.unpacked"
  fi
  say "building kernel $version as User Mode Linux (some minutes)"
  (
    cd "$source"
    make -s ARCH=um tinyconfig
    ARCH=um scripts/kconfig/merge_config.sh -m -O . .config "$lib/user-mode-kernel.config"
    # Settles what depends on what.
    make -s ARCH=um olddefconfig
    nice -n 10 make ARCH=um "-j$(nproc)" linux
    strip -o "$to/linux" linux
    cp .config "$to/config"
  ) >"$to/build.log" 2>&1 || { tail -n 20 "$to/build.log" >&2; say "building it failed; all of its output: $to/build.log"; return 1; }
  for option in $(sed -nE 's/^(CONFIG_[A-Z0-9_]*)=y$/\1/p' "$lib/user-mode-kernel.config"); do
    grep -q "^$option=y" "$to/config" || echo "$option"
  done >"$to/missing"
  make -s -C "$source" ARCH=um kernelrelease >"$to/release.new"
  make -s -C "$source" ARCH=um mrproper >/dev/null 2>&1 || true
  cp "$lib/user-mode-kernel.config" "$to/wanted"
  mv "$to/release.new" "$to/release"
}
