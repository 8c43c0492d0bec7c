# As in the official image: the server, without the protection that only admits this host.
set -eu
umask 0077
if [ "$1" = redis-server ]; then set -- "$@" --protected-mode no; fi
exec "$@"
