"""Reads the state and output of earlier attempts at a run, from which a new attempt continues.

A checkpoint in the store holds the state of the agent and the counts of everything before it. The events after the
checkpoint are in the replay log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentstream.agents import EmittedEvent, Restored, RestoredToolCall
from agentstream.errors import LogTrimmed, NotResumable
from agentstream.protocol.events import (
    REASONING,
    RESERVED_EVENTS,
    RUN_HANDED_OVER,
    RUN_PARKED,
    START,
    TEXT,
    TOOL_CALL_DELTA,
    WRITTEN_EVENTS,
    Event,
)
from agentstream.store.bus.bus import Bus, StoredCheckpoint
from agentstream.worker.tally import Tally

VERSION: Final = 1  # of the stored form of a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """The state and output of the earlier attempts at a run.

    ``restored`` is for an agent that can continue; None if the attempts stored and sent nothing. ``events`` are those
    after the last checkpoint. ``stalls`` is the number of attempts since the last progress that ended with the loss of
    their worker. A checkpoint and every piece of output are progress. ``parked`` says whether the last attempt parked
    the run.
    """

    restored: Restored | None
    events: Sequence[Event]
    stalls: int
    parked: bool = False


def pack(state: bytes, tally: Tally) -> bytes:
    """Return the stored form of a checkpoint: the state of the agent as JSON, and the counts of the run so far."""
    return b'{"v":%d,"counts":%b,"state":%b}' % (VERSION, orjson.dumps(tally.counts()), state)


async def read_takeover(bus: Bus, run_id: str, attempt: int, tally: Tally) -> Takeover:
    """Read what the attempts before ``attempt`` left, and add their events to ``tally``.

    Raises NotResumable if the replay log no longer has all events after the last checkpoint, or if the checkpoint is
    not of this VERSION.
    """
    checkpoint = await bus.last_checkpoint(run_id)
    try:
        events = await bus.history(run_id, checkpoint.position if checkpoint else START)
    except LogTrimmed as exc:
        raise NotResumable(str(exc)) from exc
    return takeover_of(checkpoint, events, attempt, tally)


def takeover_of(checkpoint: StoredCheckpoint | None, events: Sequence[Event], attempt: int, tally: Tally) -> Takeover:
    """Return what the attempts before ``attempt`` left, and add their events to ``tally``.

    ``events`` are all events after the last checkpoint. Raises NotResumable if the checkpoint is not of this VERSION.
    """
    state, position = None, START
    if checkpoint is not None:
        position, stored = checkpoint.position, orjson.loads(checkpoint.content)
        if stored["v"] != VERSION:
            message = f"the checkpoint has version {stored['v']}; this worker reads version {VERSION}"
            raise NotResumable(message)
        state = stored["state"]
        tally.restore(stored["counts"])
    for event in events:
        tally.record(event.type, event.data)
    handed_over = {event.attempt for event in events if event.type in {RUN_HANDED_OVER, RUN_PARKED}}
    progress = max([position.attempt, *(event.attempt for event in events if event.type in WRITTEN_EVENTS)])
    stalled = [number for number in range(progress + 1, attempt) if number not in handed_over]
    restored = _restored(state, events)
    return Takeover(
        events=events,
        restored=None if checkpoint is None and restored == Restored() else restored,
        stalls=len(stalled),
        parked=any(event.type == RUN_PARKED and event.attempt == attempt - 1 for event in events),
    )


def _restored(state: Any, events: Sequence[Event]) -> Restored:  # noqa: ANN401 -- JSON
    calls: dict[int, RestoredToolCall] = {}
    for event in events:
        if event.type == TOOL_CALL_DELTA:
            index, data = event.data["index"], event.data
            call = calls.setdefault(index, RestoredToolCall(index, data.get("id", ""), data.get("name", "")))
            call.arguments += data["arguments"]
    return Restored(
        state=state,
        text="".join(event.data for event in events if event.type == TEXT),
        reasoning="".join(event.data for event in events if event.type == REASONING),
        events=tuple(EmittedEvent(event.type, event.data) for event in events if event.type not in RESERVED_EVENTS),
        tool_calls=tuple(calls.values()),
    )
