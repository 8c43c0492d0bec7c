"""The receiver of a run's events."""

from concurrent.futures import Future
from typing import Any, Protocol

from agentstream.protocol.interrupts import Interrupt


class EventSink(Protocol):
    """The receiver of a run's events."""

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Queue one event for publishing. Any thread may call it; it may block a thread, but never the event loop."""

    def put_checkpoint(self, state: bytes) -> bool:
        """Queue a checkpoint behind the events so far; return whether it is stored. In a thread, wait until it is."""
        ...

    def ask(self, asked: Interrupt) -> "Future[Any]":
        """Ask people a question; return the future answer."""
        ...

    def take_inputs(self) -> list[dict[str, Any]]:
        """Return the messages for the run that the agent has not got yet, and queue an event that says so."""
        ...

    async def wait_for_room(self) -> None:
        """Wait until the queue has room for more events, and until starts of tools and checkpoints are stored."""
