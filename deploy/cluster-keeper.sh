#!/bin/sh
# Makes Redis servers a Redis Cluster and keeps them together. compose.yaml runs it in its profile `cluster`.
#   cluster-keeper.sh HOST:PORT...    the first half become primaries, the others their replicas
# Redis Cluster knows its nodes by address, and containers that start again may get other addresses. So every few
# seconds this introduces nodes that have lost each other. It changes nothing in a cluster that is complete. It moves
# no slots and removes no nodes. The file `whole` (in $STATE_DIR, or /tmp) exists while every slot has a primary.
set -eu

SLOTS=16384
EVERY_S=${EVERY_S:-2}
nodes=$* count=$# whole=${STATE_DIR:-/tmp}/whole
[ "$count" -ge 2 ] || { echo "usage: cluster-keeper.sh HOST:PORT..., at least two" >&2; exit 2; }
primaries=$((count / 2))
rm -f "$whole"
trap 'exit 0' TERM INT

say() { printf 'cluster-keeper: %s\n' "$*"; }

ask() { # NODE COMMAND...
    asked=$1
    shift
    timeout 3 redis-cli -e -h "${asked%:*}" -p "${asked##*:}" "$@" 2>/dev/null
}

# The address of a node that answers, or nothing. CLUSTER MEET takes no host names.
address() { # NODE
    [ "$(ask "$1" ping)" = PONG ] && getent ahostsv4 "${1%:*}" | awk '{ print $1; exit }'
}

# How many nodes this node has a connection to, itself included.
connected() { # NODE
    ask "$1" cluster nodes | awk '$3 !~ /fail|handshake|noaddr/ && $8 == "connected" { n++ } END { print n + 0 }'
}

introduce() { # NODE
    for peer in $nodes; do
        [ "$peer" != "$1" ] || continue
        ip=$(address "$peer") || continue
        ask "$1" cluster meet "$ip" "${peer##*:}" >/dev/null || true
    done
}

slots() { # NODE FIELD
    ask "$1" cluster info | tr -d '\r' | sed -n "s/^cluster_slots_$2://p"
}

is_empty_primary() { # NODE
    ask "$1" cluster nodes | awk '$3 ~ /myself,master/ && NF == 8 { found = 1 } END { exit !found }'
}

# Gives each of the first nodes its share of the slots, if nobody has them. Redis refuses slots that are taken.
share_slots() {
    number=0
    for node in $nodes; do
        [ "$number" -lt "$primaries" ] || break
        first=$((SLOTS * number / primaries)) number=$((number + 1))
        last=$((SLOTS * number / primaries - 1))
        if is_empty_primary "$node" && ask "$node" cluster addslotsrange "$first" "$last" >/dev/null; then
            say "$node gets the slots $first to $last"
        fi
    done
}

# The id of the primary that has slots and the fewest replicas. Each node is asked about itself, because the others
# learn of a change later.
poorest_primary() {
    for peer in $nodes; do ask "$peer" cluster nodes | grep -w myself || true; done | awk '
        $3 ~ /master/ && NF > 8 { primary[$1] }
        $3 ~ /slave/ { replicas[$4]++ }
        END {
            for (id in primary) if (best == "" || replicas[id] + 0 < replicas[best] + 0) best = id
            print best
        }'
}

add_replicas() {
    for node in $nodes; do
        is_empty_primary "$node" || continue
        id=$(poorest_primary)
        if [ -n "$id" ] && ask "$node" cluster replicate "$id" >/dev/null; then
            say "$node becomes a replica of $id"
        fi
    done
}

while :; do
    complete=yes
    for node in $nodes; do
        seen=$(connected "$node") || seen=0
        if [ "$seen" -lt "$count" ]; then
            complete=
            [ "$seen" -eq 0 ] || introduce "$node"
        fi
    done
    covered=
    for node in $nodes; do
        if [ "$(slots "$node" ok)" = $SLOTS ]; then
            covered=yes
            break
        fi
    done
    if [ -n "$complete" ]; then
        # Only a new cluster has slots that belong to nobody. The slots of a lost primary still belong to it.
        [ "$(slots "${nodes%% *}" assigned)" = $SLOTS ] && add_replicas || share_slots
    fi
    if [ -n "$covered" ] && [ ! -e "$whole" ]; then
        say "every slot has a primary" && : >"$whole"
    elif [ -z "$covered" ] && [ -e "$whole" ]; then
        say "some slots have no primary" && rm -f "$whole"
    fi
    sleep "$EVERY_S" &
    wait $!
done
