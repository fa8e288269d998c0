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

if [ -e /run/job ]; then
    stty raw -echo <"$console"
    printf '\001begin\001' >"$console"
    setsid /bin/sh /run/job </dev/null >"$console" 2>&1
    printf '\001exit=%d\001' $? >"$console"
    # Changing the mode waits until everything written before has left.
    stty sane <"$console"
else
    [ -n "$size" ] && stty rows "${size%x*}" cols "${size#*x}" <"$console"
    setsid -c /bin/sh -l <>"$console" >&0 2>&1
fi
exec /etc/stop poweroff
