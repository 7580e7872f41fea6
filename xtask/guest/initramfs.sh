#!/bin/busybox sh
# The guest's first program. Makes a root file system out of the host's and hands over to command.sh there.
# The kernel's command line names the run's folder on the host: grace.run=DIR.
bb=/bin/busybox
$bb mkdir -p /proc /sys /dev /host /layer /root
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1
$bb --install -s /bin
PATH=/bin
set -e
trap 'echo "grace: no root file system"; poweroff -f' EXIT

for word in $(cat /proc/cmdline); do
	case $word in grace.run=*) run=${word#*=} ;; esac
done
while read -r module; do
	insmod "/modules/$module" || echo "grace: insmod $module failed"
done </modules/order

# All of the host to read; what is written goes to memory.
mount -t virtiofs host /host
mount -t tmpfs -o mode=755 layer /layer
mkdir /layer/upper /layer/work /layer/host
mount --bind /host /layer/host
mount -o remount,bind,ro /host
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root

mount -t sysfs sysfs /root/sys
for pair in securityfs:security debugfs:debug tracefs:tracing; do
	mount -t "${pair%:*}" "${pair%:*}" "/root/sys/kernel/${pair#*:}"
done
mount -t bpf bpf /root/sys/fs/bpf
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
for controller in $(cat /root/sys/fs/cgroup/cgroup.controllers); do
	echo "+$controller" >/root/sys/fs/cgroup/cgroup.subtree_control || echo "grace: no cgroup controller $controller"
done

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount --move /dev /root/dev
mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/guest
cp /bin/busybox /command.sh /root/run/guest/
ip link set lo up
hostname guest

# This kernel's modules, and the folders in which the command may write for good.
mkdir -p /root/lib/modules
mount --bind "/layer/host$(cat "/host$run/modules")" /root/lib/modules
while read -r folder; do
	mount --bind "/layer/host$folder" "/root$folder"
done <"/host$run/folders"
umount -l /layer/host
mount --move /proc /root/proc
trap - EXIT
exec switch_root /root /run/guest/busybox sh /run/guest/command.sh "$run"
