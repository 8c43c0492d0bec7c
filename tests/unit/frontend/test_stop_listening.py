"""How a front end stops listening: it accepts the waiting connections before it closes the listener."""

import asyncio
import errno
import logging
import socket
from collections.abc import Iterator
from typing import cast

import pytest
from aiohttp import web

from agentstream.frontend import serve
from tests.helpers import TIMEOUT_S


class Listener:
    """A listening socket whose ``accept`` returns or raises the next answer."""

    def __init__(self, *answers: object) -> None:
        self._answers: Iterator[object] = iter(answers)

    def accept(self) -> tuple[object, None]:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer, None


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("a", ConnectionAbortedError(), "b", BlockingIOError()), ["a", "b"]),
        (("a", OSError(errno.EMFILE, "too many"), "b"), ["a"]),
    ],
    ids=["a client that left", "no descriptor left"],
)
def test_a_failed_accept_does_not_stop_the_drain(answers: tuple[object, ...], expected: list[str]) -> None:
    """A client that has left is skipped, and a lack of file descriptors ends the accepting without an error."""
    accepted: list[object] = list(serve._accept_all(cast("socket.socket", Listener(*answers))))
    assert accepted == expected


async def test_a_connection_that_fails_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If one of two waiting connections cannot be served, it is logged, and the other one is answered."""

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(text="here")

    manager = web.Server(answer)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(manager, "127.0.0.1", 0, start_serving=False)
    address = server.sockets[0].getsockname()
    server.sockets[0]._sock.listen(8)  # type: ignore[attr-defined]  # the kernel accepts, the server does not
    connect, failed = loop.connect_accepted_socket, False

    async def fail_once(factory: object, connection: socket.socket) -> object:
        nonlocal failed
        if not failed:
            failed = True
            raise OSError(errno.ENOTCONN, "gone")
        return await connect(factory, connection)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "connect_accepted_socket", fail_once)
    clients = [await asyncio.open_connection(*address) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "agentstream.frontend.serve"):
        await serve._stop_listening(server, manager)
    async with asyncio.timeout(TIMEOUT_S):
        clients[1][1].write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await clients[1][0].read()).endswith(b"here")
        assert await clients[0][0].read() == b""
    assert "dropped a connection that was accepted during the stop" in caplog.text
    for _, writer in clients:
        writer.close()
    await manager.shutdown(1)
