#!/bin/bash
# Exits with 0 if the front end or the worker of this container answers GET /health/live with 200 within 4 s.
#   agentstream-healthcheck [frontend | worker]
# Without an argument, the command line of the container's first process says which of them runs here. The address
# comes from the same settings and flags as that of the process. A worker without AGENTSTREAM_METRICS_PORT has no
# address: the check then passes. No Python starts, because its start alone needs about ten times as much CPU as this check.
set -u
[ -n "${PROBE_IS_BOUNDED:-}" ] || PROBE_IS_BOUNDED=1 exec timeout 4 "$0" "$@"

words=()
[ ! -r /proc/1/cmdline ] || mapfile -d '' -t words < /proc/1/cmdline
role=${1:-}
for word in "${words[@]}"; do
    [ -n "$role" ] || case $word in frontend | worker) role=$word ;; esac
done

# read_setting VARIABLE FLAG DEFAULT: sets $value, without the quotes that docker --env-file keeps
read_setting() {
    local at
    value=${!1:-}
    for at in "${!words[@]}"; do
        case ${words[at]} in
            "$2") value=${words[at + 1]:-} ;;
            "$2"=*) value=${words[at]#*=} ;;
        esac
    done
    value=${value//[[:space:]\"\']/}
    value=${value:-$3}
}

if [ "$role" = worker ]; then
    read_setting AGENTSTREAM_METRICS_PORT --metrics-port 0
    [ "$value" != 0 ] || exit 0
    port=$value
    read_setting AGENTSTREAM_METRICS_HOST --metrics-host 127.0.0.1
else
    read_setting AGENTSTREAM_PORT --port 8000
    port=$value
    read_setting AGENTSTREAM_HOST --host 127.0.0.1
fi
host=${value#[}
host=${host%]}
case $host in 0.0.0.0 | '*') host=127.0.0.1 ;; ::) host=::1 ;; esac

if ! { exec 3<> "/dev/tcp/$host/$port"; } 2> /dev/null; then
    echo "nothing listens on $host port $port"
    exit 1
fi
printf 'GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
read -r _ status _ <&3 || status='no answer'
if [ "$status" != 200 ]; then
    echo "GET /health/live on $host port $port: $status"
    exit 1
fi
