"""The channels that a link is subscribed to: their handlers, and who waits for a confirmation."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from agentstream.errors import BusError
from agentstream.store.connection.fanout import Fanout, OnMessage

log = logging.getLogger(__name__)

# The slot of a refused subscription may be on another server, now or soon.
MAY_MOVE: Final = ("MOVED ", "ASK ", "CLUSTERDOWN", "TRYAGAIN")


class ServedElsewhere(BusError):
    """The end of a subscription whose channel another server of the cluster has."""


class Channels:
    """Handlers by channel, and a future for each confirmation that the server owes."""

    def __init__(self) -> None:
        """Start without channels."""
        self.handlers: dict[bytes, OnMessage] = {}
        self.everywhere: set[bytes] = set()  # the channels that are no sharded channels in a cluster
        self._acks: dict[bytes, deque[asyncio.Future[None]]] = {}  # one for each expected confirmation, in order
        self._lost: dict[bytes, list[asyncio.Future[None]]] = {}  # of lost connections; the next one settles them

    def __contains__(self, channel: object) -> bool:
        """Return whether the channel has a handler."""
        return channel in self.handlers

    def __iter__(self) -> Iterator[bytes]:
        """Yield each channel."""
        return iter(self.handlers)

    def add(self, channel: bytes, on_message: OnMessage) -> None:
        """Pass the messages of a channel to one more handler."""
        other = self.handlers.get(channel)
        self.handlers[channel] = on_message if other is None else Fanout(other, on_message)

    def remove(self, channel: bytes, on_message: OnMessage) -> bool:
        """Pass no more messages to a handler; return whether it was the last one of the channel."""
        before = self.handlers.get(channel)
        if isinstance(before, Fanout):
            self.handlers[channel] = before.without(on_message)
        elif before == on_message:
            del self.handlers[channel]
            self.settle_lost(channel, None)  # nobody reads the channel any more
            return True
        return False

    def deliver(self, channel: bytes, payload: bytes) -> None:
        """Pass a message to the handlers of its channel."""
        handler = self.handlers.get(channel)
        if handler is not None:
            try:
                handler(payload)
            except Exception:  # an error of one stream must not end the others
                log.exception("a message handler failed")

    def expect(self, channel: bytes) -> asyncio.Future[None]:
        """Return a future for the next confirmation of a channel."""
        ack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks.setdefault(channel, deque()).append(ack)
        return ack

    def confirm(self, channel: bytes) -> None:
        """Note a confirmation of the server."""
        acks = self._acks.get(channel)
        if acks:
            _settle(acks.popleft())
            if not acks:
                del self._acks[channel]

    def refuse(self, channel: bytes, ack: asyncio.Future[None], error: BusError) -> None:
        """Note that the server refuses the subscription whose confirmation ``ack`` expects."""
        acks = self._acks.get(channel, deque())
        if ack in acks:
            acks.remove(ack)
        if not acks:
            self._acks.pop(channel, None)
        _settle(ack, error)

    def lose_connection(self) -> None:
        """Note that the connection is lost: the expected confirmations do not come."""
        for channel, acks in self._acks.items():
            self._lost.setdefault(channel, []).extend(acks)
        self._acks.clear()

    def settle_lost(self, channel: bytes, error: BusError | None) -> None:
        """Note that a new connection has subscribed to a channel, or that the server has refused it."""
        for ack in self._lost.pop(channel, ()):
            _settle(ack, error)

    def take(self, wanted: Callable[[bytes], bool]) -> dict[bytes, OnMessage]:
        """Return the channels that are ``wanted``, with their handlers, and forget them.

        Futures for their confirmation fail with ServedElsewhere.
        """
        taken = {channel: handler for channel, handler in self.handlers.items() if wanted(channel)}
        for channel in taken:
            del self.handlers[channel]
            self.everywhere.discard(channel)
            for ack in (*self._acks.pop(channel, ()), *self._lost.pop(channel, ())):
                _settle(ack, ServedElsewhere("another server has the channel"))
        return taken


def _settle(ack: asyncio.Future[None], error: BusError | None = None) -> None:
    if ack.done():
        return
    if error is None:
        ack.set_result(None)
    else:
        ack.set_exception(error)
