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

from agentstream.errors import BusError, InvalidAgentOutput

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
NAMED_EVENTS: Final = frozenset(
    {"agent_turn_start", "inference_start", "inference_end", TOOL_CALL_START, TOOL_CALL_END},
)
TERMINAL_EVENTS: Final = frozenset({RUN_COMPLETED, RUN_FAILED, RUN_CANCELLED})
# What an agent writes for the client to keep: an attempt that has written any of it is not run again.
WRITTEN_EVENTS: Final = frozenset({TEXT, REASONING, TOOL_CALL_DELTA})
# The bridge's own; an agent may not emit them.
RESERVED_EVENTS: Final = frozenset({RUN_STARTED, TOOL_RESULTS}) | WRITTEN_EVENTS | TERMINAL_EVENTS

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


class Batch(NamedTuple):
    """What one message, or one log entry, carries: events in order, as they came over the wire.

    ``items`` are not events yet: one that is text, the common case, is the text itself, and no object is made of it
    that the stream would only take apart again. ``seq`` is the first one's.
    """

    attempt: int
    seq: int
    items: list[Any]

    @property
    def last_seq(self) -> int:
        """The last event's seq."""
        return self.seq + len(self.items) - 1

    def since(self, seq: int) -> Self:
        """Return what of it begins at ``seq``, which it reaches."""
        return self if seq == self.seq else self._replace(seq=seq, items=self.items[seq - self.seq :])

    def events(self) -> list[Event]:
        """Return the events; raises BusError if an item is none."""
        return [event_of(self.attempt, seq, item) for seq, item in enumerate(self.items, self.seq)]


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
_new: Final = tuple.__new__


def check_agent_event(event_type: object, data: object) -> None:
    """Refuse what an agent may not emit: reserved or malformed types, data that is not a dict."""
    if not isinstance(event_type, str) or _TYPE.fullmatch(event_type) is None:
        message = f"event type {event_type!r} is not allowed: use a letter, then up to 63 letters, digits or _ . : -"
        raise InvalidAgentOutput(message)
    if event_type in RESERVED_EVENTS:
        message = f"event type {event_type!r} belongs to agentstream; choose another name"
        raise InvalidAgentOutput(message)
    if not isinstance(data, dict):
        message = f"event {event_type!r} needs a dict as data, got {type(data).__name__}"
        raise InvalidAgentOutput(message)


def written_characters(event_type: str, data: Any) -> int:  # noqa: ANN401 -- JSON
    """Return how much an event of ``WRITTEN_EVENTS`` says: its text, or a call's name and arguments."""
    return len(data.get("name") or "") + len(data["arguments"]) if event_type == TOOL_CALL_DELTA else len(data)


def encode_event(event_type: str, data: Any) -> bytes:  # noqa: ANN401 -- JSON
    """Return one event's wire form; raises InvalidAgentOutput if it is not JSON or too large."""
    item = data if event_type is TEXT else (event_type, data)
    try:
        try:
            # A copy: orjson's own bytes hold room for 4 KB, and many tokens may wait while the broker is away.
            encoded = b"%b" % orjson.dumps(item)
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


def event_of(attempt: int, seq: int, item: Any) -> Event:  # noqa: ANN401 -- JSON
    """Return an item of a batch as an event; raises BusError if it is none."""
    if item.__class__ is str:
        return Event(attempt, seq, TEXT, item)
    if item.__class__ is list and len(item) > 1 and item[0].__class__ is str:
        return Event(attempt, seq, item[0], item[1])
    message = f"not an event: {item!r:.80} ({attempt}-{seq})"
    raise BusError(message)


def decode_batch(payload: bytes) -> Batch:
    """Return a message's batch; raises BusError if it is not one of ours. Its items are looked at by ``event_of``."""
    try:
        fields = orjson.loads(payload)
        attempt, seq, items = fields["a"], fields["s"], fields["e"]
        if not (attempt.__class__ is seq.__class__ is int and items.__class__ is list):
            raise TypeError  # noqa: TRY301 -- one way out for all that is foreign
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        message = f"not an event batch: {payload[:80]!r}"
        raise BusError(message) from exc
    return _new(Batch, (attempt, seq, items))  # Batch(...) takes twice as long, and one is made per message
