"""The events of a run, their positions, and the batches that carry them.

One pub/sub message and one entry of the replay log each hold one batch, as JSON::

    {"v":1, "a":<attempt>, "s":<seq of the first event>, "e":[<event>, ...]}

An event is a string or ``[type, data]``. A string is streamed text, the most common event; it costs 3 bytes
more than the text. Readers ignore unknown keys and types, so that newer writers can add some.
"""

import re
from typing import Any, Final, NamedTuple, Self

import orjson

from agentstream.errors import BusError, InvalidAgentOutput
from agentstream.protocol.plain_json import json_bytes

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
RUN_CHECKPOINT: Final = "run_checkpoint"
RUN_HANDED_OVER: Final = "run_handed_over"
RUN_PARKED: Final = "run_parked"
RUN_RESUMED: Final = "run_resumed"
INTERRUPT: Final = "interrupt"
INPUT_APPLIED: Final = "input_applied"

# Clients receive these events under the same names, in the order in which the agent emitted them. The names are
# those of the original bridge.
NAMED_EVENTS: Final = frozenset(
    {"agent_turn_start", "inference_start", "inference_end", TOOL_CALL_START, TOOL_CALL_END},
)
# Only clients that ask for these events receive them: a sub-agent's text and reasoning, a handoff between agents of a
# framework, the end of the built-in agent's turn, and a tool call that has started and waits for people.
AGENT_TEXT: Final = "agent_text"
AGENT_REASONING: Final = "agent_reasoning"
AGENT_HANDOFF: Final = "agent_handoff"
AGENT_TURN_END: Final = "agent_turn_end"
TOOL_CALL_WAITING: Final = "tool_call_waiting"
OPTIONAL_EVENTS: Final = frozenset({AGENT_TEXT, AGENT_REASONING, AGENT_HANDOFF, AGENT_TURN_END, TOOL_CALL_WAITING})
# No client receives these events: notes of the built-in agent for an attempt that continues the run.
HIDDEN_EVENTS: Final = frozenset({"inference_echo"})
AGENT_PATH: Final = "agent_path"  # the field with the names of the sub-agents, in every event of a sub-agent
# Clients show these events under the name of their tool.
TOOL_EVENTS: Final = frozenset({TOOL_CALL_START, TOOL_CALL_END})
TERMINAL_EVENTS: Final = frozenset({RUN_COMPLETED, RUN_FAILED, RUN_CANCELLED})
# Events whose content the client keeps. After one of them, only a resumable agent is called again (PROTOCOL.md, 4.6).
WRITTEN_EVENTS: Final = frozenset({TEXT, REASONING, TOOL_CALL_DELTA})
# The pieces of streamed text. Many follow each other, so one may wait a few milliseconds for others.
STREAMED_EVENTS: Final = WRITTEN_EVENTS | {AGENT_TEXT, AGENT_REASONING}
# Only agentstream emits these events; ``emit`` refuses them.
RESERVED_EVENTS: Final = (
    frozenset({RUN_STARTED, RUN_CHECKPOINT, RUN_HANDED_OVER, RUN_PARKED, RUN_RESUMED})
    | {INTERRUPT, INPUT_APPLIED, TOOL_RESULTS}
    | WRITTEN_EVENTS
    | TERMINAL_EVENTS
)
# The agent does not go on until such an event is stored.
STORED_FIRST: Final = frozenset({TOOL_CALL_START, RUN_CHECKPOINT, INTERRUPT, RUN_PARKED, INPUT_APPLIED})
# Such an event is the last one of its batch. Fields of the run's hash are stored with it.
WITH_FIELDS: Final = frozenset({RUN_CHECKPOINT, INTERRUPT, RUN_PARKED, INPUT_APPLIED})

# Limit for one encoded event. An SSE line of 300 KB was harmless (measured). More than 1 MiB belongs in a file.
MAX_EVENT_BYTES: Final = 1 << 20

EVENT_TYPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
CURSOR: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,15})(?:\.([0-9]{1,9}))?")


class Event(NamedTuple):
    """One event of a run.

    ``seq`` counts 1, 2, 3 ... within ``attempt``. ``data`` is the text of a ``text`` or ``reasoning`` event, and
    a JSON object for all other types. Events are tuples, not dataclasses, because one may be created for each token.
    """

    attempt: int
    seq: int
    type: str
    data: Any


class Batch(NamedTuple):
    """Consecutive events of one attempt, as one message or one entry of the replay log carries them.

    ``items`` are in wire form: a string for text, the most common event, or ``[type, data]``. The stream needs
    only the string of a text, so no ``Event`` is created for it. ``seq`` is the seq of the first item.
    """

    attempt: int
    seq: int
    items: list[Any]

    @property
    def last_seq(self) -> int:
        """The seq of the last event."""
        return self.seq + len(self.items) - 1

    def since(self, seq: int) -> Self:
        """Return the part of the batch from ``seq`` on. ``seq`` must be inside the batch."""
        return self if seq == self.seq else self._replace(seq=seq, items=self.items[seq - self.seq :])

    def events(self) -> list[Event]:
        """Return the events; raises BusError if an item is not an event."""
        return [event_of(self.attempt, seq, item) for seq, item in enumerate(self.items, self.seq)]


