"""One connection to Redis that a whole process shares, for commands and for pub/sub pushes.

It does not use redis-py, whose PubSub costs 12 times as much for each message, silently loses messages when it
reconnects, and never notices a dead peer (measured with 8.1). The link is an asyncio.Protocol over hiredis.Reader,
with RESP3. It promises:

- It handles replies and pushes in the order in which the server sent them, synchronously, in one read loop.
- After a reconnect it sends every unanswered command again, byte for byte unless ``repack`` is set. So a command must
  be harmless if the server runs it twice. If a reply means "not now" (LOADING, OOM ...), the link sends the command
  again after RESEND_DELAY_S. If it means that the server is not the primary (READONLY ...), the link reconnects.
- It connects only to a server that accepts writes: each handshake proves it, and again a command every PING_INTERVAL_S.
- After a reconnect it calls ``on_reconnect`` only when the server has confirmed all subscriptions again.
- It sends a PING every PING_INTERVAL_S. If no pong arrives within PONG_DEADLINE_S, it reconnects.

A server without RESP3 (``?protocol=2`` in the URL, or a server that refuses HELLO) gets a second connection for
subscriptions.
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

from agentstream.errors import BrokerUnavailable, BusError, ConnectionRefused
from agentstream.protocol.keys import Keys
from agentstream.store.connection.command import Command, Probe
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.fanout import Fanout, OnMessage
from agentstream.store.connection.handshake import Step, Words, open_connection
from agentstream.store.connection.refusals import is_not_now, is_not_primary, words_of
from agentstream.store.connection.wire import OnReply, Reply, RespConnection, await_while_connected, pack
from agentstream.store.scripts import SCRIPTS

log = logging.getLogger(__name__)

BLOCKED_S: Final = 0.5  # a timeout that comes later than this shows a blocked event loop, not a busy one
PING_INTERVAL_S: Final = 2.0  # half of the front end's keepalive interval
PONG_DEADLINE_S: Final = 3.0  # a healthy broker answers within 1 ms, and its own pauses (fork, AOF) are below 1 s
CONNECT_TIMEOUT_S: Final = 5.0
MIN_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 1.0
RESEND_DELAY_S: Final = 0.1
MAX_CHANNELS_PER_SUBSCRIBE: Final = 1000  # when a new connection subscribes to all channels

# How long the words of a refused command count as the reason why commands wait: such a command is sent again, and is
# refused again, every RESEND_DELAY_S; a connection is tried again after MAX_BACKOFF_S at the latest.
REFUSAL_VALID_S: Final = 2.0


class Subscriber(Protocol):
    """A reader of a channel that needs every message."""

    def resync(self) -> None:
        """Read the messages that may have been lost."""


class Link:
    """The connection of a process to the broker. Open it once, and close it at the end."""

    def __init__(self, endpoint: Endpoint, *, name: str, probe_key: str = Keys().probe) -> None:
        """Prepare a link. CLIENT LIST shows ``name``. ``probe_key`` is the name for proofs of writes."""
        self._endpoint = endpoint
        self._name = name
        self._probe_command: Words = ("EVALSHA", SCRIPTS["probe"].sha, 1, probe_key)
        self._probe = pack(self._probe_command)
        self._pending: deque[Command] = deque()
        self._outbox: list[bytes] = []
        self._flush_scheduled = False
        self._handlers: dict[bytes, OnMessage] = {}
        self._acks: dict[bytes, deque[asyncio.Future[None]]] = {}  # one for each expected confirmation, in order
        self._unconfirmed: list[asyncio.Future[None]] = []  # of lost connections; the next connection confirms them
        self._command_connection: RespConnection | None = None
        self._push_connection: RespConnection | None = None
        self._ready = asyncio.Event()
        self._last_error: Exception | None = None
        self._refusal = ""
        self._refused_at_s = 0.0  # monotonic
        self._task: asyncio.Task[None] | None = None
        self.on_reconnect: dict[Callable[[], None], None] = {}  # an ordered set; called after every connect
        self.subscribers: set[Subscriber] = set()  # resynced after every connect; there may be thousands
        self.reconnects = 0
        self.on_pong: Callable[[float], None] = _ignore  # called with the duration of each ping, in s

    @property
    def connected(self) -> bool:
        """Whether the link is connected now, as far as it knows."""
        return self._ready.is_set()

    @property
    def refusal(self) -> str:
        """The broker's own words, if it refuses commands or connections now; empty otherwise."""
        return self._refusal if time.monotonic() - self._refused_at_s < REFUSAL_VALID_S else ""

    def unanswered(self, timeout_s: float, since_s: float | None = None) -> str:
        """Return the reason why a command was not done within ``timeout_s``: the broker's own words if it refuses.

        ``since_s`` is the monotonic time when the wait began. If the timeout came too late, the reason is this process.
        """
        if self.refusal:
            return f"Redis refuses: {self.refusal}"
        if since_s is not None and (late_s := _late_s(since_s, timeout_s)):
            return f"the event loop of this process was blocked for about {timeout_s + late_s:.1f} s"
        return f"Redis did not answer within {timeout_s:g} s"

    @property
    def subscribes_in_order(self) -> bool:
        """Whether the server subscribes before it runs commands that were sent later: both use one connection."""
        return self._endpoint.pushes_inline

    def open(self) -> None:
        """Start to connect; the link then stays connected until ``close``."""
        self._task = asyncio.create_task(self._keep_connected(), name="link")

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the link is connected; raises BrokerUnavailable, with the cause, after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as exc:
            reason = str(self._last_error or "") or "no answer"
            message = f"Redis at {self._endpoint} cannot be reached within {timeout_s:g} s: {reason}"
            raise BrokerUnavailable(message) from exc

    async def close(self) -> None:
        """Close the connection and drop unanswered commands."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop_connections()

    def send(self, *args: bytes | str | int, on_reply: OnReply) -> Command:
        """Send a command. ``on_reply`` gets the reply or a hiredis.ReplyError, in the order of the server."""
        command = Command(pack(args), on_reply)
        self._enqueue(command)
        return command

    def send_script(self, name: str, keys: list[str], *args: bytes | str | int, on_reply: OnReply) -> Command:
        """Call a Lua script; otherwise like ``send``."""
        return self.send("EVALSHA", SCRIPTS[name].sha, len(keys), *keys, *args, on_reply=on_reply)

    @staticmethod
    def pack_script(name: str, keys: list[str], *args: bytes | str | int) -> bytes:
        """Return the bytes of a script call, for ``Command.repack``."""
        return pack(("EVALSHA", SCRIPTS[name].sha, len(keys), *keys, *args))

    async def call(self, *args: bytes | str | int) -> Reply:
        """Send a command and return its reply; raises BusError for an error reply.

        Waits as long as the broker is unreachable; use asyncio.timeout to bound the wait. If the call is cancelled
        before the command was sent, the command is not sent.
        """
        return await self.start_call(*args)

    def start_call(self, *args: bytes | str | int) -> "asyncio.Future[Reply]":
        """Send a command with the others of this turn; return a future of its reply. Otherwise like ``call``."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        command = self.send(*args, on_reply=lambda reply: _settle(future, reply))
        future.add_done_callback(lambda done: self._withdraw(command) if done.cancelled() else None)
        return future

    async def prove_writable(self) -> None:
        """Return when the broker has run a script with a write, which stores nothing.

        Raises BusError with the broker's words for every error reply, also if the reply means "not now". Use
        asyncio.timeout to bound the wait for a connection.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        command = self._send_probe(lambda reply: _settle(future, reply))
        future.add_done_callback(lambda done: self._withdraw(command) if done.cancelled() else None)
        await future

    def _send_probe(self, on_reply: OnReply) -> Command:
        command = Probe(self._probe, on_reply)
        self._enqueue(command)
        return command

    def _withdraw(self, command: Command) -> None:
        command.cancel()
        if not self._ready.is_set():
            with contextlib.suppress(ValueError):
                self._pending.remove(command)

    async def call_script(self, name: str, keys: list[str], *args: bytes | str | int) -> Reply:
        """Call a Lua script; otherwise like ``call``."""
        return await self.start_script_call(name, keys, *args)

    def start_script_call(self, name: str, keys: list[str], *args: bytes | str | int) -> "asyncio.Future[Reply]":
        """Call a Lua script; otherwise like ``start_call``."""
        return self.start_call("EVALSHA", SCRIPTS[name].sha, len(keys), *keys, *args)

    def subscribe(self, channel: bytes, on_message: OnMessage) -> asyncio.Future[None]:
        """Subscribe to a channel. The future is done when the server has confirmed; after that no message is missed.

        If ``subscribes_in_order``, the server subscribes before it runs commands that are sent later.
        """
        other = self._handlers.get(channel)
        self._handlers[channel] = on_message if other is None else Fanout(other, on_message)
        return self._subscribe([channel])

    def unsubscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Pass no more messages to ``on_message``; do nothing if it is not subscribed."""
        before = self._handlers.get(channel)
        if isinstance(before, Fanout):
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
        """Send a command again after a delay. The link may be connected to another server now, so repack it."""
        if command.repack is not None:
            command.payload = command.repack()
        self._enqueue(command)

    def _write(self, packed: bytes) -> None:
        """Send bytes together with the others of this turn of the event loop."""
        self._outbox.append(packed)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send the bytes of this turn of the event loop now."""
        self._flush_scheduled = False
        outbox, self._outbox = self._outbox, []
        if outbox and self._command_connection is not None and self._ready.is_set():
            self._command_connection.write(b"".join(outbox))

    def _subscribe(self, names: list[bytes]) -> asyncio.Future[None]:
        """Subscribe to channels; return a future for the last confirmation, because confirmations come in order.

        Without a connection, the next connection subscribes and confirms.
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
            self._write(packed)  # together with later commands of this turn, for example the job of the run
        elif self._push_connection is not None:
            self._push_connection.write(packed)

    # -- receiving ----------------------------------------------------------------------------------

    def _on_reply(self, reply: Reply) -> None:
        if not self._pending:
            log.error("the broker sent a reply to no command; reconnecting")
            self._drop_connections()
            return
        command = self._pending.popleft()
        if command.cancelled:
            return
        if reply.__class__ is hiredis.ReplyError:
            text = str(reply)
            if text.startswith("NOSCRIPT"):
                for script in SCRIPTS.values():
                    self.send("SCRIPT", "LOAD", script.source, on_reply=_ignore)
                self._enqueue(command)
                return
            words = words_of(text)
            if is_not_primary(words):
                self._leave_server(command, words)
                return
            if command.waits and is_not_now(words):
                self._refuse(words)
                asyncio.get_running_loop().call_later(RESEND_DELAY_S, self._resend, command)
                return
        try:
            command.on_reply(reply)
        except Exception:
            log.exception("a reply handler failed")

    def _refuse(self, words: str) -> None:
        self._refusal, self._refused_at_s = words, time.monotonic()

    def _leave_server(self, command: Command, words: str) -> None:
        """Reconnect, because the server is not the primary, and send the command again there."""
        log.warning("the broker is not the primary: %s", words)
        self._refuse(words)
        self._pending.appendleft(command)  # the commands after it keep their order
        self._drop_connections()

    def _on_push(self, push: list[Any]) -> None:
        kind = push[0]
        if kind == b"message":
            handler = self._handlers.get(push[1])
            if handler is not None:
                try:
                    handler(push[2])
                except Exception:  # an error of one stream must not end the others
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
                if isinstance(exc, ConnectionRefused):
                    self._refuse(exc.words)
                if self._last_error is None or str(exc) != str(self._last_error):
                    log.warning("cannot connect to the broker: %s", str(exc) or type(exc).__name__)
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
            log.warning("the connection to the broker was lost; reconnecting")
            if is_not_primary(self.refusal):
                await asyncio.sleep(RESEND_DELAY_S)  # do not spin if the next server refuses too

    async def _connect(self) -> None:
        """Open the connections, wait for a pong, subscribe again, and send all unanswered commands."""
        connection = await self._open(self._on_reply, for_commands=True)
        self._command_connection = connection
        # _push_connection is set only now: an UNSUBSCRIBE on the command connection would shift all its replies.
        pushes = connection if self._endpoint.pushes_inline else await self._open(self._on_push, for_commands=False)
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
        for callback in (*self.on_reconnect, *(subscriber.resync for subscriber in self.subscribers)):
            try:
                callback()
            except Exception:  # an error of one stream must not end the others
                log.exception("a reconnect handler failed")

    async def _open(self, on_reply: OnReply, *, for_commands: bool) -> RespConnection:
        steps = []
        if for_commands:
            steps = [Step(("SCRIPT", "LOAD", script.source)) for script in SCRIPTS.values()]
            # Not required: a server that is not the primary is refused in any case.
            steps.append(Step(self._probe_command, required=False))
        connection = await open_connection(self._endpoint, self._name, self._on_push, steps)
        connection.on_reply = on_reply
        return connection

    async def _monitor(self) -> None:
        """Return when a connection is lost or the server stops answering."""
        connections = [
            connection for connection in {self._command_connection, self._push_connection} if connection is not None
        ]
        lost = {connection.lost for connection in connections}
        while lost and not (await asyncio.wait(lost, timeout=PING_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED))[0]:
            self._send_probe(_ignore)  # finds out that the server is no longer the primary
            sent_s = time.monotonic()
            try:
                async with asyncio.timeout(PONG_DEADLINE_S):
                    await await_while_connected(connections[0], self._ping())
            except TimeoutError:
                if _late_s(sent_s, PONG_DEADLINE_S):
                    continue  # something blocked the event loop, so the pong may have arrived
                log.warning("the broker has not answered a PING within %g s", PONG_DEADLINE_S)
                return
            except BusError as exc:  # the connection is lost, so the loop ends; or the server answers with an error
                log.warning("the PING failed: %s", exc)

    async def _ping(self) -> None:
        """Send a PING and report its duration. It includes the time to write messages before the pong to clients."""
        sent_s = time.monotonic()
        await self.call("PING")
        self.on_pong(time.monotonic() - sent_s)

    def _drop_connections(self) -> None:
        self._ready.clear()
        for connection in (self._command_connection, self._push_connection):
            if connection is not None:
                connection.abort()
        self._command_connection = self._push_connection = None


def _late_s(since_s: float, timeout_s: float) -> float:
    """Return by how much a timeout came too late, in seconds: the loop was blocked. Return 0 if it came in time."""
    late_s = time.monotonic() - since_s - timeout_s
    return late_s if late_s > BLOCKED_S else 0.0


def _ignore(_value: object) -> None:
    """Ignore a reply, or the duration of a ping."""


def _confirm(ack: asyncio.Future[None]) -> None:
    if not ack.done():
        ack.set_result(None)


def _settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    if future.done():
        return
    if reply.__class__ is hiredis.ReplyError:
        future.set_exception(BusError(words_of(reply)))
    else:
        future.set_result(reply)
