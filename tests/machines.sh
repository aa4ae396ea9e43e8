#!/usr/bin/env bash
# Becomes the systemd of a machine that is thrown away: run by machines.py inside fresh pid, mount, cgroup, uts and ipc
# namespaces. The root is an overlay over / whose upper layer is in memory, so nothing that the units do reaches this machine.
# The network is shared: servers of the tests listen on this machine's loopback.
#
#   machines.sh WORK [SOURCE TARGET]...     each SOURCE of this machine stands at TARGET of the new one
set -euo pipefail
work=$1; shift
mount -t tmpfs tmpfs "$work"
mkdir "$work"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
while [ $# -gt 0 ]; do
  mkdir -p "$work/root$2"; mount --rbind "$1" "$work/root$2"; shift 2
done
cd "$work/root"

# What may be written under /sys and /proc/sys belongs to the kernel that both machines share.
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do touch "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

# Of the units of this machine, none starts by itself. The tests install and start theirs.
rm -rf {,usr/}lib/systemd/{system,user}-generators {,usr/}lib/systemd/{system,user}/*.wants etc/systemd/{system,user}
mkdir -p etc/systemd/system run/systemd/system old
printf '[Unit]\nDescription=The manager and its journal\nWants=systemd-journald.service\n' >run/systemd/system/bare.target

# Shared again after the move: else what LoadCredential= mounts is not seen by the service.
mount --make-rprivate /
pivot_root . old
umount -l /old
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=mlferry-tests \
  /lib/systemd/systemd --system --unit=bare.target --log-target=journal-or-kmsg --log-level=notice --show-status=0
