"""Measures how long the client of a new run waits for a worker and for the first text.

All times are from the clock of this process.
"""

import time
from collections.abc import Callable

from agentstream.protocol.events import RUN_STARTED, Batch


class LatencyTimer:
    """Starts when the run is admitted, and reports each of the two times at most once."""

    __slots__ = ("_on_begun", "_on_text", "_since_s")

    def __init__(self, on_begun: Callable[[float], None], on_text: Callable[[float], None]) -> None:
        """Start the timer. It calls ``on_begun`` when a worker begins the run and ``on_text`` at its first text.

        The argument of both is the time since the start, in seconds.
        """
        self._on_begun = on_begun
        self._on_text = on_text
        self._since_s = time.monotonic()

    def attempt_started(self, batch: Batch) -> None:
        """Report the wait for a worker. ``batch`` is the first of an attempt.

        Only the first attempt is reported. A batch without ``run_started`` is not reported: the run was cancelled while
        it was queued, and no worker began it.
        """
        first = batch.items[0]
        if batch.attempt == 1 and first.__class__ is list and first[:1] == [RUN_STARTED]:
            self._on_begun(time.monotonic() - self._since_s)

    def first_text_received(self) -> None:
        """Report the wait for the first text."""
        self._on_text(time.monotonic() - self._since_s)
