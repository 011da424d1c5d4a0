# shellcheck shell=bash disable=SC2154 # debian.sh sets scratch
# Sourced after debian.sh: kernels of Debian's source packages built as User Mode Linux. Such a kernel is a process of this machine: it
# boots in seconds and runs at nearly native speed where the processor can't run a virtual machine. It has Debian's network code, but one
# CPU, no modules, and our own configuration (user-mode-kernel.config), not Debian's.
#
# $scratch/user-mode/NAME/   linux, release (what uname -r prints), wanted and config (the options we asked for, and all of them),
#                            missing (options that this kernel does not know)

# user_mode_name VERSION [OPTION...]: prints the name of the kernel without these options: 6.12-without-IPV6.
user_mode_name() {
  local option name=$1
  for option in "${@:2}"; do name="$name-without-$option"; done
  echo "$name"
}

# user_mode_config [OPTION...]: prints our configuration without these options.
user_mode_config() {
  local option lacking=()
  for option; do lacking+=(-e "s/^CONFIG_$option=.*/# CONFIG_$option is not set/"); done
  sed -e '' "${lacking[@]}" "$(dirname "${BASH_SOURCE[0]}")/user-mode-kernel.config"
}

# have_user_mode_kernel VERSION [OPTION...]: whether make_user_mode_kernel has nothing to do.
have_user_mode_kernel() {
  local to
  to="$scratch/user-mode/$(user_mode_name "$@")"
  [ -e "$to/release" ] && user_mode_config "${@:2}" | cmp -s "$to/wanted" -
}

# make_user_mode_kernel VERSION [OPTION...]: builds it, once for each version and lacking options. 6.12 means Debian's
# linux-source-6.12; IPV6 means no CONFIG_IPV6.
make_user_mode_kernel() {
  local version=$1 source="$scratch/user-mode/source-$1" to option
  to="$scratch/user-mode/$(user_mode_name "$@")"
  ! have_user_mode_kernel "$@" || return 0
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
  say "building kernel $(basename "$to") as User Mode Linux (some minutes)"
  user_mode_config "${@:2}" >"$to/wanted.new"
  (
    cd "$source" &&
      make -s ARCH=um tinyconfig &&
      ARCH=um scripts/kconfig/merge_config.sh -m -O . .config "$to/wanted.new" &&
      # Settles what depends on what.
      make -s ARCH=um olddefconfig &&
      nice -n 10 make ARCH=um "-j$(nproc)" linux &&
      strip -o "$to/linux" linux &&
      cp .config "$to/config"
  ) >"$to/build.log" 2>&1 || { tail -n 20 "$to/build.log" >&2; say "building it failed; all of its output: $to/build.log"; return 1; }
  for option in "${@:2}"; do
    ! grep -q "^CONFIG_$option=y" "$to/config" || { say "kernel $version has $option all the same: another option needs it"; return 1; }
  done
  for option in $(sed -nE 's/^(CONFIG_[A-Z0-9_]*)=y$/\1/p' "$to/wanted.new"); do
    grep -q "^$option=y" "$to/config" || echo "$option"
  done >"$to/missing"
  # The objects stay: a kernel without one option compiles only the files that depend on it.
  make -s -C "$source" ARCH=um kernelrelease >"$to/release.new"
  mv "$to/wanted.new" "$to/wanted"
  mv "$to/release.new" "$to/release"
}
