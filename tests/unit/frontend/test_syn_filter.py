"""The socket filter that keeps new connections from a listening socket that is about to close."""

import socket
import sys

import pytest

from agentstream.frontend.syn_filter import ignore_new_connections
from tests.helpers import TIMEOUT_S


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has socket filters")
def test_new_connections_are_ignored_and_begun_ones_are_served() -> None:
    """A client that connects too late is not connected; one that had connected before can still send and receive."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=TIMEOUT_S) as early, socket.socket() as late:
            assert ignore_new_connections(listener)
            late.settimeout(0)
            late.connect_ex(address)
            early.sendall(b"a request")
            listener.settimeout(TIMEOUT_S)
            accepted, client = listener.accept()
            with accepted:
                assert client == early.getsockname()
                assert accepted.recv(100) == b"a request"
                accepted.sendall(b"an answer")
                assert early.recv(100) == b"an answer"
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_a_system_without_filters_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no such filter, nothing happens."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        assert not ignore_new_connections(listener)
