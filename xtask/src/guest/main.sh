#!/bin/sh
# Runs /run/job, if there is one, and reports its output and exit code in a frame on the console (see
# frame.rs); otherwise offers a shell. Then powers off.
#
#   ossature.console=NAME        hvc0, ttyS0, ...; default: the kernel's console
#   ossature.size=ROWSxCOLUMNS   of the terminal that the shell is on
export HOME=/root TERM=linux PS1='guest:\w# '

# From here on only emergencies of the kernel come between what the job prints.
dmesg -n 1
console='' size=''
for word in $(cat /proc/cmdline); do
    case $word in
    ossature.console=*) console=${word#*=} ;;
    ossature.size=*) size=${word#*=} ;;
    esac
done
if [ -z "$console" ]; then
    read -r consoles </sys/class/tty/console/active
    console=${consoles##* }
fi
console=/dev/$console
# Held open: some terminals forget their mode when nobody has them open.
exec 3<>"$console"

if [ -e /run/job ]; then
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
