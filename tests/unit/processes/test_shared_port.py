"""A port that several processes share, and no other program."""

import contextlib
import socket
import tempfile
from pathlib import Path

import pytest

from agentstream.errors import StartupError
from agentstream.processes.shared_port import shared_port
from agentstream.processes.supervisor import _processes_sharing_metrics


def listener(port: int, *, shares: bool) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
    listening.bind(("127.0.0.1", port))
    listening.listen()
    return listening


def test_port_0_becomes_one_port_that_all_can_listen_on() -> None:
    """Several sockets can listen on the reserved free port, and each connection reaches one of them."""
    with (
        shared_port("127.0.0.1", 0) as port,
        listener(port, shares=True) as one,
        listener(port, shares=True) as other,
    ):
        one.settimeout(0)
        other.settimeout(0)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        accepted = {one: 0, other: 0}
        for listening in accepted:
            while True:
                try:
                    listening.accept()[0].close()
                except BlockingIOError:
                    break
                accepted[listening] += 1
        for client in clients:
            client.close()
    assert sum(accepted.values()) == 40


@pytest.mark.parametrize("shares", [True, False])
def test_a_taken_port_is_refused(*, shares: bool) -> None:
    """A port that another program listens on is refused, even if that program would share it."""
    with (
        socket.create_server(("127.0.0.1", 0), reuse_port=shares) as other,
        pytest.raises(StartupError, match=r"cannot listen on 127\.0\.0\.1:\d+ \(AGENTSTREAM_PORT\)"),
        shared_port("127.0.0.1", other.getsockname()[1]),
    ):
        pass


def test_the_port_of_a_server_that_just_ended_is_free() -> None:
    """Closed connections of a server that has just ended do not block the port."""
    with listener(0, shares=False) as before:
        port = before.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            before.accept()[0].close()  # the server closes first, so its side stays in TIME_WAIT
            client.recv(1)
    with shared_port("127.0.0.1", port) as kept:
        assert kept == port


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1"])
def test_a_foreign_host_is_refused(host: str) -> None:
    """A host that is not an address of this machine is refused at the start."""
    with pytest.raises(StartupError, match=f"cannot listen on {host}:0"), shared_port(host, 0):
        pass


def test_every_address_of_a_name_gets_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """All addresses of a host name share one port, and an address that this machine lacks is left out."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with shared_port("name", 0) as port:
        for host in ("127.0.0.1", "127.0.0.2"):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((host, port))


def test_a_system_without_shared_ports_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system that cannot share ports, the error says what to do instead."""
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(StartupError, match="AGENTSTREAM_PROCESSES=1"), shared_port("127.0.0.1", 0):
        pass


def test_processes_without_a_temporary_folder_do_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a temporary folder, as on a read-only root, several processes end with the reason and the remedy."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    match = r"none can be made: .*; mount one, such as docker run --tmpfs /tmp"
    with pytest.raises(StartupError, match=match), contextlib.ExitStack() as stack:
        stack.enter_context(_processes_sharing_metrics("worker", 2, {}))