class Cursor(NamedTuple):
    """A position in a stream: ``attempt-seq``, or ``attempt-seq.part`` where one event makes several frames."""

    attempt: int
    seq: int
    part: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``"2-17"`` or ``"2-17.3"``; raises ValueError for any other text."""
        match = CURSOR.fullmatch(text)
        if match is None:
            message = f"not a cursor: {text[:40]!r} (expected 'attempt-seq' or 'attempt-seq.part')"
            raise ValueError(message)
        return cls(int(match[1]), int(match[2]), int(match[3] or 0))

    def __str__(self) -> str:
        """Return the form that SSE ``id:`` lines use."""
        return f"{self.attempt}-{self.seq}.{self.part}" if self.part else f"{self.attempt}-{self.seq}"


START: Final = Cursor(0, 0)
_new: Final = tuple.__new__


def check_agent_event(event_type: object, data: object) -> None:
    """Raise InvalidAgentOutput for an event that agents may not emit.

    Its type is reserved or malformed, its data is not a dict, or it is an event of a tool call that names no tool.
    """
    if not isinstance(event_type, str) or EVENT_TYPE.fullmatch(event_type) is None:
        message = f"event type {event_type!r} is not valid: use a letter, then up to 63 letters, digits or _ . : -"
        raise InvalidAgentOutput(message)
    if event_type in RESERVED_EVENTS:
        message = f"event type {event_type!r} belongs to agentstream; choose another name"
        raise InvalidAgentOutput(message)
    if not isinstance(data, dict):
        message = f"event {event_type!r} needs a dict as data, got {type(data).__name__}"
        raise InvalidAgentOutput(message)
    if event_type in TOOL_EVENTS and not (isinstance(tool := data.get("tool"), str) and tool):
        got = f"got {tool!r:.80}" if "tool" in data else "the field is missing"
        message = f"event {event_type!r} needs the name of the tool as text in its field 'tool'; {got}"
        raise InvalidAgentOutput(message)


def written_characters(event_type: str, data: Any) -> int:  # noqa: ANN401 -- JSON
    """Return how many characters an event of ``WRITTEN_EVENTS`` holds: its text, or the call's name and arguments."""
    return len(data.get("name") or "") + len(data["arguments"]) if event_type == TOOL_CALL_DELTA else len(data)


def encode_event(event_type: str, data: Any) -> bytes:  # noqa: ANN401 -- JSON
    """Return the wire form of one event; raises InvalidAgentOutput if it is too large or cannot be written as JSON."""
    item = data if event_type is TEXT else (event_type, data)
    try:
        # Copied, because orjson's result occupies at least 4 KB. Many tokens wait while Redis is unreachable.
        encoded = b"%b" % orjson.dumps(item)
    except TypeError:
        encoded = _encode_rare(event_type, item)
    if len(encoded) > MAX_EVENT_BYTES:
        message = f"event {event_type!r} is {len(encoded)} bytes; the limit is {MAX_EVENT_BYTES}"
        raise InvalidAgentOutput(message)
    return encoded


def encode_text(text: str) -> bytes:
    """Return the wire form of a text that ``encode_event`` would accept. Do not keep it: it occupies at least 4 KB."""
    return orjson.dumps(text)


def _encode_rare(event_type: str, item: Any) -> bytes:  # noqa: ANN401 -- JSON
    """Return the wire form of an item with values that JSON lacks, or with surrogates."""
    try:
        return json_bytes(item)
    except Exception as exc:  # a class of the agent's may raise anything when its fields are read
        message = f"event {event_type!r} cannot be written as JSON: {exc}"
        raise InvalidAgentOutput(message) from exc


def encode_batch(attempt: int, first_seq: int, encoded_events: list[bytes]) -> bytes:
    """Return the wire form of a batch. ``first_seq`` is the seq of the first event."""
    return b'{"v":1,"a":%d,"s":%d,"e":[%b]}' % (attempt, first_seq, b",".join(encoded_events))


def event_of(attempt: int, seq: int, item: Any) -> Event:  # noqa: ANN401 -- JSON
    """Return an item of a batch as an event; raises BusError if it is not an event."""
    if item.__class__ is str:
        return Event(attempt, seq, TEXT, item)
    if item.__class__ is list and len(item) > 1 and item[0].__class__ is str:
        return Event(attempt, seq, item[0], item[1])
    message = f"not an event: {item!r:.80} ({attempt}-{seq})"
    raise BusError(message)


def decode_batch(payload: bytes) -> Batch:
    """Return the batch of a message; raises BusError if it is not a batch. Only ``event_of`` checks the items."""
    try:
        fields = orjson.loads(payload)
        attempt, seq, items = fields["a"], fields["s"], fields["e"]
        if not (attempt.__class__ is seq.__class__ is int and items.__class__ is list):
            raise TypeError  # noqa: TRY301 -- the handler below covers every malformed payload
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        message = f"not an event batch: {payload[:80]!r}"
        raise BusError(message) from exc
    return _new(Batch, (attempt, seq, items))  # runs for each message; Batch(...) takes twice as long
