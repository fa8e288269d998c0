#!/bin/sh
# Runs /run/job, if there is one, and reports its output and exit code in a frame on the console (see
# frame.rs); otherwise offers a shell. Then powers off.
#
#   ossature.console=NAME        hvc0, ttyS0, ...; default: the kernel's console
#   ossature.serial=NAME         ttyS0 or ttyAMA0: where the job's standard error goes, see the next
#   ossature.streams=TOKEN       the console is the job's standard input too, and the serial port its standard error, in a frame of
#                                its own; the token is in the frames' marks. Input is in blocks, each behind a line with
#                                its length, and ends with one of length 0
#   ossature.size=ROWSxCOLUMNS   of the terminal that the shell is on
export HOME=/root TERM=linux PS1='guest:\w# '

# From here on only emergencies of the kernel come between what the job prints.
echo 1 >/proc/sys/kernel/printk
console='' size='' token='' serial=ttyS0
read -r words </proc/cmdline
for word in $words; do
    case $word in
    ossature.console=*) console=${word#*=} ;;
    ossature.serial=*) serial=${word#*=} ;;
    ossature.size=*) size=${word#*=} ;;
    ossature.streams=*) token=${word#*=} ;;
    esac
done
if [ -z "$console" ]; then
    read -r consoles </sys/class/tty/console/active
    console=${consoles##* }
fi
console=/dev/$console
# Held open: some terminals forget their mode when nobody has them open.
exec 3<>"$console"

input() {
    while read -r length <&3 && [ "$length" -gt 0 ]; do
        dd bs="$length" count=1 iflag=fullblock status=none <&3 || return
    done
}

if [ -e /run/job ] && [ -n "$token" ]; then
    exec 4<>"/dev/$serial"
    stty raw -echo <&3
    stty raw -echo <&4
    printf '\001%sbegin\001' "$token" >&4
    printf '\001%sbegin\001' "$token" >&3
    mkfifo /run/input
    input >/run/input 4>&- &
    setsid /bin/sh /run/job </run/input >&3 2>&4 3>&- 4>&-
    code=$?
    printf '\001%sexit=%d\001' "$token" $code >&4
    printf '\001%sexit=%d\001' "$token" $code >&3
    # See below.
    stty sane <&4
    stty sane <&3
elif [ -e /run/job ]; then
    stty raw -echo <&3
    printf '\001begin\001' >&3
    setsid /bin/sh /run/job </dev/null >&3 2>&1 3>&-
    printf '\001exit=%d\001' $? >&3
    # Changing the mode waits until everything written before has left.
    stty sane <&3
else
    [ -n "$size" ] && stty rows "${size%x*}" cols "${size#*x}" <&3
    setsid -c /bin/sh -l <&3 >&3 2>&1 3>&-
fi
exec /etc/stop poweroff
