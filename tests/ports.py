"""Ports for the servers of tests."""

import contextlib
import secrets
import socket
from typing import Final

# Linux gives the ports from 32,768 on to outgoing connections, so one of them may be taken before a server listens.
_PORTS: Final = range(10_000, 32_000)
_TRIES: Final = 1000


def free_port() -> int:
    """Return a port that no process uses on any address. Raises AssertionError if none is found."""
    for _ in range(_TRIES):
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    message = f"no free port among {_TRIES} tries"
    raise AssertionError(message)
