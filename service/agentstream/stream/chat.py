"""The stream machine: a run's events in, SSE frames out.

No I/O, no clock, no ids of its own: the same log gives the same frames, byte for byte, on any front end.
That is what makes resuming simple: fold the log from its start and leave out the frames up to a cursor.

Positions: the role chunk is ``0-0``; the only frame of an event is ``attempt-seq``; where an event may
make several, and always for the terminal event, they are ``attempt-seq.1``, ``.2`` ... A part keeps its
number in every format, sent or not, so a client may resume in another format. ``[DONE]`` has no id: a
client that saw the final chunk and resumes gets ``[DONE]``.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agentstream.errors import CANCELLED, CANCELLED_MESSAGE, error_body, failure_text, failure_type
from agentstream.protocol.events import (
    RUN_COMPLETED,
    START,
    TERMINAL_EVENTS,
    TOOL_CALL_START,
    Batch,
    Cursor,
    Event,
    event_of,
)
from agentstream.stream import sse
from agentstream.stream.transcript import Failure, Finish, NamedEvent, Part, Reasoning, Text, ToolCallDelta, Transcript

EventFormat = Literal["named", "raw", "chunk", "off"]
DONE = sse.frame(b"[DONE]")

# Fields an event's flat data may not set: clients read them as the chunk's own. LangChain and pydantic-ai
# add up every top-level "usage"; a top-level "error" kills SDK streams. "model" stays, if it is a string.
_CHUNK_ONLY_FIELDS = frozenset({"id", "object", "created", "choices", "usage", "error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHead:
    """What every chunk of a run repeats. ``created`` is Unix time in whole seconds."""

    run_id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a client wants its stream.

    ``event_format``: ``named`` (event line, seed fields plus chunk fields), ``raw`` (the seed's exact
    payload), ``chunk`` (no event line, all under ``agent_event``), ``off`` (no agent events).
    """

    event_format: EventFormat = "named"
    include_usage: bool = False
    strict_errors: bool = False


class StreamMachine(Protocol):
    """A run's events in, one client's frames out. The events go in by ``receive`` until there is a ``tail``."""

    tail: Iterator[bytes] | None  # the terminal event's frames, made one by one, once it was received
    completed: bool  # whether that event says so
    text_count: int  # pieces of answer text that its frames have held so far

    def open(self) -> bytes:
        """Return what a stream begins with. Ask before all else."""
        ...

    def receive(self, batch: Batch) -> bytes:
        """Return the frames of a batch's events, joined, up to the terminal one."""
        ...

    def fail(self, code: str, message: str) -> None:
        """End the stream for a reason the log does not know; ``tail`` says so."""

    def empty_chunk(self) -> bytes:
        """Return a frame that says nothing new and has no position of its own."""
        ...


