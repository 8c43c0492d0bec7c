"""A command on the link: its bytes, its callback, and whether it is sent again."""

from collections.abc import Callable

from agentstream.store.connection.wire import OnReply


class Command:
    """A command that was sent, or waits to be sent.

    ``repack``, if set, returns the bytes to send instead after a reconnect: the same command, with more checks.
    """

    __slots__ = ("cancelled", "on_reply", "payload", "repack")
    waits = True  # a reply that means "not now" is not the end: the command is sent again

    def __init__(self, payload: bytes, on_reply: OnReply) -> None:
        """Store the packed command and the callback for its reply."""
        self.payload = payload
        self.on_reply = on_reply
        self.repack: Callable[[], bytes] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Do not send the command (again), and drop its reply."""
        self.cancelled = True


class Probe(Command):
    """A command whose caller wants to know that the broker refuses writes now."""

    __slots__ = ()
    waits = False
