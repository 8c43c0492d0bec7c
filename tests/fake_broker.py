"""A fake broker whose answers a test controls, and links to a fake or real broker."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

import hiredis

from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.server_link import ServerLink
from agentstream.store.scripts import SCRIPTS
from tests.conftest import open_server_link
from tests.helpers import TIMEOUT_S

Command = list[bytes]
Answer = Callable[[Command, int], bytes | None]

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
HELLO = b"%1\r\n+proto\r\n:3\r\n"
HANDSHAKE = {b"HELLO", b"AUTH", b"CLIENT", b"SELECT", b"SCRIPT", b"PING", b"SUBSCRIBE", b"UNSUBSCRIBE"}


def push(kind: bytes, channel: bytes, last: bytes) -> bytes:
    """Return a RESP3 push of three parts. The last part must be encoded already."""
    return b">3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (len(kind), kind, len(channel), channel, last)


def message(channel: bytes, payload: bytes) -> bytes:
    """Return the push that a subscriber gets for a PUBLISH."""
    return push(b"message", channel, b"$%d\r\n%b\r\n" % (len(payload), payload))


def answer_normally(words: Command, _connection: int) -> bytes | None:
    """Return the answer of a healthy server."""
    if words[0] in {b"SUBSCRIBE", b"UNSUBSCRIBE"}:
        return b"".join(push(words[0].lower(), channel, b":1\r\n") for channel in words[1:])
    return {b"HELLO": HELLO, b"PING": PONG}.get(words[0], OK)


class CutError(Exception):
    """Raised by an ``Answer`` to make the broker abort the connection."""


class FakeBroker:
    """A broker that sends the bytes that ``answer(command, number of the connection)`` returns; None sends nothing."""

    def __init__(self) -> None:
        self.answer: Answer = answer_normally
        self.received: list[tuple[int, Command]] = []
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._news = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """The number of connections that neither side has closed."""
        return sum(not writer.is_closing() for writer in self._writers)

    @property
    def commands(self) -> list[Command]:
        """All received commands except handshakes, pings, probes and subscriptions."""
        return [words for _, words in self.received if words[0] not in HANDSHAKE and SCRIPTS["probe"].sha not in words]

    def count(self, name: bytes, connection: int) -> int:
        """Return how often the broker received a command on a connection."""
        return [(number, words[0]) for number, words in self.received].count((connection, name))

    async def listen(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()
            # A TLS handshake that has not ended has no writer. Its client is gone, so it ends; without this wait its
            # socket may stay open when the loop ends.
            if handshakes := [task for task in asyncio.all_tasks() if "accept_connection" in repr(task.get_coro())]:
                await asyncio.wait(handshakes, timeout=TIMEOUT_S)

    def send(self, data: bytes) -> None:
        """Send bytes on the newest connection without a command."""
        self._writers[-1].write(data)

    async def until(self, done: Callable[[], bool]) -> None:
        """Return when ``done()`` is true; it is called again after each received command and each closed connection."""
        async with asyncio.timeout(TIMEOUT_S):
            while not done():
                self._news.clear()
                await self._news.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connections += 1
        number, parser = self.connections, hiredis.Reader()
        try:
            while data := await reader.read(1 << 16):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    self.received.append((number, words))
                    self._news.set()
                    if (reply := self.answer(words, number)) is not None:
                        writer.write(reply)
        except hiredis.ProtocolError:
            writer.write(b"-ERR Protocol error\r\n")
            writer.close()
        except (ConnectionError, CutError):
            writer.transport.abort()
        else:
            writer.close()
        self._news.set()


@contextlib.asynccontextmanager
async def fake_broker(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeBroker]:
    """A fake broker that answers as a healthy server until the test changes ``answer``."""
    peer = FakeBroker()
    await peer.listen(tls=tls)
    try:
        yield peer
    finally:
        await peer.close()


@contextlib.asynccontextmanager
async def connected_link(url: str) -> AsyncIterator[ServerLink]:
    """A link that is connected, and is closed at the end."""
    link = await open_server_link(url, "test-link")
    try:
        yield link
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def connecting_link(url: str) -> AsyncIterator[ServerLink]:
    """A link that starts to connect, and is closed at the end."""
    link = ServerLink(Endpoint(url), name="test-link")
    link.open()
    try:
        yield link
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Raises TimeoutError if the block takes longer than TIMEOUT_S."""
    async with asyncio.timeout(TIMEOUT_S):
        yield


async def failed(link: ServerLink) -> None:
    """Return when the link has failed to connect once. The cause is the text of ``wait_ready``."""
    async with in_time():
        while link.failure is None:  # noqa: ASYNC110 -- no event tells it
            await asyncio.sleep(0.01)


def reconnected(link: ServerLink) -> asyncio.Event:
    """Return an event that the next reconnect sets."""
    event = asyncio.Event()
    link.on_reconnect[event.set] = None
    return event