class ChatStream:
    """One client's view of one run."""

    __slots__ = ("_after", "_head", "_options", "_reasoning", "_text", "_transcript", "completed", "tail", "text_count")

    def __init__(self, head: StreamHead, options: StreamOptions, after: Cursor | None = None) -> None:
        """Render for ``options``; with ``after``, leave out every frame up to and including that cursor."""
        self._head = head
        self._options = options
        self._after = after  # None from the first frame behind it on
        self.tail: Iterator[bytes] | None = None  # the terminal event's frames, once it was received
        self.completed = False  # whether that event says so
        self.text_count = 0
        self._transcript = Transcript()
        self._text: sse.TextTemplate | None = None  # made when there is some: a stream may wait for long
        self._reasoning: sse.TextTemplate | None = None

    def open(self) -> bytes:
        """Return the role chunk, the first frame of every stream; nothing for a resumed one. Ask before all else."""
        if self._after is not None:
            return b""
        return sse.frame(sse.json_line(self._chunk([self._choice({"role": "assistant"})])), event_id=str(START))

    def empty_chunk(self) -> bytes:
        """Return a chunk that says nothing and has no position: resets clients' per-chunk timeouts."""
        return sse.frame(sse.json_line(self._chunk([self._choice({})])))

    def receive(self, batch: Batch) -> bytes:
        """Return the frames of a batch's events, joined, up to the terminal one.

        That one's are in ``tail`` then, made one by one as they are asked for, ``[DONE]`` last.
        """
        attempt, seq, items = batch
        transcript, text = self._transcript, self._text
        # What there is most of; a template is there once a frame was sent, and then nothing is left out any more.
        if len(items) == 1 and text is not None and transcript.in_text and items[0].__class__ is str:
            self.text_count += 1
            return text.render_at(items[0], attempt, seq)
        frames: list[bytes] = []
        for item in items:
            if item.__class__ is str and self._after is None and transcript.in_text:
                if text is None:
                    text = self._text_template()
                frames.append(text.render_at(item, attempt, seq))
            else:
                event = event_of(attempt, seq, item)
                if event.type in TERMINAL_EVENTS:
                    self.tail = self._end(event)
                    self.completed = event.type == RUN_COMPLETED
                    break
                parts = tuple(transcript.receive(event))
                frames += (made := list(self._frames(event, parts, numbered=len(parts) > 1)))
                self.text_count -= len(made)  # has counted the text among them itself
            seq += 1
        self.text_count += len(frames)  # at once: most are made in the first branch, one by one
        return b"".join(frames)

    def fail(self, code: str, message: str) -> None:
        """End the stream for a reason the log does not know: ``tail`` has the frames, which have no position."""
        self.tail = self._give_up(code, message)

    def _end(self, event: Event) -> Iterator[bytes]:
        yield from self._frames(event, self._transcript.receive(event), numbered=True)
        yield DONE

    def _give_up(self, code: str, message: str) -> Iterator[bytes]:
        for part in self._transcript.fail(code, message):
            if isinstance(part, Failure):
                yield self._failure(part, None)
            elif isinstance(part, Text):
                yield self._text_template().render(part.text, None)
        yield DONE

    def _frames(self, event: Event, parts: Iterable[Part], *, numbered: bool) -> Iterator[bytes]:
        for number, part in enumerate(parts, 1):
            cursor = Cursor(event.attempt, event.seq, number if numbered else 0)
            if isinstance(part, Finish):
                yield from self._finish(part, cursor)
            elif self._is_new(cursor):
                if isinstance(part, Text):
                    self.text_count += 1
                    yield self._text_template().render(part.text, str(cursor))
                elif isinstance(part, NamedEvent):
                    yield from self._named(part, cursor)
                elif isinstance(part, Reasoning):
                    yield self._reasoning_chunk(part.text, str(cursor))
                elif isinstance(part, ToolCallDelta):
                    yield self._tool_call_delta(part, cursor)
                else:
                    yield self._failure(part, cursor)

    def _text_template(self) -> sse.TextTemplate:
        if self._text is None:
            self._text = self._template("content")
        return self._text

    def _template(self, field: str) -> sse.TextTemplate:
        """Return the chunks whose delta is this one field."""
        before, after = sse.json_line(self._chunk([self._choice({field: ""})])).rsplit(b'""', 1)
        return sse.TextTemplate(before, after)

    def _reasoning_chunk(self, text: str, event_id: str) -> bytes:
        if self._reasoning is None:
            self._reasoning = self._template("reasoning_content")
        return self._reasoning.render(text, event_id)

    def _is_new(self, cursor: Cursor) -> bool:
        """Return whether a frame lies behind where the client was; from the first that does on, all do."""
        if self._after is not None and cursor > self._after:
            self._after = None
        return self._after is None

    def _finish(self, part: Finish, cursor: Cursor) -> Iterator[bytes]:
        """Yield the final chunk with usage, or OpenAI's pair: final chunk, then usage alone. Never both."""
        if part.cancelled and self._strict:
            if self._is_new(cursor):
                yield self._failure(Failure(CANCELLED, CANCELLED_MESSAGE), cursor)
            return
        final = self._chunk([self._choice({}, part.reason)])
        if part.cancelled:
            final["agent_error"] = _agent_error(CANCELLED, CANCELLED_MESSAGE)
        chunks = [(cursor, final)]
        if self._options.include_usage:
            usage_alone = self._chunk([]) | {"usage": part.usage}
            chunks.append((cursor._replace(part=cursor.part + 1), usage_alone))
        else:
            final["usage"] = part.usage
        for position, chunk in chunks:
            if self._is_new(position):
                yield sse.frame(sse.json_line(chunk), event_id=str(position))

    @property
    def _strict(self) -> bool:
        """Whether a failure is a bare error: asked for, or due, as clients run whatever calls they hold at the end."""
        return self._options.strict_errors or self._transcript.calls_begun

    def _tool_call_delta(self, part: ToolCallDelta, cursor: Cursor) -> bytes:
        function = {"arguments": part.arguments}
        call: dict[str, Any] = {"index": part.index, "function": function}
        if part.name is not None:
            call = {"index": part.index, "id": part.id, "type": "function", "function": {"name": part.name, **function}}
        delta = {"tool_calls": [call]}
        return sse.frame(sse.json_line(self._chunk([self._choice(delta)])), event_id=str(cursor))

    def _failure(self, part: Failure, cursor: Cursor | None) -> bytes:
        text = failure_text(part.code, part.message)
        if self._strict:
            body: dict[str, Any] = error_body(text, failure_type(part.code), code=part.code)
        else:
            body = self._chunk([self._choice({"content": text}, "stop")])
            body["agent_error"] = _agent_error(part.code, part.message)
        return sse.frame(sse.json_line(body), event_id=str(cursor) if cursor else None)

    def _named(self, part: NamedEvent, cursor: Cursor) -> Iterator[bytes]:
        event_format = self._options.event_format
        if event_format == "off":
            return
        data = public_data(part)
        name: str | None = part.name
        if event_format == "named":
            data = self._flat(data)
        elif event_format == "chunk":
            renamed = {f"event_{key}" if key == "type" else key: value for key, value in data.items()}
            data = {**self._chunk([self._choice({})]), "agent_event": {"type": name, **renamed}}
            name = None
        yield sse.frame(sse.json_line(data), event=name, event_id=str(cursor))

    def _flat(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the event's fields with the chunk's beside them, so that stock clients parse it as a chunk."""
        flat: dict[str, Any] = {}
        for key, value in data.items():
            own = key in _CHUNK_ONLY_FIELDS or (key == "model" and not isinstance(value, str))
            flat[f"event_{key}" if own else key] = value
        return {**self._chunk([self._choice({})]), **flat}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = self._head
        return {
            "id": head.run_id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "choices": choices,
        }

    def _choice(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def public_data(part: NamedEvent) -> dict[str, Any]:
    """Return an agent event's fields as clients see them: a tool's arguments are JSON text."""
    data = part.data
    if part.name == TOOL_CALL_START and not isinstance(data.get("arguments"), str):
        return {**data, "arguments": json.dumps(data.get("arguments") or {})}
    return data


def _agent_error(code: str, message: str) -> dict[str, str]:
    return {"type": failure_type(code), "code": code, "message": message}
