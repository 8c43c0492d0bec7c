"""The stream machine of chat completions: it turns a run's events into SSE frames.

It has no I/O and no clock, and makes no random ids. The same replay log gives the same frames, byte for byte, on
every front end. So a stream is resumed in a simple way: fold the log from its start, and leave out the frames up to
the cursor.

The cursor of the role chunk is ``0-0``. If an event makes one frame, its cursor is ``attempt-seq``. If it makes
several, their cursors are ``attempt-seq.1``, ``.2`` and so on; the terminal event always has this form. A part has the
same number in every event format, even if a format does not send it. So a client may resume in another format.
``[DONE]`` has no id: a client that received the final chunk and resumes gets ``[DONE]``.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

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
from agentstream.protocol.requested_events import RequestedEvents, is_sent
from agentstream.stream import sse
from agentstream.stream.transcript import (
    TURN_SEPARATOR,
    CustomEvent,
    Failure,
    Finish,
    NamedEvent,
    Parked,
    Part,
    Reasoning,
    Text,
    ToolCallDelta,
    Transcript,
)

EventFormat = Literal["named", "raw", "chunk", "off"]
DONE = sse.frame(b"[DONE]")
REQUIRES_ACTION: Final = "requires_action"  # the status of a parked run

# Event fields that are renamed in the format ``named``, because clients read them as fields of the chunk. LangChain
# and pydantic-ai add up every top-level "usage"; a top-level "error" ends SDK streams. A string "model" stays.
_CHUNK_ONLY_FIELDS = frozenset({"id", "object", "created", "choices", "usage", "error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHead:
    """The fields that every chunk of a run repeats. ``created`` is Unix time in whole seconds."""

    run_id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """The options that a client chose for its stream.

    ``event_format`` is one of ``named`` (an ``event:`` line; the event's fields beside those of an empty chunk),
    ``raw`` (an ``event:`` line; the event's fields only, as in the original bridge), ``chunk`` (no ``event:`` line;
    the event under the key ``agent_event``) and ``off`` (no agent events). ``event_types`` are the types of the agent's
    own events that the client asked for. ``interrupt_text`` adds a sentence that says what a parked run waits for.
    """

    event_format: EventFormat = "named"
    event_types: RequestedEvents = frozenset()
    include_usage: bool = False
    strict_errors: bool = False
    interrupt_text: bool = True


class StreamMachine(Protocol):
    """Turns a run's events into the frames of one client. Call ``receive`` until ``tail`` is set."""

    tail: Iterator[bytes] | None  # yields the last frames one by one; set by the terminal event, ``fail`` or ``park``
    parked: Parked | None  # set while the last event says that the run waits for people
    completed: bool  # whether the terminal event is run_completed
    text_count: int  # pieces of answer text in the frames so far

    def open(self) -> bytes:
        """Return the first frames of the stream. Call this before all other methods."""
        ...

    def receive(self, batch: Batch) -> bytes:
        """Return the frames of a batch, joined. The frames of the terminal event are in ``tail`` instead."""
        ...

    def fail(self, code: str, message: str) -> None:
        """End the stream with a failure that is not in the replay log; its frames are in ``tail``."""

    def park(self) -> None:
        """End the stream, because the run is ``parked``; its frames are in ``tail``. They are not in the replay log."""

    def empty_chunk(self) -> bytes:
        """Return a frame without new content and without a position of its own."""
        ...


class ChatStream:
    """Renders a run as ``chat.completion.chunk`` frames for one client."""

    __slots__ = (
        "_after",
        "_head",
        "_options",
        "_reasoning",
        "_text",
        "_transcript",
        "completed",
        "parked",
        "tail",
        "text_count",
    )

    def __init__(self, head: StreamHead, options: StreamOptions, after: Cursor | None = None) -> None:
        """Create a stream with these options. With ``after``, leave out every frame up to and including that cursor."""
        self._head = head
        self._options = options
        self._after = after  # set to None by the first frame after it
        self.tail: Iterator[bytes] | None = None
        self.completed = False
        self.parked: Parked | None = None
        self.text_count = 0
        self._transcript = Transcript()
        self._text: sse.TextTemplate | None = None  # created with the first text, which may come late
        self._reasoning: sse.TextTemplate | None = None

    def open(self) -> bytes:
        """Return the role chunk; nothing if the stream is resumed. Call this before all other methods."""
        if self._after is not None:
            return b""
        return sse.frame(sse.json_line(self._chunk([self._choice({"role": "assistant"})])), event_id=str(START))

    def empty_chunk(self) -> bytes:
        """Return a chunk with an empty delta and no position. It resets the per-chunk timeouts of clients."""
        return sse.frame(sse.json_line(self._chunk([self._choice({})])))

    def receive(self, batch: Batch) -> bytes:
        """Return the frames of a batch, joined. The frames of the terminal event are in ``tail`` instead.

        ``tail`` creates each frame only when the caller asks for it; ``[DONE]`` is the last frame. Raises BusError
        for an item that is not an event, and for an event after the terminal event.
        """
        attempt, seq, items = batch
        transcript, text = self._transcript, self._text
        # The most common batch is one text. If the template exists, a text was sent, and so no frame is left out.
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
                if parts and isinstance(parts[0], Parked):
                    self.parked = parts[0]
                    break
                self.parked = None
                frames += (made := list(self._frames(event, parts, numbered=len(parts) > 1)))
                self.text_count -= len(made)  # added again below; _frames has counted the texts among them
            seq += 1
        self.text_count += len(frames)  # one addition for all texts of the first branch
        return b"".join(frames)

    def fail(self, code: str, message: str) -> None:
        """End the stream with a failure that is not in the replay log. The frames in ``tail`` have no position."""
        self.tail = self._give_up(code, message)

    def park(self) -> None:
        """End the stream, because the run is ``parked``; its frames are in ``tail``. They have no position."""
        if self.parked is not None:
            self.tail = self._wait(self.parked)

    def _wait(self, part: Parked) -> Iterator[bytes]:
        if self._options.interrupt_text:
            for text in waiting_text(part, text_sent=self._transcript.text_sent):
                yield self._text_template().render(text, None)
        final = self._chunk([self._choice({}, "stop")])
        final |= {"status": REQUIRES_ACTION, "interrupts": [asked.as_json() for asked in part.interrupts]}
        if not self._options.include_usage:
            final["usage"] = part.usage
        yield sse.frame(sse.json_line(final))
        if self._options.include_usage:
            yield sse.frame(sse.json_line(self._chunk([]) | {"usage": part.usage}))
        yield DONE

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
        position = f"{event.attempt}-{event.seq}"
        for number, part in enumerate(parts, 1):
            if part.__class__ is Text and self._after is None:  # an answer that was not streamed has one for each word
                self.text_count += 1
                yield self._text_template().render(part.text, f"{position}.{number}" if numbered else position)
            else:
                yield from self._frames_of(part, Cursor(event.attempt, event.seq, number if numbered else 0))

    def _frames_of(self, part: Part, cursor: Cursor) -> Iterator[bytes]:
        if isinstance(part, Finish):
            yield from self._finish(part, cursor)
        elif self._is_new(cursor):
            if isinstance(part, Text):
                self.text_count += 1
                yield self._text_template().render(part.text, str(cursor))
            elif isinstance(part, NamedEvent | CustomEvent):
                if isinstance(part, NamedEvent) or is_sent(part.name, self._options.event_types):
                    yield from self._named(part, cursor)
            elif isinstance(part, Reasoning):
                yield self._reasoning_chunk(part.text, str(cursor))
            elif isinstance(part, ToolCallDelta):
                yield self._tool_call_delta(part, cursor)
            elif isinstance(part, Failure):
                yield self._failure(part, cursor)

    def _text_template(self) -> sse.TextTemplate:
        if self._text is None:
            self._text = self._template("content")
        return self._text

    def _template(self, field: str) -> sse.TextTemplate:
        """Return the template of chunks whose delta has only this field."""
        before, after = sse.json_line(self._chunk([self._choice({field: ""})])).rsplit(b'""', 1)
        return sse.TextTemplate(before, after)

    def _reasoning_chunk(self, text: str, event_id: str) -> bytes:
        if self._reasoning is None:
            self._reasoning = self._template("reasoning_content")
        return self._reasoning.render(text, event_id)

    def _is_new(self, cursor: Cursor) -> bool:
        """Return whether a frame comes after the cursor ``after``. All frames after the first new frame are new."""
        if self._after is not None and cursor > self._after:
            self._after = None
        return self._after is None

    def _finish(self, part: Finish, cursor: Cursor) -> Iterator[bytes]:
        """Yield the final chunk with usage; with ``include_usage``, the final chunk and then a chunk of usage alone."""
        if part.cancelled and self._strict:
            if self._is_new(cursor):
                yield self._failure(Failure(CANCELLED, CANCELLED_MESSAGE), cursor)
            return
        final = self._chunk([self._choice({}, part.reason)])
        if part.cancelled:
            final["agent_error"] = _agent_error(CANCELLED, CANCELLED_MESSAGE)
        _add_unapplied(final, part)
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
        """Whether a failure is sent as an error object: the client asked for it, or a call of its tools has begun.

        Clients run all calls that they hold when a stream ends. An error object makes them raise instead.
        """
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
            body: dict[str, Any] = error_body(text, failure_type(part.code, part.status), code=part.code)
        else:
            body = self._chunk([self._choice({"content": text}, "stop")])
            body["agent_error"] = _agent_error(part.code, part.message, part.status)
            _add_unapplied(body, part)
        return sse.frame(sse.json_line(body), event_id=str(cursor) if cursor else None)

    def _named(self, part: NamedEvent | CustomEvent, cursor: Cursor) -> Iterator[bytes]:
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
        """Return the event's fields beside those of an empty chunk, so that stock clients parse it as a chunk."""
        flat: dict[str, Any] = {}
        for key, value in data.items():
            reserved = key in _CHUNK_ONLY_FIELDS or (key == "model" and not isinstance(value, str))
            flat[f"event_{key}" if reserved else key] = value
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


def _add_unapplied(chunk: dict[str, Any], part: Finish | Failure) -> None:
    """Add the ids of the messages for the run that its agent has not taken, if there are any."""
    if part.unapplied_inputs:
        chunk["unapplied_inputs"] = list(part.unapplied_inputs)


def waiting_text(part: Parked, *, text_sent: bool) -> Iterator[str]:
    """Yield the pieces of text that say what a parked run waits for, for clients that know nothing of interrupts."""
    for number, asked in enumerate(part.interrupts):
        if text_sent or number:
            yield TURN_SEPARATOR
        yield asked.sentence


def public_data(part: NamedEvent | CustomEvent) -> dict[str, Any]:
    """Return the fields of an agent event as clients get them: the arguments of a tool are JSON text."""
    data = part.data
    if part.name == TOOL_CALL_START and not isinstance(data.get("arguments"), str):
        return {**data, "arguments": json.dumps(data.get("arguments", {}))}
    return data


def _agent_error(code: str, message: str, status: int | None = None) -> dict[str, str]:
    return {"type": failure_type(code, status), "code": code, "message": message}
