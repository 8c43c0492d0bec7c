"""Exchanges commands, replies and messages with one server, on connections that ServerLink makes."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final

import hiredis

from agentstream.errors import BusError
from agentstream.protocol.broker_url import show_address
from agentstream.protocol.keys import Keys
from agentstream.store.connection.channels import MAY_MOVE, Channels, ServedElsewhere
from agentstream.store.connection.command import NO_SLOT, Command, Probe, Subscription
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.fanout import OnMessage
from agentstream.store.connection.handshake import Words
from agentstream.store.connection.link import Link, Subscriber, ignore, settle
from agentstream.store.connection.refusals import is_not_now, is_not_primary, words_of
from agentstream.store.connection.router import Router
from agentstream.store.connection.wire import OnReply, Reply, RespConnection, pack
from agentstream.store.scripts import CLUSTER_SCRIPTS, SCRIPTS

log = logging.getLogger(__name__)

RESEND_DELAY_S: Final = 0.1

_MESSAGES: Final = frozenset({b"message", b"smessage"})
_SUBSCRIBED: Final = frozenset({b"subscribe", b"ssubscribe"})


class Exchange(Link):
    """Commands, replies, channels and messages of one server; the replies come in the order of the commands."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str,
        probe_key: str | None = Keys().probe(),
        router: Router[Any] | None = None,
    ) -> None:
        """Prepare a link. CLIENT LIST shows ``name``. ``probe_key`` is the name for proofs of writes.

        Without it nothing is proved: a server of a cluster may own no slot that the service uses.
        """
        super().__init__(f"Redis at {endpoint}")
        self._endpoint = endpoint
        self._name = name
        self._router = router
        self._scripts = SCRIPTS if router is None else CLUSTER_SCRIPTS
        self.probe_key = probe_key
        self._pending: deque[Command] = deque()
        self._outbox: list[bytes] = []
        self._flush_scheduled = False
        self._channels = Channels()
        self._command_connection: RespConnection | None = None
        self._push_connection: RespConnection | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._subscribers: set[Subscriber] = set()  # resynced after every connect; there may be thousands
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
    def idle(self) -> bool:
        """Whether no command is unanswered."""
        return not self._pending

    @property
    def down_s(self) -> float:
        """For how long the link has not been connected, in s; 0 if it is connected."""
        return 0.0 if self._ready.is_set() else time.monotonic() - self._down_since_s

    @property
    def reconnects(self) -> int:
        """How often the link has reconnected."""
        return self._reconnects

    @property
    def connections(self) -> dict[str, bool]:
        """Whether the link is connected to its server: the one that REDIS_URL or most sentinels name."""
        if self._endpoint.kind != "sentinel":
            return {str(self._endpoint): self.connected}
        return {} if self._primary is None else {show_address(*self._primary): self.connected}

    @property
    def failure(self) -> Exception | None:
        """Why the link does not connect; None if it does."""
        return self._failure

    @property
    def fails_over(self) -> bool:
        """Whether another server may take over: sentinels name it."""
        return self._endpoint.kind == "sentinel"

    def keeps_order(self, *_names: str) -> bool:
        """Whether one connection carries commands and subscriptions."""
        return self._endpoint.pushes_inline

    def group_of(self, _name: str) -> Hashable:
        """Return the same group for all names: one server may have them all in one script."""
        return 0

    def send(
        self,
        *args: bytes | str | int,
        on_reply: OnReply,
        key: str = "",  # noqa: ARG002 -- one server has all keys
        once: bool = False,
    ) -> Command:
        """Send a command. ``on_reply`` gets the reply or a hiredis.ReplyError, in the order of the server."""
        command = (Probe if once else Command)(pack(args), on_reply)
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
        self._channels.add(channel, on_message)
        if everywhere and self._router is not None:
            self._channels.everywhere.add(channel)
        return self._subscribe([channel])

    def unsubscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Pass no more messages to ``on_message``; do nothing if it is not subscribed."""
        if self._channels.remove(channel, on_message):
            self._unsubscribe(channel)

    def subscribed(self, channel: bytes) -> bool:
        """Whether the channel has a handler."""
        return channel in self._channels

    def add_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` after every connect."""
        self._subscribers.add(subscriber)

    def remove_subscriber(self, subscriber: Subscriber) -> None:
        """Resync ``subscriber`` no more."""
        self._subscribers.discard(subscriber)

    # -- what a cluster moves to another server -----------------------------------------------------

    def take_commands(self) -> list[Command]:
        """Return the unanswered commands with keys, and forget all."""
        taken = [command for command in self._pending if command.slot != NO_SLOT and not command.cancelled]
        self._pending.clear()
        return taken

    def take_channels(self, wanted: Callable[[bytes], bool]) -> dict[bytes, OnMessage]:
        """Return the channels that are ``wanted``, with their handlers, and forget them.

        Their futures fail if they are not confirmed yet.
        """
        return self._channels.take(wanted)

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
        ack = self._channels.expect(names[-1])
        connection = self._push_connection
        if connection is not None:
            if connection is self._command_connection:
                self._await_answer(Subscription(names, ack))
            verb = "SSUBSCRIBE" if self._is_sharded(names[0]) else "SUBSCRIBE"
            self._write_to_push_connection(pack((verb, *names)))
        return ack

    def _await_answer(self, subscription: Subscription) -> None:
        """Put the subscription where an error would arrive: before the commands that wait for the connection."""
        if self._ready.is_set():
            self._pending.append(subscription)
        else:
            sent = sum(command.__class__ is Subscription for command in self._pending)
            self._pending.insert(sent, subscription)

    def _unsubscribe(self, channel: bytes) -> None:
        if not self._is_sharded(channel):
            self._channels.everywhere.discard(channel)
            self._write_to_push_connection(pack(("UNSUBSCRIBE", channel)))
        elif self._ready.is_set():
            # A server that no longer has the slot answers with an error. Without one, the next reply is that of PING.
            self._pending.append(Subscription([], None))
            self._write(pack(("SUNSUBSCRIBE", channel)))
            self.send("PING", on_reply=ignore)

    def _is_sharded(self, channel: bytes) -> bool:
        return self._router is not None and channel not in self._channels.everywhere

    def _write_to_push_connection(self, packed: bytes) -> None:
        if self._ready.is_set() and self._push_connection is self._command_connection:
            self._write(packed)  # together with later commands of this turn, for example the job of the run
        elif self._push_connection is not None:
            self._push_connection.write(packed)

    # -- receiving ----------------------------------------------------------------------------------

    def _on_reply(self, reply: Reply) -> None:
        pending, failed = self._pending, reply.__class__ is hiredis.ReplyError
        while pending and isinstance(subscription := pending[0], Subscription):
            pending.popleft()
            if failed:
                self._on_subscription_refused(subscription, str(reply))
                return
        if not pending:
            log.error("the broker sent a reply to no command; reconnecting")
            self._drop_connections()
            return
        command = pending.popleft()
        if command.cancelled:
            return
        if failed and self._on_error(command, str(reply)):
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
        moves = self._router is not None and text.startswith(MAY_MOVE)
        error = (ServedElsewhere if moves else BusError)(words_of(text))
        self._channels.refuse(subscription.channels[-1], subscription.ack, error)
        if self._router is not None and moves:
            self._router.on_dropped(self, [name for name in subscription.channels if name in self._channels])

    def _leave_server(self, command: Command, words: str) -> None:
        """Reconnect, because the server is not the primary, and send the command again there."""
        log.warning("the broker is not the primary: %s", words)
        self.refuse(words)
        self._pending.appendleft(command)  # the commands after it keep their order
        self._drop_connections()

    def _on_push(self, push: list[Any]) -> None:
        kind = push[0]
        if kind in _MESSAGES:
            self._channels.deliver(push[1], push[2])
        elif kind in _SUBSCRIBED:
            self._on_subscribed(push[1])
        elif kind == b"sunsubscribe" and push[1] in self._channels and self._router is not None:
            self._router.on_dropped(self, [push[1]])  # the slot moves to another server

    def _on_subscribed(self, channel: bytes) -> None:
        head = self._pending[0] if self._pending else None
        if isinstance(head, Subscription) and head.channels and channel == head.channels[-1]:
            self._pending.popleft()
        self._channels.confirm(channel)

    def _drop_connections(self) -> None:
        if self._ready.is_set():
            self._ready.clear()
            self._down_since_s = time.monotonic()
        for connection in (self._command_connection, self._push_connection):
            if connection is not None:
                connection.abort()
        self._command_connection = self._push_connection = None
