#!/bin/sh
# Process 1 once the guest has its root: mounts its own file systems, runs the command, reports, switches off.
# The ports: 1 and 2 are the command's stdout and stderr, 3 takes its exit status.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DM_DISABLE_UDEV=1 # no udev here: dmsetup makes its nodes itself
busybox=/run/guest/busybox
for first in /dev/vport*p1; do port=${first%1}; done

# The root is an overlay, on which fanotify reports no file handles: tests need other file systems. The kernel
# calls modprobe for those that it has as modules.
GRACE_TEST_FS=
while read -r kind device at; do
	mkdir -p "$at"
	if why=$(mount -t "$kind" "$device" "$at" 2>&1); then
		GRACE_TEST_FS=${GRACE_TEST_FS:+$GRACE_TEST_FS,}$kind=$at
	else
		echo "vm: no $kind in $(uname -r): $why" | tee /dev/kmsg >"${port}2"
	fi
	chmod 1777 "$at"
done <"$1/file-systems"
export GRACE_TEST_FS

/bin/sh "$1/command" </dev/null >"${port}1" 2>"${port}2"
status=$?
$busybox sync
echo "$status" >"${port}3"
echo o >/proc/sysrq-trigger
while :; do $busybox sleep 60; done
