#!/bin/sh
# Becomes a Docker engine inside the namespaces that engine.py has made: ROOT becomes the root, FOLDER keeps its path.
#   start_engine.sh ROOT FOLDER ADDRESS GATEWAY MTU CGROUP
set -eu
root=$1 folder=$2 address=$3 gateway=$4 mtu=$5 cgroup=$6

# A chroot is not enough: runc would start the programs of health checks in the real root.
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for tree in dev sys; do mount --rbind "/$tree" "$root/$tree"; done
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/lock" "$root/.old" "$root$folder"
mount --bind "$folder" "$root$folder"
cd "$root"
pivot_root . .old
cd /
umount -l /.old

until ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done
ip link set lo up
ip addr add "$address" dev eth0
ip link set eth0 up mtu "$mtu"
ip route add default via "$gateway"

dockerd --host "unix://$folder/docker.sock" --data-root "$folder/data" --exec-root /run/docker \
    --pidfile /run/docker.pid --cgroup-parent "$cgroup" &
engine=$!
trap 'kill "$engine"' TERM
wait "$engine" || wait "$engine" # the first wait ends with the signal, the second with the engine
