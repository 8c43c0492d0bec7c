"""One connection to one Redis server, which a whole process shares, for commands and for pub/sub pushes.

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
subscriptions. With Sentinel the link asks the sentinels for the primary at each connect, and again every
SENTINEL_INTERVAL_S, because their message about a new primary may be lost.

In a cluster a ClusterLink has one such link for each primary, and is its Router.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Protocol

import hiredis

from agentstream.errors import BrokerUnavailable, BusError, ConnectionRefused
from agentstream.protocol.keys import Keys
from agentstream.store.connection.command import Command, Probe, Subscription
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.fanout import Fanout, OnMessage
from agentstream.store.connection.handshake import Step, Words, open_connection
from agentstream.store.connection.link import Link, Subscriber, ignore, late_s, settle
from agentstream.store.connection.refusals import is_not_now, is_not_primary, words_of
from agentstream.store.connection.sentinels import find_primary
from agentstream.store.connection.slots import by_slot
from agentstream.store.connection.wire import OnReply, Reply, RespConnection, await_while_connected, pack
from agentstream.store.scripts import CLUSTER_SCRIPTS, SCRIPTS

log = logging.getLogger(__name__)

PING_INTERVAL_S: Final = 2.0  # half of the front end's keepalive interval
PONG_DEADLINE_S: Final = 3.0  # a healthy broker answers within 1 ms, and its own pauses (fork, AOF) are below 1 s
SENTINEL_INTERVAL_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 5.0
MIN_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 1.0
RESEND_DELAY_S: Final = 0.1
MAX_CHANNELS_PER_SUBSCRIBE: Final = 1000  # when a new connection subscribes to all channels


_MESSAGES: Final = frozenset({b"message", b"smessage"})
_SUBSCRIBED: Final = frozenset({b"subscribe", b"ssubscribe"})


class Router(Protocol):
    """Owns the links to the primaries of a cluster."""

    def on_error(self, link: "ServerLink", command: Command, text: str) -> bool:
        """Handle an error reply; return False if it is the reply for the caller of the command."""
        ...

    def on_lost(self, link: "ServerLink") -> None:
        """Handle that a connection is lost, or cannot be made."""

    def on_dropped(self, link: "ServerLink", channels: Sequence[bytes]) -> None:
        """Handle that the server no longer serves these channels."""

    def on_connected(self, link: "ServerLink") -> None:
        """Handle that the link is connected."""


class ServerLink(Link):
    """The connection of a process to one server: the only one, the primary that sentinels name, or one of a cluster."""

    def __init__(
        self, endpoint: Endpoint, *, name: str, probe_key: str | None = Keys().probe(), router: Router | None = None
    ) -> None:
        """Prepare a link. CLIENT LIST shows ``name``. ``probe_key`` is the name for proofs of writes.

        Without it nothing is proved: a server of a cluster may own no slot that the service uses.
        """
        super().__init__()
        self._endpoint = endpoint
        self._name = name
        self._router = router
        self._scripts = SCRIPTS if router is None else CLUSTER_SCRIPTS
        self.probe_key = probe_key
        self._pending: deque[Command] = deque()
        self._outbox: list[bytes] = []
        self._flush_scheduled = False
        self._handlers: dict[bytes, OnMessage] = {}
        self._everywhere: set[bytes] = set()  # the channels that are no sharded channels in a cluster
        self._acks: dict[bytes, deque[asyncio.Future[None]]] = {}  # one for each expected confirmation, in order
        self._unconfirmed: list[asyncio.Future[None]] = []  # of lost connections; the next connection confirms them
        self._command_connection: RespConnection | None = None
        self._push_connection: RespConnection | None = None
        self._ready = asyncio.Event()
        self._last_error: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self.subscribers: set[Subscriber] = set()  # resynced after every connect; there may be thousands
        self._reconnects = 0
        self._down_since_s = time.monotonic()
        self._primary: tuple[str, int] | None = None  # the one that the sentinels have named

    @property
    def connected(self) -> bool:
        """Whether the link is connected now, as far as it knows."""
        return self._ready.is_set()

    @property
    def opened(self) -> bool:
        """Whether ``open`` was called."""
        return self._task is not None

    @property
    def down_s(self) -> float:
        """For how long the link has not been connected, in s; 0 if it is connected."""
        return 0.0 if self._ready.is_set() else time.monotonic() - self._down_since_s

    @property
    def reconnects(self) -> int:
        """How often the link has reconnected."""
        return self._reconnects

    def keeps_order(self, *_names: str) -> bool:
        """Whether one connection carries commands and subscriptions."""
        return self._endpoint.pushes_inline

    def group_of(self, _name: str) -> Hashable:
        """Return the same group for all names: one server may have them all in one script."""
        return 0

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

    def send(self, *args: bytes | str | int, on_reply: OnReply, key: str = "") -> Command:  # noqa: ARG002 -- one server
        """Send a command. ``on_reply`` gets the reply or a hiredis.ReplyError, in the order of the server."""
        command = Command(pack(args), on_reply)
        self.enqueue(command)
        return command

    def script(self, name: str) -> tuple[str, bytes]:
        """Return the first words of a call of a script."""
        return "EVALSHA", self._scripts[name].sha

    async def prove_writable(self) -> None:
        """Return when the broker has run a script with a write, which stores nothing.

        Raises BusError with the broker's words for every error reply, also if the reply means "not now". Use
        asyncio.timeout to bound the wait for a connection.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        command = self._send_probe(lambda reply: settle(future, reply))
        future.add_done_callback(lambda done: self.withdraw(command) if done.cancelled() else None)
        await future

    @property
    def _probe_words(self) -> Words:
        if self.probe_key is None:
            return ("PING",)
        return (*self.script("probe"), 1, self.probe_key)

    def _send_probe(self, on_reply: OnReply) -> Command:
        command = Probe(pack(self._probe_words), on_reply)
        self.enqueue(command)
        return command

    def withdraw(self, command: Command) -> None:
        """Do not send the command (again), and drop its reply."""
        command.cancel()
        if not self._ready.is_set():
            with contextlib.suppress(ValueError):
                self._pending.remove(command)

    def subscribe(self, channel: bytes, on_message: OnMessage, *, everywhere: bool = False) -> asyncio.Future[None]:
        """Subscribe to a channel. The future is done when the server has confirmed; after that no message is missed.

        If the link keeps the order, the server subscribes before it runs commands that are sent later.
        """
        other = self._handlers.get(channel)
        self._handlers[channel] = on_message if other is None else Fanout(other, on_message)
        if everywhere and self._router is not None:
            self._everywhere.add(channel)
        return self._subscribe([channel])

    def unsubscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Pass no more messages to ``on_message``; do nothing if it is not subscribed."""
        before = self._handlers.get(channel)
        if isinstance(before, Fanout):
            self._handlers[channel] = before.without(on_message)
        elif before == on_message:
            del self._handlers[channel]
            self._unsubscribe(channel)

    def subscribed(self, channel: bytes) -> bool:
        """Whether the channel has a handler."""
        return channel in self._handlers

    def add_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` after every connect."""
        self.subscribers.add(subscriber)

    def remove_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` no more."""
        self.subscribers.discard(subscriber)

    # -- what a cluster moves to another server -----------------------------------------------------

    def take_commands(self) -> list[Command]:
        """Return the unanswered commands, and forget them."""
        taken = [
            command for command in self._pending if not command.cancelled and command.__class__ is not Subscription
        ]
        self._pending.clear()
        return taken

    def take_channels(self, wanted: Callable[[bytes], bool]) -> dict[bytes, OnMessage]:
        """Return the channels that are ``wanted``, with their handlers, and forget them.

        Their futures fail if they are not confirmed yet.
        """
        taken = {channel: handler for channel, handler in self._handlers.items() if wanted(channel)}
        for channel in taken:
            del self._handlers[channel]
            self._everywhere.discard(channel)
            for ack in self._acks.pop(channel, ()):
                if not ack.done():
                    ack.set_exception(BusError("another server serves the channel"))
        return taken

    # -- sending ------------------------------------------------------------------------------------

    def enqueue(self, command: Command) -> None:
        """Send a command now, or when the link is connected."""
        if command.cancelled:
            return
        self._pending.append(command)
        if self._ready.is_set():
            self._write(command.payload)

    def _resend(self, command: Command) -> None:
        """Send a command again after a delay. The link may be connected to another server now, so repack it."""
        if command.repack is not None:
            command.payload = command.repack()
        self.enqueue(command)

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
        """Subscribe to channels of one slot; return a future for the confirmation of the last one.

        Without a connection, the next connection subscribes and confirms.
        """
        ack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks.setdefault(names[-1], deque()).append(ack)
        connection = self._push_connection
        if connection is not None:
            if connection is self._command_connection:
                self._pending.append(Subscription(names, ack))
            verb = "SSUBSCRIBE" if self._is_sharded(names[0]) else "SUBSCRIBE"
            self._write_to_push_connection(pack((verb, *names)))
        return ack

    def _unsubscribe(self, channel: bytes) -> None:
        if not self._is_sharded(channel):
            self._everywhere.discard(channel)
            self._write_to_push_connection(pack(("UNSUBSCRIBE", channel)))
        elif self._ready.is_set():
            # A server that no longer has the slot answers with an error. Without one, the next reply is that of PING.
            self._pending.append(Subscription([], None))
            self._write(pack(("SUNSUBSCRIBE", channel)))
            self.send("PING", on_reply=ignore)

    def _is_sharded(self, channel: bytes) -> bool:
        return self._router is not None and channel not in self._everywhere

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
        while command.__class__ is Subscription:
            if reply.__class__ is hiredis.ReplyError:
                self._on_subscription_refused(command, str(reply))
                return
            command = self._pending.popleft()
        if command.cancelled:
            return
        if reply.__class__ is hiredis.ReplyError and self._on_error(command, str(reply)):
            return
        try:
            command.on_reply(reply)
        except Exception:
            log.exception("a reply handler failed")

    def _on_error(self, command: Command, text: str) -> bool:
        """Send a command again whose error reply is not final; return False if it is final."""
        if text.startswith("NOSCRIPT"):
            for script in self._scripts.values():
                self.send("SCRIPT", "LOAD", script.source, on_reply=ignore)
            self.enqueue(command)
            return True
        if self._router is not None:
            return self._router.on_error(self, command, text)
        words = words_of(text)
        if is_not_primary(words):
            self._leave_server(command, words)
            return True
        if command.waits and is_not_now(words):
            self.refuse(words)
            asyncio.get_running_loop().call_later(RESEND_DELAY_S, self._resend, command)
            return True
        return False

    def _on_subscription_refused(self, subscription: Subscription, text: str) -> None:
        """Fail a subscription that the server refuses; in a cluster because another server has the slot."""
        if subscription.ack is None:
            return
        acks = self._acks.get(subscription.channels[-1], deque())
        if subscription.ack in acks:
            acks.remove(subscription.ack)
        if not acks:
            self._acks.pop(subscription.channels[-1], None)
        if not subscription.ack.done():
            subscription.ack.set_exception(BusError(words_of(text)))
        if self._router is not None:
            self._router.on_dropped(self, [name for name in subscription.channels if name in self._handlers])

    def _leave_server(self, command: Command, words: str) -> None:
        """Reconnect, because the server is not the primary, and send the command again there."""
        log.warning("the broker is not the primary: %s", words)
        self.refuse(words)
        self._pending.appendleft(command)  # the commands after it keep their order
        self._drop_connections()

    def _on_push(self, push: list[Any]) -> None:
        kind = push[0]
        if kind in _MESSAGES:
            handler = self._handlers.get(push[1])
            if handler is not None:
                try:
                    handler(push[2])
                except Exception:  # an error of one stream must not end the others
                    log.exception("a message handler failed")
        elif kind in _SUBSCRIBED:
            self._on_subscribed(push[1])
        elif kind == b"sunsubscribe" and push[1] in self._handlers and self._router is not None:
            self._router.on_dropped(self, [push[1]])  # the slot moves to another server

    def _on_subscribed(self, channel: bytes) -> None:
        head = self._pending[0] if self._pending else None
        if isinstance(head, Subscription) and head.channels and channel == head.channels[-1]:
            self._pending.popleft()
        acks = self._acks.get(channel)
        if acks:
            _confirm(acks.popleft())
            if not acks:
                del self._acks[channel]

    # -- staying connected --------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._connect()
            except (OSError, BusError, TimeoutError) as exc:
                if isinstance(exc, ConnectionRefused):
                    self.refuse(exc.words)
                if self._last_error is None or str(exc) != str(self._last_error):
                    log.warning("cannot connect to the broker: %s", str(exc) or type(exc).__name__)
                self._last_error = exc
                self._drop_connections()
                if self._router is not None:
                    self._router.on_lost(self)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 -- spreads reconnects
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                continue
            backoff_s, self._last_error = MIN_BACKOFF_S, None
            await self._monitor()
            self._drop_connections()
            self._reconnects += 1
            log.warning("the connection to the broker was lost; reconnecting")
            if self._router is not None:
                self._router.on_lost(self)
            if is_not_primary(self.refusal):
                await asyncio.sleep(RESEND_DELAY_S)  # do not spin if the next server refuses too

    async def _connect(self) -> None:
        """Open the connections, wait for a pong, subscribe again, and send all unanswered commands."""
        endpoint = self._endpoint
        if endpoint.kind == "sentinel":
            self._primary = await find_primary(endpoint)
            endpoint = endpoint.at(*self._primary)
        connection = await self._open(endpoint, self._on_reply, for_commands=True)
        # _push_connection is set only now: an UNSUBSCRIBE on the command connection would shift all its replies.
        inline = endpoint.pushes_inline
        pushes = connection if inline else await self._open(endpoint, self._on_push, for_commands=False)
        if not inline:
            self._endpoint.use_resp2()
        self._command_connection, self._push_connection = connection, pushes
        await self._subscribe_again(pushes)
        self._outbox.clear()
        connection.write(b"".join(command.repack() if command.repack else command.payload for command in self._pending))
        self._ready.set()
        if self._router is not None:
            self._router.on_connected(self)
        for callback in (*self.on_reconnect, *(subscriber.resync for subscriber in self.subscribers)):
            try:
                callback()
            except Exception:  # an error of one stream must not end the others
                log.exception("a reconnect handler failed")

    async def _subscribe_again(self, pushes: RespConnection) -> None:
        """Subscribe to all channels on a new connection; return when the server has answered.

        Meanwhile only these subscriptions are unanswered on the connection. So ``_pending`` holds no other commands.
        """
        self._unconfirmed += (ack for acks in self._acks.values() for ack in acks)
        self._acks.clear()
        unanswered, self._pending = self._pending, deque()
        try:
            parts = by_slot(self._handlers) if self._router is not None else [list(self._handlers)]
            acks = [
                self._subscribe(part[start : start + MAX_CHANNELS_PER_SUBSCRIBE])
                for part in parts
                for start in range(0, len(part), MAX_CHANNELS_PER_SUBSCRIBE)
            ]
            if acks:
                await await_while_connected(pushes, _all_of(acks, tolerant=self._router is not None))
        finally:
            sent = (*unanswered, *self._pending)
            self._pending = deque(
                command for command in sent if not command.cancelled and command.__class__ is not Subscription
            )
        for ack in self._unconfirmed:
            _confirm(ack)
        self._unconfirmed.clear()

    async def _open(self, endpoint: Endpoint, on_reply: OnReply, *, for_commands: bool) -> RespConnection:
        steps = []
        if self._endpoint.kind == "sentinel":
            steps.append(Step(("ROLE",), required=False))
        if for_commands:
            steps += (Step(("SCRIPT", "LOAD", script.source)) for script in self._scripts.values())
            if self.probe_key is not None:
                # Not required: a server that is not the primary is refused in any case.
                steps.append(Step(self._probe_words, required=False))
        mode = "standalone" if self._router is None else "cluster"
        connection = await open_connection(endpoint, self._name, self._on_push, steps, mode=mode)
        connection.on_reply = on_reply
        return connection

    async def _monitor(self) -> None:
        """Return when a connection is lost, the server stops answering, or sentinels name another primary."""
        connections = [
            connection for connection in {self._command_connection, self._push_connection} if connection is not None
        ]
        ends: set[asyncio.Future[None]] = {connection.lost for connection in connections}
        if self._endpoint.kind == "sentinel":
            ends.add(asyncio.create_task(self._until_primary_changes(), name="ask the sentinels"))
        ends.add(asyncio.create_task(self._until_silent(connections[0]), name="ping the broker"))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                if isinstance(end, asyncio.Task):
                    end.cancel()

    async def _until_silent(self, connection: RespConnection) -> None:
        """Return when the server has not answered a PING in time."""
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            self._send_probe(ignore)  # finds out that the server is no longer the primary
            sent_s = time.monotonic()
            try:
                async with asyncio.timeout(PONG_DEADLINE_S):
                    await await_while_connected(connection, self._ping())
            except TimeoutError:
                if late_s(sent_s, PONG_DEADLINE_S):
                    continue  # something blocked the event loop, so the pong may have arrived
                log.warning("the broker has not answered a PING within %g s", PONG_DEADLINE_S)
                return
            except BusError as exc:  # the connection is lost, so the loop ends; or the server answers with an error
                log.warning("the PING failed: %s", exc)

    async def _until_primary_changes(self) -> None:
        """Return when the sentinels name another primary. Their own message about it may be lost, so ask them."""
        while True:
            await asyncio.sleep(SENTINEL_INTERVAL_S)
            try:
                primary = await find_primary(self._endpoint)
            except (OSError, BusError) as exc:
                log.warning("the sentinels do not name the primary: %s", exc)
                continue
            if primary != self._primary:
                log.warning("the sentinels name another primary: %s:%d", *primary)
                return

    async def _ping(self) -> None:
        """Send a PING and report its duration. It includes the time to write messages before the pong to clients."""
        sent_s = time.monotonic()
        await self.call("PING")
        self.on_pong(time.monotonic() - sent_s)

    def _drop_connections(self) -> None:
        if self._ready.is_set():
            self._ready.clear()
            self._down_since_s = time.monotonic()
        for connection in (self._command_connection, self._push_connection):
            if connection is not None:
                connection.abort()
        self._command_connection = self._push_connection = None


def _confirm(ack: asyncio.Future[None]) -> None:
    if not ack.done():
        ack.set_result(None)


async def _all_of(acks: Sequence[asyncio.Future[None]], *, tolerant: bool) -> None:
    """Return when all are done; raises the error of one that failed, unless ``tolerant``."""
    await asyncio.gather(*acks, return_exceptions=tolerant)
