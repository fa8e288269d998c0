# Greets whoever reaches the demo's shell.
echo
echo "Linux $(uname -r) on $(nproc) CPUs, root on ext4 over virtio-blk, eth0 at 10.77.0.2 (host: 10.77.0.1)."
echo "exit or poweroff ends the guest; Ctrl-A X quits, Ctrl-A H helps."
echo
