# shellcheck shell=bash disable=SC2154 # debian.sh sets scratch
# Sourced after debian.sh: Debian's kernels, unpacked and never installed, and what a virtual machine needs to boot one.
#
# $scratch/kernels/VERSION/   vmlinuz, initrd, lib/modules/, release (what uname -r prints)
# $scratch/roots/RELEASE.img  the disk of a virtual machine, made of the root file system beside it

# kernel_packages: prints the names of all kernel packages in Debian's lists, oldest first.
kernel_packages() {
  own_apt apt-cache pkgnames linux-image- | grep -E '^linux-image-[0-9.]+[-+][a-z0-9.]*-amd64$' | sort -V
}

# kernel_candidates VERSION: prints the packages of a version, newest first. 6.12 means any 6.12.x, 6.12.94 only that one.
kernel_candidates() {
  kernel_packages | grep -E "^linux-image-${1//./\\.}([.+-]|$)" | tac
}

# download_kernel PACKAGE FOLDER: downloads the packages with a kernel and its modules.
download_kernel() {
  local flavour=${1#linux-image-} packages=$1
  # Since 7.2 linux-image-* is empty: the kernel is in linux-binary-*, its modules in linux-modules-*.
  if own_apt apt-cache show "linux-binary-$flavour" >/dev/null 2>&1; then
    packages="linux-binary-$flavour linux-modules-$flavour linux-base-$flavour"
  fi
  say "downloading $packages"
  # shellcheck disable=SC2086 # one argument each
  (cd "$2" && own_apt apt-get -qq download $packages >/dev/null)
}

# have_kernel VERSION: whether fetch_kernel has nothing to do.
have_kernel() { [ -e "$scratch/kernels/$1/initrd" ]; }

# fetch_kernel VERSION: downloads and unpacks a kernel, and creates its initramfs for on-kernel. Done once per version.
fetch_kernel() {
  local version=$1 to="$scratch/kernels/$1" package deb release
  ! have_kernel "$version" || return 0
  own_apt_update || { say "no package lists: is the mirror reachable?"; return 1; }
  rm -rf "$to" "$to.new"
  mkdir -p "$to.new/unpacked"
  # A mirror may list packages that it no longer has. Then the next older one is used.
  for package in $(kernel_candidates "$version" | head -n 4); do
    download_kernel "$package" "$to.new" && break
    rm -f "$to.new"/*.deb
  done
  [ -n "$(find "$to.new" -name '*.deb')" ] || { say "Debian has no kernel $version; on-kernel --list names those it has"; return 1; }
  for deb in "$to.new"/*.deb; do dpkg -x "$deb" "$to.new/unpacked"; done
  rm "$to.new"/*.deb
  find "$to.new/unpacked" -name 'vmlinuz*' -type f -exec mv {} "$to.new/vmlinuz" \;
  mkdir -p "$to.new/lib"
  find "$to.new/unpacked" -path '*lib/modules' -type d -prune -exec mv {} "$to.new/lib/modules" \;
  rm -r "$to.new/unpacked"
  release=$(ls "$to.new/lib/modules")
  echo "$release" >"$to.new/release"
  depmod -b "$to.new" "$release"
  make_initrd "$to.new" "$release" || return 1
  mv "$to.new" "$to"
}

# make_initrd KERNEL-FOLDER RELEASE: creates an initramfs with busybox, the modules for the disk and the shared folders, and
# an init that mounts the disk.
make_initrd() {
  local kernel=$1 release=$2 ram="$1/initramfs" module file number=100
  mkdir -p "$ram"/{bin,dev,proc,sys,new,modules}
  cp "$(command -v busybox)" "$ram/bin/busybox"
  ln -s busybox "$ram/bin/sh"
  # A missing module is built into the kernel.
  for module in virtio_pci virtio_blk virtio_rng crc32c_generic ext4 9pnet_virtio 9p; do
    modprobe -d "$kernel" -S "$release" --show-depends "$module" 2>/dev/null || true
  done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' >"$kernel/boot-modules"
  while read -r file; do
    module=$(basename "$file")
    case "$file" in
      *.xz) xz -dc "$file" ;;
      *.zst) zstd -qdc "$file" ;;
      *) cat "$file" ;;
    esac >"$ram/modules/$number-${module%%.ko*}.ko"
    number=$((number + 1))
  done <"$kernel/boot-modules"
  cat >"$ram/init" <<'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in /modules/*.ko; do $b insmod $module || echo "insmod $module failed"; done
# The probe of on-kernel only checks whether, and how fast, a kernel starts.
$b grep -q vm.probe /proc/cmdline && $b poweroff -f
$b mount -t ext4 -o noatime /dev/vda /new || { echo "no disk"; $b poweroff -f; }
$b umount /proc /sys /dev
exec $b switch_root /new /sbin/vm-init
INIT
  chmod +x "$ram/init"
  (cd "$ram" && find . -print0 | cpio --null -o -H newc --quiet) | gzip -1 >"$kernel/initrd"
  rm -r "$ram"
}

# have_disk RELEASE: whether make_disk has nothing to do.
have_disk() {
  local root="$scratch/roots/$1"
  [ -e "$root.done" ] && [ "$root.img" -nt "$root.done" ] && [ "$root.img" -nt "$(dirname "${BASH_SOURCE[0]}")/vm-init" ]
}

# make_disk RELEASE: creates the disk image of a root file system, with the init that runs one command and keeps its exit
# status.
make_disk() {
  local release=$1 root="$scratch/roots/$1" size image="$scratch/roots/$1.img"
  ! have_disk "$release" || return 0
  make_root "$release" || return 1
  install -m 0755 "$(dirname "${BASH_SOURCE[0]}")/vm-init" "$root/sbin/vm-init"
  size=$(($(du -sm --apparent-size "$root" | cut -f1) * 2 + 600))
  rm -f "$image.new"
  # Without the features that kernels before 5.15 cannot mount. An older mke2fs does not know these features.
  mke2fs -q -F -t ext4 -O ^metadata_csum_seed,^orphan_file -d "$root" "$image.new" "${size}M" >/dev/null 2>&1 ||
    mke2fs -q -F -t ext4 -d "$root" "$image.new" "${size}M" >/dev/null || return 1
  mv "$image.new" "$image"
}
