#!/bin/busybox sh
# First process of the nested machine: loads what KVM needs, makes the host's root writable in
# memory, runs the job there and reports its exit code through the shared folder. Where the host's
# programs do not run, the root is another one (/root-folder), with some of the host's folders (/host-folders).
export PATH=/bin
mkdir /host /memory
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
read -r modules </etc/modules
modprobe -a $modules
# Guests wait in the emulator, not in a loop that the emulator has to run.
echo 0 2>/dev/null >/sys/module/kvm/parameters/halt_poll_ns
shared=$(cat /shared-folder)

mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,ro,cache=loose host /host
# The root folder of the machine: the host's, or another architecture's that the host has unpacked.
lower=/host$(cat /root-folder)
mount -t tmpfs -o size=75% memory /memory
overlay() {
    mkdir -p "/memory/$1/upper" "/memory/$1/work" "$3"
    mount -t overlay -o "lowerdir=$2,upperdir=/memory/$1/upper,workdir=/memory/$1/work" "$1" "$3"
}
overlay root "$lower" /root
count=0
while read -r folder; do
    count=$((count + 1))
    overlay "folder$count" "/host$folder" "/root$folder"
done </host-folders
for part in proc sys dev; do mount --move /$part /root/$part; done
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
mkdir -p "/root$shared"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=none shared "/root$shared"
# A folder that several machines have, if there is one.
mkdir -p "/root$shared/common"
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none common "/root$shared/common" 2>/dev/null
ip link set lo up
hostname nested
mkdir -p /root/tmp
chmod 1777 /root/tmp

# Linux gives its first process less than others have on a host.
ulimit -n 1048576
# The kernel makes user namespaces only where the root folder is the root of all mounts.
cd /root
mount --move . /
: >".$shared/up"
setsid -c chroot . /bin/sh "$shared/job" <>dev/hvc0 >&0 2>&1
echo $? >".$shared/exit.part"
mv ".$shared/exit.part" ".$shared/exit"
sync
poweroff -f
