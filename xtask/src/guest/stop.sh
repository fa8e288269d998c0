#!/bin/sh
# Powers off or reboots ($1) at once, but with the file systems in order.
kill -KILL -1
sync
mount -o remount,ro / 2>/dev/null
"$1" -f
