#!/bin/busybox sh
# First process of a guest. Runs /job, if there is one, and reports its output and exit code in a
# frame on the console (see frame.rs); otherwise offers a shell. Then powers off.
#
# Kernel command line:
#   root=DEVICE [ro]           continue on this disk, which holds the same kind of tree
#   ossature.console=NAME      hvc0, ttyS0, ...; default: the kernel's console
#   ossature.ip=ADDRESS/BITS   of eth0
export PATH=/bin HOME=/root TERM=linux PS1='guest:\w# '

# Ends processes and file systems in order. $1: poweroff or reboot
stop() {
    kill -KILL -1
    sync
    mount -o remount,ro / 2>/dev/null
    $1 -f
}
trap 'stop poweroff' USR2
trap 'stop reboot' TERM INT

if [ "$1" != from-initramfs ]; then
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=666 devpts /dev/pts
    mount -t tmpfs shm /dev/shm
    mount -t tmpfs run /run
    while read -r module parameters; do insmod "$module" $parameters; done </etc/modules
    [ -e /job ] && cp -p /job /run/job
fi

root='' mode=rw console='' address=''
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#*=} ;;
    ro) mode=ro ;;
    ossature.console=*) console=${word#*=} ;;
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

# From here on only emergencies of the kernel come between what the job prints.
dmesg -n 1
ip link set lo up
if [ -n "$address" ]; then
    ip address add "$address" dev eth0
    ip link set eth0 up
fi
echo 0 >/proc/sys/kernel/ctrl-alt-del
acpid -d >/run/acpid.log 2>&1 &
if [ -z "$console" ]; then
    read -r consoles </sys/class/tty/console/active
    console=${consoles##* }
fi
console=/dev/$console

if [ -e /run/job ]; then
    stty raw -echo <"$console"
    printf '\001begin\001' >"$console"
    setsid /bin/sh /run/job </dev/null >"$console" 2>&1 &
    wait $!
    printf '\001exit=%d\001' $? >"$console"
    # Changing the mode waits until everything written before has left.
    stty sane <"$console"
else
    setsid -c /bin/sh -l <>"$console" >&0 2>&1 &
    wait $!
fi
stop poweroff
