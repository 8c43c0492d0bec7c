"""One connection to Redis, shared by everything in a process: commands and pub/sub pushes together.

Why not redis-py here: its PubSub costs 12 times as much a message, loses messages without a word when it
reconnects, and never notices a dead peer (measured with 8.1). This link is an asyncio.Protocol over
hiredis.Reader, RESP3. What it promises:

- Replies and pushes are handled in the order the server sent them, synchronously, in one read loop.
- A command that was sent but not answered when the connection broke is sent again, byte for byte, after a
  reconnect; commands must therefore be harmless twice. Replies that mean "not now" (LOADING, READONLY ...)
  are waits: the command is sent again a little later.
- After a reconnect all channels are subscribed again and acknowledged before ``on_reconnect`` is told.
- A PING every PING_INTERVAL_S with a deadline for the pong: a frozen peer is a broken connection.

A server without RESP3 pushes (``?protocol=2`` in the URL) gets a second connection for subscriptions.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import hiredis

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.wire import OnReply, Reply, RespConnection, await_while_connected, pack
from agentstream.store.scripts import SCRIPTS

log = logging.getLogger(__name__)

PING_INTERVAL_S: Final = 2.0  # twice in the front end's keepalive interval
PONG_DEADLINE_S: Final = 3.0  # a healthy broker answers in under 1 ms; its own pauses (fork, AOF) stay below 1 s
CONNECT_TIMEOUT_S: Final = 5.0
MIN_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 1.0
RESEND_DELAY_S: Final = 0.1
MAX_CHANNELS_PER_SUBSCRIBE: Final = 1000  # channels per SUBSCRIBE when they are all renewed

# The server will do it, but not now. OOM: memory may be freed; the caller's own deadline bounds the wait.
_RETRYABLE_ERRORS: Final = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY ",
    "OOM",
    "UNBLOCKED",
    "MISCONF",
)

OnMessage = Callable[[bytes], None]


class Subscriber(Protocol):
    """Who follows a channel and cannot do with less than all its messages."""

    def resync(self) -> None:
        """Learn that messages may have been missed."""


class Command:
    """A command on its way. ``cancel`` keeps it from being sent (again).

    ``repack``, if set, makes what is sent in its place after a reconnect: the same command, asking for certainty.
    """

    __slots__ = ("cancelled", "on_reply", "payload", "repack")

    def __init__(self, payload: bytes, on_reply: OnReply) -> None:
        """Keep the packed command and what takes its reply."""
        self.payload = payload
        self.on_reply = on_reply
        self.repack: Callable[[], bytes] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Do not send it any more and drop its reply."""
        self.cancelled = True


