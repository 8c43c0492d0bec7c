"""The responses of one run. A run that was parked for people has several: each ends where the run was parked.

Response number 0 begins with the run. Response number n begins where the run goes on after its n-th stay. A response
never changes after its end: it keeps its approval requests when they are answered. No I/O, and deterministic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agentstream.protocol.events import RUN_RESUMED, Event
from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.response_items import APPROVAL_REQUEST, item_id, response_id
from agentstream.stream.transcript import TURN_SEPARATOR, Parked, Part, Reasoning, Text


class SegmentTracker:
    """Tells to which response of its run an event belongs. ``number`` is that of the last event."""

    __slots__ = ("_parked", "number", "usage_before")

    def __init__(self) -> None:
        """Start before the first event."""
        self.number = 0
        self.usage_before: Mapping[str, int] = {}  # of the run, before this response
        self._parked: Parked | None = None

    def receive(self, event: Event, parts: Sequence[Part]) -> bool:
        """Look at the next event and its parts. Return whether another response begins after it."""
        if parts and isinstance(parts[0], Parked):
            self._parked = parts[0]
        elif event.type == RUN_RESUMED and self._parked is not None:
            self.number += 1
            self.usage_before, self._parked = self._parked.usage, None
            return True
        return False

    def own_usage(self, usage: Mapping[str, int]) -> dict[str, int]:
        """Return the usage of this response alone, so that clients which add up responses count each token once.

        An estimate before the stay may exceed the agent's own count after it; then a value is 0.
        """
        return {name: max(0, count - self.usage_before.get(name, 0)) for name, count in usage.items()}


def without_separator(parts: Sequence[Part]) -> Sequence[Part]:
    """Return the first texts of a response without the separator from the text of the response before it."""
    for kind in (Text, Reasoning):
        texts = [part for part in parts if isinstance(part, kind)]
        if len(texts) > 1 and texts[0].text == TURN_SEPARATOR:
            parts = [part for part in parts if part is not texts[0]]
    return parts


def echo_of(echo: dict[str, Any], run_id: str, segment: int) -> dict[str, Any]:
    """Return the request fields that a response repeats. A later response of a run names the one before it."""
    return echo | {"previous_response_id": response_id(run_id, segment - 1)} if segment else echo


def shown_interrupts(asked: Sequence[Interrupt], run_id: str, segment: int) -> list[dict[str, Any]]:
    """Return the interrupts of a response as JSON. ``call_id`` is the id with which an input item answers it."""
    return [each.as_json() | {"call_id": item_id(APPROVAL_REQUEST, run_id, each.id, segment)} for each in asked]
