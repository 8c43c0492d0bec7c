"""Several handlers of one channel."""

from collections.abc import Callable

OnMessage = Callable[[bytes], None]


class Fanout:
    """Passes the messages of one channel to several handlers."""

    def __init__(self, one: OnMessage, other: OnMessage) -> None:
        """Pass each message to ``one``, then to ``other``."""
        self._one = one
        self._other = other

    def __call__(self, payload: bytes) -> None:
        """Pass on a message."""
        try:
            self._one(payload)
        finally:  # also if the first handler raises
            self._other(payload)

    def without(self, handler: OnMessage) -> OnMessage:
        """Return the handler of the others."""
        if self._other == handler:
            return self._one
        if self._one == handler:
            return self._other
        if isinstance(self._one, Fanout):  # holds the handlers that were added earlier
            return Fanout(self._one.without(handler), self._other)
        return self
