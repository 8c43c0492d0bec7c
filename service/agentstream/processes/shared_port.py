"""One port for several processes: the kernel spreads new connections over all that listen on it (SO_REUSEPORT)."""

import contextlib
import errno
import socket
from collections.abc import Iterator

from agentstream.errors import StartupError

# A name such as localhost may have an address that this machine lacks: those it has are listened on.
_ADDRESS_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextlib.contextmanager
def shared_port(host: str, port: int, *, setting: str = "AGENTSTREAM_PORT") -> Iterator[int]:
    """Keep a port for processes that will listen on it; yields its number, a free one for port 0.

    Bound and never listening, it gets no connections itself, and the kernel gives a free one to nobody else while no
    process listens there (yet, or for a moment). Raises StartupError if the port is taken, also by somebody who
    would share it: he would get a part of our requests. (SO_REUSEPORT asks for nothing but the same user.)
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        message = (
            "several processes on one port need SO_REUSEPORT, which this system lacks: "
            "set AGENTSTREAM_PROCESSES=1 and start them on ports of their own, behind a proxy"
        )
        raise StartupError(message)
    with contextlib.ExitStack() as stack:
        try:
            port = _bind_all_addresses(stack, host, port)
        except OSError as exc:
            message = f"cannot listen on {host}:{port} ({setting}): {exc.strerror}"
            raise StartupError(message) from exc
        yield port


def _bind_all_addresses(stack: contextlib.ExitStack, host: str, port: int) -> int:
    """Bind every address of a host to one port, until the stack is left; returns it, or raises OSError."""
    kept, missing = 0, OSError(errno.EADDRNOTAVAIL, "no such address")
    for address in _addresses(host, port):
        try:
            if port:
                _bound(address, port, shared=False).close()
            bound = stack.enter_context(_bound(address, port, shared=True))
        except OSError as exc:
            if exc.errno not in _ADDRESS_UNAVAILABLE:
                raise
            missing = exc
        else:
            kept = port = bound.getsockname()[1]  # the other addresses of a name get the same one
    if not kept:
        raise missing
    return kept


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    """Return each (family, address) that asyncio would listen on for a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bound(address: tuple[int, str], port: int, *, shared: bool) -> socket.socket:
    """Return a socket bound as asyncio binds those that listen; raises OSError if somebody listens there."""
    family, host = address
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
