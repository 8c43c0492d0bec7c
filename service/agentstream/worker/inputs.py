"""The messages that clients send to one run while its agent works."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from agentstream.protocol.events import INPUT_APPLIED, Event
from agentstream.store.bus.outbox import Fields
from agentstream.store.inputs import Inputs, input_id

Publish = Callable[[str, dict[str, Any], Fields], None]


class RunInputs:
    """The messages for one attempt. ``take`` may be called from any thread, the rest on the loop."""

    def __init__(self, publish: Publish) -> None:
        """``publish`` stores an event with fields of the run's hash."""
        self.publish = publish
        self._lock = threading.Lock()
        self._messages: Sequence[dict[str, Any]] = ()  # all that were sent to the run
        self._taken = 0
        self._again: list[dict[str, Any]] = []  # taken by an earlier attempt after its last checkpoint

    def restore(self, events: Sequence[Event], inputs: Inputs) -> None:
        """Continue an earlier attempt. ``events`` are the events after its last checkpoint.

        The messages that it took after the checkpoint are not part of its state, so the agent gets them again.
        """
        applied = [event.data["inputs"] for event in events if event.type == INPUT_APPLIED]
        self._again = [item["message"] for items in applied for item in items]
        self._messages, self._taken = inputs.messages, inputs.applied

    def receive(self, inputs: Inputs) -> None:
        """Note the messages that have arrived."""
        with self._lock:
            self._messages = inputs.messages

    def take(self) -> list[dict[str, Any]]:
        """Return the messages that the agent has not got yet. An event says which, so that all readers see it."""
        with self._lock:
            again, self._again = self._again, []
            first, new = self._taken, list(self._messages[self._taken :])
            self._taken += len(new)
        if new:
            items = [{"id": input_id(first + number), "message": message} for number, message in enumerate(new, 1)]
            self.publish(INPUT_APPLIED, {"inputs": items}, ("inputs_applied", first + len(new)))
        return again + new
