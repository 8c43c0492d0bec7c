#!/usr/bin/env bash
# Replaces every worker, then every front end, without a refused request or a broken stream:
#
#   deploy/rolling-update.sh              build the image, then replace the containers
#   deploy/rolling-update.sh --no-build   replace them only: the image was loaded, or .env has changed
#
# It reads the same .env, COMPOSE_FILE and other variables as `docker compose`. For each service it starts as many new
# containers as there are, waits until they are healthy, and stops the old ones one at a time. A stop takes as long as
# the runs and streams of the container, at most AGENTSTREAM_DRAIN_TIMEOUT_S, so set that to your longest usual answer.
# If the new containers do not get healthy, it removes them, and the old image gets its name back. After an update the
# old image is called agentstream:previous. To go back: docker tag agentstream:previous agentstream, then --no-build.
set -euo pipefail

MIN_DOCKER=20.10 # knows host-gateway, which compose.yaml uses
MIN_COMPOSE=2.24 # knows env_file with `required`, which compose.yaml uses
DNS_S=3          # nginx asks Docker's DNS every 2 s
HEALTHY_S=180    # the longest start of a container

fail() {
    printf 'rolling-update: %s\n' "$*" >&2
    exit 1
}

# Not `head`: it may end before docker has written everything, and docker would fail.
first_line() { printf '%s\n' "${1%%$'\n'*}"; }

at_least() { # HAVE MINIMUM
    [ "$(first_line "$(printf '%s\n' "$1" "$2" | sort -V)")" = "$2" ]
}

check_versions() {
    local engine compose
    command -v docker >/dev/null || fail "there is no command docker: install Docker $MIN_DOCKER or newer"
    engine=$(docker version --format '{{.Server.Version}}' 2>&1) || fail "no Docker engine answers: $engine"
    at_least "$engine" $MIN_DOCKER || fail "the Docker engine is $engine; $MIN_DOCKER or newer is needed: update Docker"
    compose=$(docker compose version --short 2>/dev/null) ||
        fail "this docker has no command compose: install its plugin, Docker Compose $MIN_COMPOSE or newer"
    at_least "${compose#v}" $MIN_COMPOSE ||
        fail "Docker Compose is $compose; $MIN_COMPOSE or newer is needed: update the plugin of the docker command"
}

containers() { docker compose ps --all --quiet "$1"; }

image() { docker image inspect --format '{{.Id}}' "$1" 2>/dev/null || true; }

# Removes an image if no name and no container uses it.
drop_unnamed() {
    [ -z "$1" ] || [ "$(docker image inspect --format '{{len .RepoTags}}' "$1" 2>/dev/null)" != 0 ] ||
        docker image rm "$1" >/dev/null 2>&1 || true
}

build() {
    # The front end's image first: an image of your own may be built FROM it.
    docker compose build frontend && docker compose build || fail "the image was not built; nothing was replaced. \
If this machine cannot build it, load one (docker load), and run this with --no-build"
}

# The containers of $service that are not in $old.
new_containers() { containers "$service" | grep -vxF "$old" || true; }

undo() {
    local broken id
    for id in $(new_containers); do docker rm --force "$id" >/dev/null; done
    broken=$(image "$name")
    docker tag "$image_before" "$name"
    drop_unnamed "$broken"
}

stop_old() {
    local id
    for id in $old; do
        printf '%s: stopping %s\n' "$service" "$(docker inspect --format '{{slice .Name 1}}' "$id")"
        docker stop "$id" >/dev/null # for at most stop_grace_period, which Compose has written into the container
        docker rm "$id" >/dev/null
    done
}

interrupted() {
    trap '' INT TERM
    case $phase in
        starting) undo && echo "interrupted: the new containers were removed" >&2 ;;
        # The new containers are healthy and serve, so the old ones can go, all at once.
        stopping) docker stop $old >/dev/null 2>&1 || true && docker rm $old >/dev/null 2>&1 || true ;;
    esac
    exit 130
}

replace() { # SERVICE
    local count id
    service=$1
    docker compose rm --force "$service" >/dev/null 2>&1 # those that have stopped would be started again
    old=$(containers "$service")
    count=$(wc -w <<<"$old")
    printf '%s: starting %d new containers\n' "$service" "$count"
    phase=starting
    # Without --no-deps: with it, Compose 2.26 would replace the new containers at the next `up`.
    if ! COMPOSE_PROGRESS=quiet docker compose up --detach --no-recreate --no-build --wait \
        --wait-timeout $HEALTHY_S --scale "$service=$((2 * count))" "$service"; then
        for id in $(new_containers); do docker logs --tail 5 "$id" 2>&1 | sed 's/^/    /' >&2; done
        undo
        fail "the new containers of $service did not get healthy (see their log above). They were removed, and the old ones serve"
    fi
    sleep $DNS_S
    phase=stopping
    stop_old
    phase=
}

check_versions
case ${1-} in
    '' | --no-build) ;;
    *) fail "unknown option $1: there is only --no-build" ;;
esac
for service in worker frontend; do
    [ -n "$(docker compose ps --quiet $service)" ] ||
        fail "no $service runs, so there is nothing to replace: start everything with docker compose up --detach --wait"
done

phase='' old=''
running=$(first_line "$(docker compose ps --quiet frontend)")
name=$(docker inspect --format '{{.Config.Image}}' "$running") # agentstream, unless another compose file names it
image_before=$(docker inspect --format '{{.Image}}' "$running")
case ${name##*/} in *:*) previous=${name%:*}:previous ;; *) previous=$name:previous ;; esac
trap interrupted INT TERM
if [ -z "${1-}" ]; then build; fi
replace worker # first: a new front end may send jobs that an old worker does not understand
replace frontend

if [ "$image_before" != "$(image "$name")" ]; then
    older=$(image "$previous")
    docker tag "$image_before" "$previous"
    drop_unnamed "$older"
fi
echo "done: $(containers worker | wc -l) workers and $(containers frontend | wc -l) front ends are new"

nginx=$(docker compose ps --quiet nginx)
if [ -n "$nginx" ]; then
    file=$(docker inspect --format '{{range .Mounts}}{{if eq .Destination "/etc/nginx/nginx.conf"}}{{.Source}}{{end}}{{end}}' "$nginx")
    [ ! -r "$file" ] || docker exec "$nginx" cat /etc/nginx/nginx.conf | cmp -s - "$file" ||
        echo "$file has changed; nginx reads it at its next start: docker compose restart nginx"
fi
