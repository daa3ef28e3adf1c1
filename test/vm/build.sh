#!/bin/sh
# Makes the disk of a virtual machine with Debian 12, systemd and cgroup v2, once, and prints the folder that has it:
# root.img, vmlinuz, initrd.img. It is made anew when this file changes.
#   sh test/vm/build.sh
# DEBIAN_MIRROR names another mirror than debootstrap takes by itself; XDG_CACHE_HOME another place than ~/.cache.
set -eu
cd "$(dirname "$0")"
PATH=$PATH:/usr/sbin:/sbin
die() { echo "test/vm: $*" >&2; exit 1; }

[ "$(uname -m)" = x86_64 ] || die "only for x86_64"
[ "$(id -u)" = 0 ] || die "debootstrap needs root"
folder=${XDG_CACHE_HOME:-$HOME/.cache}/keelson/vm-$(sha256sum build.sh | cut -c 1-12)
if [ -e "$folder/root.img" ]; then
  echo "$folder"
  exit 0
fi

for program in debootstrap mke2fs; do
  command -v $program > /dev/null || die "no $program: apt-get install qemu-system-x86 debootstrap e2fsprogs"
done
packages=systemd,systemd-sysv,udev,dbus,kmod,zstd,initramfs-tools,linux-image-cloud-amd64
packages=$packages,runc,crun,conmon,catatonit,containernetworking-plugins,iptables,iproute2
packages=$packages,docker-registry,skopeo,busybox-static,libatomic1,libstdc++6,procps,util-linux,openssl,ca-certificates
packages=$packages,containerd,strace,umoci,bsdutils,libisal2,nfs-kernel-server,nfs-common
mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "test/vm: making a Debian system (some minutes)" >&2
nice -n 10 debootstrap --variant=minbase --include=$packages bookworm "$work/root" \
  ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} > "$work/log" 2>&1 || {
  tail -n 20 "$work/log" >&2
  die "debootstrap failed"
}
rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
root=$work/root
: > "$root/etc/fstab"
echo keelson-vm > "$root/etc/hostname"
echo '127.0.0.1 localhost keelson-vm' > "$root/etc/hosts"
ln -sf /dev/null "$root/etc/systemd/system/docker-registry.service"

# The disk /dev/vdb has the checkout and the command. Its output goes to ttyS1, its exit code to ttyS2.
cat > "$root/usr/local/sbin/keelson-vm" << 'END'
#!/bin/sh
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
ip address add 192.0.2.2/24 dev eth0 && ip link set eth0 up && ip route add default via 192.0.2.1
mkdir -p /keelson && mount /dev/vdb /keelson && cd /keelson/checkout
sh ../command > /dev/ttyS1 2>&1 < /dev/null
echo $? > /dev/ttyS2
sync
systemctl poweroff --force
END
chmod 755 "$root/usr/local/sbin/keelson-vm"
cat > "$root/etc/systemd/system/keelson-vm.service" << 'END'
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/keelson-vm
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
OOMPolicy=continue
[Install]
WantedBy=multi-user.target
END
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../keelson-vm.service "$root/etc/systemd/system/multi-user.target.wants/keelson-vm.service"

cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd.img"
nice -n 10 mke2fs -q -t ext4 -d "$root" "$work/root.img" 4G > /dev/null
rm -rf "$root" "$work/log"
mv -T "$work" "$folder" 2> /dev/null || [ -e "$folder/root.img" ] || die "cannot make $folder"
trap - EXIT
rm -rf "$work"
echo "$folder"
