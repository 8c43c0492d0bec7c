"""One port for several processes.

They all listen on it with SO_REUSEPORT, and the kernel spreads new connections over them.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator

from agentstream.errors import StartupError

# A name such as localhost may have an address that this machine lacks. It is left out.
_ADDRESS_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_LAST_PORT = 65535


@contextlib.contextmanager
def shared_port(host: str, port: int, *, setting: str = "AGENTSTREAM_PORT") -> Iterator[int]:
    """Reserve a port for processes that will listen on it. Yield its number; for port 0 that of a free port.

    The socket here is bound but never listens. So it gets no connections, and no other program gets the port while no
    process listens on it. Raises StartupError if the port is taken. It is also taken if another program listens on it
    with SO_REUSEPORT: that program would get a part of the requests. (The kernel only
    requires that both belong to the same user.)
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        message = (
            "several processes on one port need SO_REUSEPORT, which this system lacks: "
            "set AGENTSTREAM_PROCESSES=1 and start each process on its own port, behind a proxy"
        )
        raise StartupError(message)
    with contextlib.ExitStack() as stack:
        try:
            port = _bind_all_addresses(stack, host, port)
        except OSError as exc:
            raise StartupError(explain_listen_error(exc, host, port, setting)) from exc
        yield port


def check_port(host: str, port: int, *, setting: str = "AGENTSTREAM_PORT") -> None:
    """Raise StartupError if no process can listen on a port now."""
    with shared_port(host, port, setting=setting):
        pass


def explain_listen_error(exc: OSError, host: str, port: int, setting: str) -> str:
    """Return why a process cannot listen on a port, and what to do. ``setting`` is the variable of the port."""
    where = f"cannot listen on {f'[{host}]' if ':' in host else host}:{port} ({setting})"
    flag = f"--{setting.removeprefix('AGENTSTREAM_').lower().replace('_', '-')}"
    other = port + 1 if port < _LAST_PORT else port - 1
    if exc.errno == errno.EADDRINUSE:
        return (
            f"{where}: the port is already in use, perhaps by another agentstream. "
            f"Stop that program, or choose another port: {flag} {other}, or {setting}={other}"
        )
    if isinstance(exc, socket.gaierror) or exc.errno in _ADDRESS_UNAVAILABLE:
        host_setting = setting.replace("_PORT", "_HOST")
        return f"{where}: {exc.strerror}. Set {host_setting} to an address of this machine, such as 127.0.0.1 or ::1"
    if exc.errno == errno.EACCES:
        return f"{where}: {exc.strerror}. Ports below 1024 need a permission; choose another one: {setting}=8000"
    return f"{where}: {exc.strerror}"


def _bind_all_addresses(stack: contextlib.ExitStack, host: str, port: int) -> int:
    """Bind every address of a host to one port until the stack closes. Return the port. Raises OSError."""
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
            kept = port = bound.getsockname()[1]  # the other addresses get the same port
    if not kept:
        raise missing
    return kept


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    """Return each (family, address) that asyncio would listen on for a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bound(address: tuple[int, str], port: int, *, shared: bool) -> socket.socket:
    """Return a socket bound with the options that asyncio uses. Raises OSError if another socket listens there."""
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
