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
from collections.abc import Sequence
from typing import Final

from agentstream.errors import BusError
from agentstream.store.connection.command import Command, Subscription
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.exchange import RESEND_DELAY_S, Exchange
from agentstream.store.connection.handshake import Step, open_connection
from agentstream.store.connection.link import ignore
from agentstream.store.connection.refusals import is_not_primary
from agentstream.store.connection.sentinels import find_primary, until_primary_changes
from agentstream.store.connection.silence import until_silent
from agentstream.store.connection.slots import by_slot
from agentstream.store.connection.wire import OnReply, RespConnection, await_while_connected

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
MIN_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 1.0
MAX_CHANNELS_PER_SUBSCRIBE: Final = 1000  # when a new connection subscribes to all channels


class ServerLink(Exchange):
    """The connection of a process to one server: the only one, the primary that sentinels name, or one of a cluster."""

    _misled = False  # whether the last connection led to the wrong server

    def open(self) -> None:
        """Start to connect; the link then stays connected until ``close``."""
        self._task = asyncio.create_task(self._keep_connected(), name="link")

    async def close(self) -> None:
        """Close the connection and drop unanswered commands."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop_connections()

    def leave_wrong_server(self, command: Command) -> None:
        """Connect again, because the connection leads to the wrong server, and send the command again.

        Containers that start again may exchange their addresses just after the name of one was looked up.
        """
        log.warning("the connection to %s leads to another server; reconnecting", self._endpoint)
        self._misled = True
        self._pending.appendleft(command)  # the commands after it keep their order
        self._drop_connections()

    async def _keep_connected(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._connect()
            except (OSError, BusError, TimeoutError) as exc:
                if self.note_failure(exc):
                    log.warning("cannot connect to the broker: %s", str(exc) or type(exc).__name__)
                self._drop_connections()
                if self._router is not None:
                    self._router.on_lost(self)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 -- spreads reconnects
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                continue
            backoff_s = MIN_BACKOFF_S
            await self._monitor()
            self._drop_connections()
            self._reconnects += 1
            log.warning("the connection to the broker was lost; reconnecting")
            if self._router is not None:
                self._router.on_lost(self)
            if is_not_primary(self.refusal):
                await asyncio.sleep(RESEND_DELAY_S)  # do not spin if the next server refuses too
            if self._misled:
                self._misled = False
                await asyncio.sleep(MAX_BACKOFF_S)  # its name may still lead to the wrong server

    async def _connect(self) -> None:
        """Open the connections, wait for a pong, subscribe again, and send all unanswered commands."""
        endpoint = self._endpoint
        if endpoint.kind == "sentinel":
            self._primary = await find_primary(endpoint)
            endpoint = endpoint.at(*self._primary)
        connection = await self._open(endpoint, self._on_reply, for_commands=True)
        # _push_connection is set only now: an UNSUBSCRIBE on the command connection would shift all its replies.
        inline = endpoint.pushes_inline
        try:
            pushes = connection if inline else await self._open(endpoint, self._on_push, for_commands=False)
        except BaseException:
            connection.abort()
            raise
        if not inline:
            self._endpoint.use_resp2()
        self._command_connection, self._push_connection = connection, pushes
        await self._subscribe_again(pushes)
        self._outbox.clear()
        connection.write(b"".join(command.repack() if command.repack else command.payload for command in self._pending))
        self._ready.set()
        self.note_failure(None)
        if self._router is not None:
            self._router.on_connected(self)
        for callback in (*self.on_reconnect, *(subscriber.resync for subscriber in self._subscribers)):
            try:
                callback()
            except Exception:  # an error of one stream must not end the others
                log.exception("a reconnect handler failed")

    async def _subscribe_again(self, pushes: RespConnection) -> None:
        """Subscribe to all channels on a new connection; return when the server has answered.

        Meanwhile only these subscriptions are unanswered on the connection. So ``_pending`` holds no other commands.
        """
        self._channels.lose_connection()
        unanswered = [command for command in self._pending if command.__class__ is not Subscription]
        self._pending = deque()
        try:
            parts = [list(self._channels)] if self._router is None else self._channels_by_slot()
            commands = [
                part[start : start + MAX_CHANNELS_PER_SUBSCRIBE]
                for part in parts
                for start in range(0, len(part), MAX_CHANNELS_PER_SUBSCRIBE)
            ]
            acks = [self._subscribe(names) for names in commands]
            if acks:
                await await_while_connected(pushes, _all_of(acks, tolerant=self._router is not None))
        finally:  # those that are not answered now were added meanwhile
            subscriptions = [command for command in self._pending if command.__class__ is Subscription]
            later = [command for command in self._pending if command.__class__ is not Subscription]
            wanted = [command for command in (*unanswered, *later) if not command.cancelled]
            self._pending = deque((*subscriptions, *wanted))
        for names, ack in zip(commands, acks, strict=True):
            error = ack.exception()
            for name in names:
                self._channels.settle_lost(name, error if isinstance(error, BusError) else None)

    def _channels_by_slot(self) -> list[list[bytes]]:
        """Return the channels in groups of one slot: the sharded ones, and then the others."""
        everywhere = self._channels.everywhere
        return [*by_slot(set(self._channels) - everywhere), *by_slot(everywhere)]

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
        watching = [asyncio.create_task(until_silent(connections[0], self._probe_and_ping), name="ping the broker")]
        if self._endpoint.kind == "sentinel":
            asking = until_primary_changes(self._endpoint, self._primary)
            watching.append(asyncio.create_task(asking, name="ask the sentinels"))
        lost = (connection.lost for connection in connections)
        try:
            await asyncio.wait({*lost, *watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in watching:
                task.cancel()
            for outcome in await asyncio.gather(*watching, return_exceptions=True):
                if isinstance(outcome, Exception):
                    log.error("the watch over the broker failed", exc_info=outcome)

    async def _probe_and_ping(self) -> None:
        """Find out whether the server is still the primary. Send a PING, and report its duration.

        The duration includes the time to write the messages before the pong to clients.
        """
        self._send_probe(ignore)
        sent_s = time.monotonic()
        await self.call("PING")
        self.on_pong(time.monotonic() - sent_s)


async def _all_of(acks: Sequence[asyncio.Future[None]], *, tolerant: bool) -> None:
    """Return when all are done; raises the error of one that failed, unless ``tolerant``."""
    await asyncio.gather(*acks, return_exceptions=tolerant)
