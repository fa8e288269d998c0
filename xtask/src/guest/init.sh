#!/bin/busybox sh
# First process of a guest: mounts, modules, the root that the kernel command line names, network.
# Then hands over to busybox's init, whose inittab starts /etc/main.
#
#   root=DEVICE [ro]           continue on this disk, which holds the same kind of tree
#   ossature.ip=ADDRESS/BITS   of eth0
export PATH=/bin

if [ "$1" != from-initramfs ]; then
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=666 devpts /dev/pts
    mount -t tmpfs shm /dev/shm
    mount -t tmpfs run /run
    read -r modules </etc/modules && modprobe -a $modules
    [ -e /job ] && cp -p /job /run/job
fi

root='' mode=rw address=''
read -r words </proc/cmdline
for word in $words; do
    case $word in
    root=*) root=${word#*=} ;;
    ro) mode=ro ;;
    ossature.ip=*) address=${word#*=} ;;
    esac
done

if [ "$1" != from-initramfs ] && [ -n "$root" ]; then
    if mount -t ext4 -o "$mode" "$root" /new; then
        for part in proc sys dev run; do mount --move /$part /new/$part; done
        exec switch_root /new /init from-initramfs
    fi
    echo "init: cannot mount $root: staying in the initramfs" >&2
fi

ip link set lo up
if [ -n "$address" ]; then
    ip address add "$address" dev eth0
    ip link set eth0 up
fi
exec init
