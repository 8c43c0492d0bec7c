"""A run's events, their positions, and the batches they travel in.

Wire form of a batch (one pub/sub message, one log entry), JSON::

    {"v":1, "a":<attempt>, "s":<seq of the first event>, "e":[<event>, ...]}

where an event is a string (streamed text, the common case, 3 bytes over the text itself) or
``[type, data]``. Unknown keys and types are ignored, so a newer writer can add some.
"""

import json
import re
from typing import Any, Final, NamedTuple, Self

import orjson

from service.errors import BusError, InvalidAgentOutput

VERSION: Final = 1

RUN_STARTED: Final = "run_started"
TEXT: Final = "text"
REASONING: Final = "reasoning"
TOOL_CALL_DELTA: Final = "tool_call_delta"
TOOL_CALL_START: Final = "tool_call_start"
TOOL_CALL_END: Final = "tool_call_end"
TOOL_RESULTS: Final = "tool_results"
RUN_COMPLETED: Final = "run_completed"
RUN_FAILED: Final = "run_failed"
RUN_CANCELLED: Final = "run_cancelled"

# Sent to clients under these names, in the order the agent emitted them (seed's event map).
NAMED: Final = frozenset(
    {"agent_turn_start", "inference_start", "inference_end", TOOL_CALL_START, TOOL_CALL_END},
)
TERMINAL: Final = frozenset({RUN_COMPLETED, RUN_FAILED, RUN_CANCELLED})
# What an agent writes for the client to keep: an attempt that has written any of it is not run again.
WRITTEN: Final = frozenset({TEXT, REASONING, TOOL_CALL_DELTA})
# The bridge's own; an agent may not emit them.
RESERVED: Final = frozenset({RUN_STARTED, TOOL_RESULTS}) | WRITTEN | TERMINAL

# One event's encoded size. A 300 KB SSE line was measured harmless; a line over 1 MiB is a file.
MAX_EVENT_BYTES: Final = 1 << 20

_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
CURSOR: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,15})(?:\.([0-9]{1,9}))?")


class Event(NamedTuple):
    """An internal fact of a run.

    ``seq`` counts 1, 2, 3 ... within ``attempt``. ``data`` is the text for ``text`` and ``reasoning`` events and
    a JSON object for all others. A tuple, not a dataclass: one is made per token.
    """

    attempt: int
    seq: int
    type: str
    data: Any


class Cursor(NamedTuple):
    """A position in a stream: ``attempt-seq``, and ``.part`` where one event makes several frames."""

    attempt: int
    seq: int
    part: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"2-17"`` or ``"2-17.3"``; raises ValueError on anything else."""
        match = CURSOR.fullmatch(text)
        if match is None:
            message = f"not a cursor: {text[:40]!r} (expected 'attempt-seq' or 'attempt-seq.part')"
            raise ValueError(message)
        return cls(int(match[1]), int(match[2]), int(match[3] or 0))

    def __str__(self) -> str:
        """Return the form used as SSE ``id:``."""
        return f"{self.attempt}-{self.seq}.{self.part}" if self.part else f"{self.attempt}-{self.seq}"


START: Final = Cursor(0, 0)


def check_agent_event(event_type: object, data: object) -> None:
    """Refuse what an agent may not emit: reserved or malformed types, data that is not a dict."""
    if not isinstance(event_type, str) or _TYPE.fullmatch(event_type) is None:
        message = f"event type {event_type!r} is not allowed: use a letter, then up to 63 letters, digits or _ . : -"
        raise InvalidAgentOutput(message)
    if event_type in RESERVED:
        message = f"event type {event_type!r} belongs to agentstream; choose another name"
        raise InvalidAgentOutput(message)
    if not isinstance(data, dict):
        message = f"event {event_type!r} needs a dict as data, got {type(data).__name__}"
        raise InvalidAgentOutput(message)


def written_characters(event_type: str, data: Any) -> int:  # noqa: ANN401 -- JSON
    """Return how much an event of ``WRITTEN`` says: its text, or a call's name and arguments."""
    return len(data.get("name") or "") + len(data["arguments"]) if event_type == TOOL_CALL_DELTA else len(data)


def encode_event(event_type: str, data: Any) -> bytes:  # noqa: ANN401 -- JSON
    """Return one event's wire form; raises InvalidAgentOutput if it is not JSON or too large."""
    item = data if event_type is TEXT else (event_type, data)
    try:
        try:
            encoded = orjson.dumps(item)
        except TypeError as exc:
            if "surrogates" not in str(exc):
                raise
            encoded = _without_lone_surrogates(item)
    except (TypeError, ValueError) as exc:
        message = f"event {event_type!r} cannot be written as JSON: {exc}"
        raise InvalidAgentOutput(message) from exc
    if len(encoded) > MAX_EVENT_BYTES:
        message = f"event {event_type!r} is {len(encoded)} bytes; the limit is {MAX_EVENT_BYTES}"
        raise InvalidAgentOutput(message)
    return encoded


def _without_lone_surrogates(item: Any) -> bytes:  # noqa: ANN401 -- JSON
    """Return an item's wire form with half characters replaced: there is no UTF-8 for them."""
    text = json.dumps(item, ensure_ascii=False, allow_nan=False)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return orjson.dumps(orjson.loads(whole))  # json also writes what no reader takes, such as 10**400


def encode_batch(attempt: int, first_seq: int, encoded_events: list[bytes]) -> bytes:
    """Join encoded events, whose first has ``first_seq``, into one message."""
    return b'{"v":1,"a":%d,"s":%d,"e":[%b]}' % (attempt, first_seq, b",".join(encoded_events))


def _typed_event(attempt: int, seq: int, item: Any) -> Event:  # noqa: ANN401 -- JSON
    event_type, data = item[0], item[1]
    if event_type.__class__ is not str:
        raise TypeError
    return Event(attempt, seq, event_type, data)


def decode_batch(payload: bytes) -> list[Event]:
    """Return a message's events in order; raises BusError if it is not a batch of ours."""
    try:
        batch = orjson.loads(payload)
        attempt, seq, items = int(batch["a"]), int(batch["s"]), batch["e"]
        if items.__class__ is not list:
            raise TypeError  # noqa: TRY301 -- one way out for all that is foreign
        return [
            Event(attempt, index, TEXT, item) if item.__class__ is str else _typed_event(attempt, index, item)
            for index, item in enumerate(items, seq)
        ]
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        message = f"not an event batch: {payload[:80]!r}"
        raise BusError(message) from exc
