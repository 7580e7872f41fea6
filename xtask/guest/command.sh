#!/bin/sh
# Process 1 once the guest has its root: mounts the scratch disk, runs the command, reports, switches off.
# The ports: 1 and 2 are the command's stdout and stderr, 3 takes its exit status.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DM_DISABLE_UDEV=1 # no udev here: dmsetup makes its nodes itself
busybox=/run/guest/busybox
for first in /dev/vport*p1; do port=${first%1}; done

# fanotify reports no file handles on overlay, so tests need a file system of their own.
mkdir -p /mnt/grace-test
mount -t ext4 /dev/vda /mnt/grace-test || echo "grace: no scratch disk" >/dev/kmsg
chmod 1777 /mnt/grace-test

/bin/sh "$1/command" </dev/null >"${port}1" 2>"${port}2"
status=$?
$busybox sync
echo "$status" >"${port}3"
echo o >/proc/sysrq-trigger
while :; do $busybox sleep 60; done
