"""How a front end accepts connections: all that wait when it stops, and no more than its file limit allows."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
from aiohttp import web

from agentstream.config import Settings
from agentstream.frontend.connection import connection_factory
from agentstream.frontend.connection_limit import REFUSALS, ConnectionLimit
from agentstream.frontend.listener import PAUSE_S, Listener
from tests.helpers import TIMEOUT_S

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class FailingSocket(socket.socket):
    """A listening socket whose ``accept`` raises these errors first."""

    errors: list[OSError]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return super().accept()


def listening(*errors: OSError, backlog: int = 8) -> FailingSocket:
    """Return a socket that listens on a free port."""
    listener = FailingSocket()
    listener.errors = list(errors)
    listener.bind(("127.0.0.1", 0))
    listener.listen(backlog)
    listener.settimeout(0)
    return listener


class Served:
    """A listener on a socket, in front of a server that answers each request with "here"."""

    def __init__(self, listener: socket.socket) -> None:
        self.limit = ConnectionLimit()
        self.address = listener.getsockname()
        self._manager = web.Server(self._answer)
        self.listener = Listener([listener], connection_factory(self._manager, self.limit), self.limit)
        self._clients: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.listener.close()
        await self._manager.shutdown(1)
        for client in self._clients:
            client.close()

    def client(self, request: bytes = REQUEST) -> socket.socket:
        """Connect and send a request. The listener gets no turn meanwhile."""
        client = socket.create_connection(self.address)
        self._clients.append(client)
        client.sendall(request)
        client.settimeout(0)
        return client

    async def _answer(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(text="here")


async def read(client: socket.socket) -> bytes:
    """Return all that arrives until the connection is closed or reset."""
    received = b""
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.get_running_loop().sock_recv(client, 1000):
                received += data
    return received


async def test_waiting_connections_are_served(caplog: pytest.LogCaptureFixture) -> None:
    """A stop serves all connections in the accept queue, although a client has left, and then refuses new ones."""
    async with Served(listening(ConnectionAbortedError())) as served:
        clients = [served.client() for _ in range(4)]
        await served.listener.stop()
        with pytest.raises(ConnectionRefusedError):
            served.client()
        assert [(await read(client))[-4:] for client in clients] == [b"here"] * 4
    assert caplog.text == ""


async def test_a_stop_without_descriptors_ends(caplog: pytest.LogCaptureFixture) -> None:
    """If no file descriptor is free, a stop logs that, and the open streams drain."""
    async with Served(listening(*[OSError(errno.EMFILE, "too many")] * 100)) as served:
        client = served.client()
        with caplog.at_level(logging.ERROR):
            await served.listener.stop()
        assert await read(client) == b""
    assert "reached its limit of" in caplog.text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EMFILE, "the process has reached its limit of 500 open files; raise it (ulimit -n"),
        (errno.ENFILE, "the system has reached its limit of open files; raise it (sysctl fs.file-max)"),
        (errno.ENOBUFS, "no buffers"),
    ],
    ids=["EMFILE", "ENFILE", "ENOBUFS"],
)
async def test_a_failed_accept_is_logged_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """When a resource is used up, one log line says which; the connection waits and is then served."""
    monkeypatch.setattr("agentstream.frontend.connection_limit.file_limit", lambda: 500)
    async with Served(listening(*[OSError(number, "no buffers")] * 2)) as served:
        served.limit.apply()
        with caplog.at_level(logging.ERROR):
            assert (await read(served.client())).endswith(b"here")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert words in caplog.text


async def test_a_connection_that_fails_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If one of two waiting connections cannot be served, it is logged, and the other one is answered."""
    loop = asyncio.get_running_loop()
    connect, failed = loop.connect_accepted_socket, False

    async def fail_once(factory: Callable[[], Any], accepted: socket.socket) -> object:
        nonlocal failed
        if not failed:
            failed = True
            raise OSError(errno.ENOTCONN, "gone")
        answer: Awaitable[object] = connect(factory, accepted)
        return await answer

    monkeypatch.setattr(loop, "connect_accepted_socket", fail_once)
    async with Served(listening()) as served:
        clients = [served.client() for _ in range(2)]
        with caplog.at_level(logging.WARNING):
            answers = [await read(client) for client in clients]
        assert sorted(answer[-4:] for answer in answers) == [b"", b"here"]
        await until(lambda: served.limit.open == 0)
    assert "dropped a connection that was just accepted" in caplog.text


async def until(true: Callable[[], bool]) -> None:
    """Return when ``true`` returns true. No event tells when the kernel or a transport is done."""
    async with asyncio.timeout(TIMEOUT_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_connections_beyond_the_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a fixed number of connections is open beyond the limit; the next one is served when one of them has left."""
    monkeypatch.setattr("agentstream.frontend.connection_limit.file_limit", lambda: 1)
    async with Served(listening(backlog=2 * REFUSALS)) as served:
        served.limit.apply()
        assert served.limit.limit == 1
        idle = [served.client(b"") for _ in range(1 + REFUSALS)]
        await until(lambda: served.limit.reached)
        waiting = served.client()
        await asyncio.sleep(3 * PAUSE_S)  # the listener looks again after each pause
        assert served.limit.open == 1 + REFUSALS
        idle[-1].close()
        assert (await read(waiting)).endswith(b"here")


async def test_an_idle_connection_beyond_the_limit_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends nothing keeps no connection beyond the limit; one within the limit it keeps."""
    monkeypatch.setattr("agentstream.frontend.connection_limit.file_limit", lambda: 1)
    monkeypatch.setattr("agentstream.frontend.connection.REFUSED_IDLE_S", 0.1)
    async with Served(listening()) as served:
        served.limit.apply()
        for _ in range(2):
            served.client(b"")
        await until(lambda: served.limit.open == 2)
        await until(lambda: served.limit.open == 1)


async def test_a_listener_has_an_address() -> None:
    """A listener of the settings listens on a free port, and returns its address."""
    limit = ConnectionLimit()
    manager = web.Server(lambda _: None)  # type: ignore[arg-type,return-value]  # never called
    settings = Settings(REDIS_URL="redis://127.0.0.1:1", port=0)
    listener = await Listener.open(connection_factory(manager, limit), settings, limit, shared=False)
    assert listener.address[0] == "127.0.0.1"
    assert listener.address[1] > 0
    listener.close()
