#!/bin/busybox sh
# First process of the nested machine: loads what KVM needs, makes the host's root writable in
# memory, runs the job there and reports its exit code through the shared folder. Where the host's
# programs do not run, the root is this one, with the repository (/repository) at its path.
export PATH=/bin
mkdir /host /memory
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module parameters; do insmod "$module" $parameters; done </etc/modules
# Guests wait in the emulator, not in a loop that the emulator has to run.
echo 0 2>/dev/null >/sys/module/kvm/parameters/halt_poll_ns
shared=$(cat /shared-folder)

mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,ro,cache=loose host /host
finish() {
    echo $? >"$1/exit.part"
    mv "$1/exit.part" "$1/exit"
    sync
    poweroff -f
}
if [ -e /repository ]; then
    repository=$(cat /repository)
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=666 devpts /dev/pts
    mount -t tmpfs shm /dev/shm
    mount -t tmpfs run /run
    mount -t tmpfs tmp /tmp
    mkdir -p "$repository" "$shared"
    mount --bind "/host$repository" "$repository"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=none shared "$shared"
    ip link set lo up
    : >"$shared/up"
    setsid -c sh "$shared/job" <>/dev/hvc0 >&0 2>&1
    finish "$shared"
fi
mount -t tmpfs -o size=75% memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root
for part in proc sys dev; do mount --move /$part /root/$part; done
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
mkdir -p "/root$shared"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=none shared "/root$shared"
ip link set lo up
hostname nested

# Linux gives its first process less than others have on a host.
ulimit -n 1048576
# The kernel makes user namespaces only where the root folder is the root of all mounts.
cd /root
mount --move . /
: >".$shared/up"
setsid -c chroot . /bin/sh "$shared/job" <>dev/hvc0 >&0 2>&1
finish ".$shared"