class Link:
    """The process's connection to the broker. Open it once, close it at the end."""

    def __init__(self, endpoint: Endpoint, *, name: str) -> None:
        """Prepare a link; ``name`` is shown by CLIENT LIST."""
        self._endpoint = endpoint
        self._name = name
        self._pending: deque[Command] = deque()
        self._outbox: list[bytes] = []
        self._flush_scheduled = False
        self._handlers: dict[bytes, OnMessage] = {}
        self._acks: dict[bytes, deque[asyncio.Future[None]]] = {}  # one for each confirmation to come, in order
        self._unconfirmed: list[asyncio.Future[None]] = []  # of connections that broke; the next one answers them
        self._command_connection: RespConnection | None = None
        self._push_connection: RespConnection | None = None
        self._ready = asyncio.Event()
        self._last_error: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self.on_reconnect: dict[Callable[[], None], None] = {}  # an ordered set, told after every reconnect
        self.subscribers: set[Subscriber] = set()  # likewise; there may be thousands
        self.reconnects = 0
        self.on_pong: Callable[[float], None] = _ignore_ping_time  # told how long a ping took, seconds

    @property
    def connected(self) -> bool:
        """Whether commands reach the broker right now, as far as is known."""
        return self._ready.is_set()

    @property
    def subscribes_in_order(self) -> bool:
        """Whether a channel is subscribed before a command sent after it is carried out: one connection has both."""
        return self._endpoint.pushes_inline

    def open(self) -> None:
        """Begin to connect, and stay connected until ``close``."""
        self._task = asyncio.create_task(self._keep_connected(), name="link")

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once connected; raises BrokerUnavailable, with the cause, after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as exc:
            reason = str(self._last_error or "") or "no answer"
            message = f"Redis at {self._endpoint} cannot be reached within {timeout_s:g} s: {reason}"
            raise BrokerUnavailable(message) from exc

    async def close(self) -> None:
        """Close the connection; unanswered commands are dropped."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop_connections()

    def send(self, *args: bytes | str | int, on_reply: OnReply) -> Command:
        """Send a command. ``on_reply`` gets the reply (or a hiredis.ReplyError) in the server's order."""
        command = Command(pack(args), on_reply)
        self._enqueue(command)
        return command

    def send_script(self, name: str, keys: list[str], *args: bytes | str | int, on_reply: OnReply) -> Command:
        """Run a script of ours; otherwise like ``send``."""
        return self.send("EVALSHA", SCRIPTS[name].sha, len(keys), *keys, *args, on_reply=on_reply)

    @staticmethod
    def pack_script(name: str, keys: list[str], *args: bytes | str | int) -> bytes:
        """Return the bytes of a script's call, for ``Command.repack``."""
        return pack(("EVALSHA", SCRIPTS[name].sha, len(keys), *keys, *args))

    async def call(self, *args: bytes | str | int) -> Reply:
        """Send a command and return its reply; raises BusError for an error reply.

        Waits as long as the broker is away: bound it with asyncio.timeout. Cancelling takes it back if it
        was not sent yet.
        """
        return await self.start_call(*args)

    def start_call(self, *args: bytes | str | int) -> "asyncio.Future[Reply]":
        """Send a command with what else this turn of the loop sends; its reply is to come. Otherwise like ``call``."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        command = self.send(*args, on_reply=lambda reply: _settle(future, reply))
        future.add_done_callback(lambda done: self._withdraw(command) if done.cancelled() else None)
        return future

    def _withdraw(self, command: Command) -> None:
        command.cancel()
        if not self._ready.is_set():
            with contextlib.suppress(ValueError):
                self._pending.remove(command)

    async def call_script(self, name: str, keys: list[str], *args: bytes | str | int) -> Reply:
        """Run a script of ours; otherwise like ``call``."""
        return await self.start_script_call(name, keys, *args)

    def start_script_call(self, name: str, keys: list[str], *args: bytes | str | int) -> "asyncio.Future[Reply]":
        """Run a script of ours; otherwise like ``start_call``."""
        return self.start_call("EVALSHA", SCRIPTS[name].sha, len(keys), *keys, *args)

    def subscribe(self, channel: bytes, on_message: OnMessage) -> asyncio.Future[None]:
        """Subscribe; what is returned is done when the server has confirmed: from then on no message is missed.

        Commands sent after it are carried out after it, if ``subscribes_in_order``.
        """
        other = self._handlers.get(channel)
        self._handlers[channel] = on_message if other is None else _Fanout(other, on_message)
        return self._subscribe([channel])

    def unsubscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Stop receiving; harmless if not subscribed."""
        before = self._handlers.get(channel)
        if isinstance(before, _Fanout):
            self._handlers[channel] = before.without(on_message)
        elif before == on_message:
            del self._handlers[channel]
            self._write_to_push_connection(pack(("UNSUBSCRIBE", channel)))

    # -- sending ------------------------------------------------------------------------------------

    def _enqueue(self, command: Command) -> None:
        if command.cancelled:
            return
        self._pending.append(command)
        if self._ready.is_set():
            self._write(command.payload)

    def _resend(self, command: Command) -> None:
        """Send it after a wait, in which the connection may have become one to another server."""
        if command.repack is not None:
            command.payload = command.repack()
        self._enqueue(command)

    def _write(self, packed: bytes) -> None:
        """Send bytes with whatever else this turn of the loop sends."""
        self._outbox.append(packed)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send now what this turn of the loop has gathered."""
        self._flush_scheduled = False
        outbox, self._outbox = self._outbox, []
        if outbox and self._command_connection is not None and self._ready.is_set():
            self._command_connection.write(b"".join(outbox))

    def _subscribe(self, names: list[bytes]) -> asyncio.Future[None]:
        """Return a future for the last one's confirmation, as they come in order.

        Without a connection, the next one subscribes, and confirms.
        """
        ack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks.setdefault(names[-1], deque()).append(ack)
        parts = [
            names[start : start + MAX_CHANNELS_PER_SUBSCRIBE]
            for start in range(0, len(names), MAX_CHANNELS_PER_SUBSCRIBE)
        ]
        self._write_to_push_connection(b"".join(pack(("SUBSCRIBE", *part)) for part in parts))
        return ack

    def _write_to_push_connection(self, packed: bytes) -> None:
        if self._ready.is_set() and self._push_connection is self._command_connection:
            self._write(packed)  # with the commands that follow, such as the job whose run this is
        elif self._push_connection is not None:
            self._push_connection.write(packed)

    # -- receiving ----------------------------------------------------------------------------------

    def _on_reply(self, reply: Reply) -> None:
        if not self._pending:
            log.error("a reply nobody asked for; reconnecting")
            self._drop_connections()
            return
        command = self._pending.popleft()
        if command.cancelled:
            return
        if reply.__class__ is hiredis.ReplyError:
            text = str(reply)
            if text.startswith("NOSCRIPT"):
                for script in SCRIPTS.values():
                    self.send("SCRIPT", "LOAD", script.source, on_reply=_ignore_reply)
                self._enqueue(command)
                return
            if text.startswith(_RETRYABLE_ERRORS):
                asyncio.get_running_loop().call_later(RESEND_DELAY_S, self._resend, command)
                return
        try:
            command.on_reply(reply)
        except Exception:
            log.exception("a reply handler failed")

    def _on_push(self, push: list[Any]) -> None:
        kind = push[0]
        if kind == b"message":
            handler = self._handlers.get(push[1])
            if handler is not None:
                try:
                    handler(push[2])
                except Exception:  # one stream's fault must not end all others
                    log.exception("a message handler failed")
        elif kind == b"subscribe":
            acks = self._acks.get(push[1])
            if acks:
                _confirm(acks.popleft())
                if not acks:
                    del self._acks[push[1]]

    # -- staying connected --------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._connect()
            except (OSError, BusError, TimeoutError) as exc:
                if self._last_error is None or str(exc) != str(self._last_error):
                    log.warning("broker: %s", str(exc) or type(exc).__name__)
                self._last_error = exc
                self._drop_connections()
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 -- spreads reconnects
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                continue
            backoff_s, self._last_error = MIN_BACKOFF_S, None
            await self._monitor()
            self._ready.clear()
            self._drop_connections()
            self.reconnects += 1
            log.warning("the connection to the broker broke; reconnecting")

    async def _connect(self) -> None:
        """Open the connections, prove with a PONG that the server answers, subscribe, send what is unanswered."""
        connection = await self._open(self._on_reply, load_scripts=True)
        self._command_connection = connection
        # Not before it is the right one: an UNSUBSCRIBE on the connection of commands would shift all its replies.
        pushes = connection if self._endpoint.pushes_inline else await self._open(self._on_push, load_scripts=False)
        self._push_connection = pushes
        self._unconfirmed += (ack for acks in self._acks.values() for ack in acks)
        self._acks.clear()
        if self._handlers:
            await await_while_connected(pushes, self._subscribe(list(self._handlers)))
        for ack in self._unconfirmed:
            _confirm(ack)
        self._unconfirmed.clear()
        self._pending = deque(command for command in self._pending if not command.cancelled)
        self._outbox.clear()
        connection.write(b"".join(command.repack() if command.repack else command.payload for command in self._pending))
        self._ready.set()
        for tell in (*self.on_reconnect, *(subscriber.resync for subscriber in self.subscribers)):
            try:
                tell()
            except Exception:  # one stream's fault must not end all others
                log.exception("a reconnect handler failed")

    async def _open(self, on_reply: OnReply, *, load_scripts: bool) -> RespConnection:
        commands = self._endpoint.handshake(self._name)
        if load_scripts:
            commands += [("SCRIPT", "LOAD", script.source) for script in SCRIPTS.values()]
        commands.append(("PING",))
        replies: list[Reply] = []
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def collect(reply: Reply) -> None:
            replies.append(reply)
            if len(replies) == len(commands) and not answered.done():
                answered.set_result(None)

        connection = RespConnection(collect, self._on_push)
        try:
            await self._endpoint.connect(lambda: connection)
            connection.write(b"".join(map(pack, commands)))
            await await_while_connected(connection, answered)
            _check_handshake(commands, replies)
        except BaseException:
            connection.abort()
            raise
        connection.on_reply = on_reply
        return connection

    async def _monitor(self) -> None:
        """Return when a connection is lost or the server stops answering."""
        connections = [
            connection for connection in {self._command_connection, self._push_connection} if connection is not None
        ]
        lost = {connection.lost for connection in connections}
        while not (await asyncio.wait(lost, timeout=PING_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED))[0]:
            try:
                async with asyncio.timeout(PONG_DEADLINE_S):
                    await await_while_connected(connections[0], self._ping())
            except TimeoutError:
                log.warning("the broker has not answered a PING within %g s", PONG_DEADLINE_S)
                return
            except BusError as exc:  # lost, which the next turn sees; or it answers, if unhappily
                log.warning("broker: %s", exc)

    async def _ping(self) -> None:
        """Ping. What it took has an end at which all that was read before the pong is written to clients, too."""
        asked_s = time.monotonic()
        await self.call("PING")
        self.on_pong(time.monotonic() - asked_s)

    def _drop_connections(self) -> None:
        self._ready.clear()
        for connection in (self._command_connection, self._push_connection):
            if connection is not None:
                connection.abort()
        self._command_connection = self._push_connection = None


class _Fanout:
    """Several handlers of one channel, as one."""

    def __init__(self, one: OnMessage, other: OnMessage) -> None:
        self._one = one
        self._other = other

    def __call__(self, payload: bytes) -> None:
        try:
            self._one(payload)
        finally:  # whatever the one does
            self._other(payload)

    def without(self, handler: OnMessage) -> OnMessage:
        """Return what is left."""
        if self._other == handler:
            return self._one
        if self._one == handler:
            return self._other
        if isinstance(self._one, _Fanout):  # the later ones are outside
            return _Fanout(self._one.without(handler), self._other)
        return self


def _check_handshake(commands: list[tuple[bytes | str | int, ...]], replies: list[Reply]) -> None:
    """Raise BusError for the first refused command, such as a wrong password."""
    for command, reply in zip(commands, replies, strict=True):
        if reply.__class__ is hiredis.ReplyError:
            message = f"{command[0]!s} was answered with: {reply}"
            raise BusError(message)


def _ignore_reply(_reply: Reply) -> None:
    """Take a reply nobody waits for."""


def _ignore_ping_time(_seconds: float) -> None:
    """Take a time nobody asks for."""


def _confirm(ack: asyncio.Future[None]) -> None:
    if not ack.done():
        ack.set_result(None)


def _settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    if future.done():
        return
    if reply.__class__ is hiredis.ReplyError:
        future.set_exception(BusError(str(reply)))
    else:
        future.set_result(reply)
