#!/bin/sh
# Starts a container of compose.yaml's profile `sentinel`:
#   sentinel-node.sh server HOST PORT COMMAND...    a Redis server. At its first start HOST is the primary
#   sentinel-node.sh sentinel HOST PORT COMMAND...  a sentinel. At its first start it watches HOST as `agentstream`
# After a failover the sentinels and the servers write into their own files who is the primary now. These files are in
# $DATA_DIR (or /data), a volume, so that a later start continues with the roles that they had.
set -eu
kind=$1 primary=$2 port=$3
shift 3
file=${DATA_DIR:-/data}/$kind.conf

if [ -s "$file" ]; then
    : # a later start
elif [ "$kind" = sentinel ]; then
    # Two of the three sentinels must agree that the primary has not answered for 5 s.
    cat >"$file.new" <<END
port 26379
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $HOSTNAME
sentinel monitor agentstream $primary $port 2
sentinel down-after-milliseconds agentstream 5000
sentinel failover-timeout agentstream 30000
END
elif [ "$HOSTNAME" = "$primary" ]; then
    echo "# the primary" >"$file.new"
else
    echo "replicaof $primary $port" >"$file.new"
fi
[ ! -e "$file.new" ] || mv "$file.new" "$file" # a whole file or none
program=$1
shift
exec "$program" "$file" "$@"
