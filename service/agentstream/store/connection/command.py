"""A command on the link: its bytes, its callback, and whether it is sent again."""

import asyncio
from collections.abc import Callable
from typing import Final

from agentstream.store.connection.wire import OnReply

NO_SLOT: Final = -1


class Command:
    """A command that was sent, or waits to be sent.

    ``repack``, if set, returns the bytes to send instead after a reconnect: the same command, with more checks.
    ``slot`` is the slot of its keys in a cluster; NO_SLOT if it is for one server.
    """

    __slots__ = ("cancelled", "on_reply", "payload", "repack", "slot")
    waits = True  # a reply that means "not now" is not the end: the command is sent again

    def __init__(self, payload: bytes, on_reply: OnReply) -> None:
        """Store the packed command and the callback for its reply."""
        self.payload = payload
        self.on_reply = on_reply
        self.repack: Callable[[], bytes] | None = None
        self.cancelled = False
        self.slot = NO_SLOT

    def cancel(self) -> None:
        """Do not send the command (again), and drop its reply."""
        self.cancelled = True


class Probe(Command):
    """A command whose caller wants to know that the broker refuses writes now."""

    __slots__ = ()
    waits = False


class Subscription(Command):
    """The place of a subscription among the commands. Only an error is a reply to it; its confirmations are pushes.

    ``channels`` are empty and ``ack`` is None for the end of a subscription.
    """

    __slots__ = ("ack", "channels")

    def __init__(self, channels: list[bytes], ack: asyncio.Future[None] | None) -> None:
        """Store the channels, and the future for the confirmation of the last one."""
        super().__init__(b"", _ignore)
        self.channels = channels
        self.ack = ack


def _ignore(_reply: object) -> None:
    """Ignore a reply."""
