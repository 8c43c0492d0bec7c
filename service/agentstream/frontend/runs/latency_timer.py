"""How long the client of a new run waits: for a worker, and for the first text. By this process's clock alone."""

import time
from collections.abc import Callable

from agentstream.protocol.events import RUN_STARTED, Batch


class LatencyTimer:
    """Runs from a request's admission on; tells each time once."""

    __slots__ = ("_on_begun", "_on_text", "_since_s")

    def __init__(self, on_begun: Callable[[float], None], on_text: Callable[[float], None]) -> None:
        """Begin now. The two are told seconds."""
        self._on_begun = on_begun
        self._on_text = on_text
        self._since_s = time.monotonic()

    def attempt_started(self, batch: Batch) -> None:
        """Take the first events of an attempt; a later attempt tells nothing, nor does a cancel in the queue."""
        first = batch.items[0]
        if batch.attempt == 1 and first.__class__ is list and first[:1] == [RUN_STARTED]:
            self._on_begun(time.monotonic() - self._since_s)

    def first_text_received(self) -> None:
        """Take note of the first text."""
        self._on_text(time.monotonic() - self._since_s)
