"""The stream machine of the Responses API: a run's events in, typed events with contiguous sequence numbers out.

Sans-I/O and deterministic as the chat's (``stream.chat``): resuming is folding the log from its start and leaving
out what the client has. The number is also the frame's ``id:``. Agent events count, so who resumes asks for them as
before. What the log does not know (``empty_chunk``, a lost stream's error) repeats the last number: whoever resumes
behind that misses nothing.
"""

from collections.abc import Iterator
from typing import Any, Final

from agentstream.errors import BusError, InvalidRequest, error_body, failure_text, failure_type
from agentstream.protocol.events import RUN_COMPLETED, TERMINAL, Batch, Event, event_of
from agentstream.stream import sse
from agentstream.stream.chat import StreamHead, shown_data
from agentstream.stream.response_output import (
    TEXT_DELTA,
    Piece,
    ResponseOutput,
    end_of_output,
    incomplete_reason,
    parts_of,
    response_body,
)
from agentstream.stream.transcript import Failure, Finish, Named, Part, Transcript

# The last events repeat the whole answer, so a stream holds it in memory, as an answer that is not streamed does.
MAX_OUTPUT_CHARACTERS: Final = 16 << 20
_NUMBER: Final = "sequence_number"


class ResponseStream:
    """One client's view of one run, as the events of a response."""

    __slots__ = (
        "_after",
        "_agent_events",
        "_characters",
        "_delta",
        "_echo",
        "_head",
        "_next",
        "_output",
        "_templated",
        "_told",
        "_transcript",
        "completed",
        "tail",
        "texts",
    )

    def __init__(self, head: StreamHead, echo: dict[str, Any], *, agent_events: bool, after: int | None = None) -> None:
        """Render a response that repeats ``echo`` of its request; leave out what is numbered up to ``after``."""
        self._head = head
        self._echo = echo
        self._agent_events = agent_events
        self._after = -1 if after is None else after
        self._next = 0  # the next event's number
        self._told = 0  # the last number handed out: a batch that cannot be read is not, though its beginning counted
        self._characters = 0
        self._transcript = Transcript()
        self._output = ResponseOutput(head.run_id)
        self._templated: Piece | None = None  # the message whose deltas _delta renders
        self._delta: sse.NumberedTemplate | None = None
        self.tail: Iterator[bytes] | None = None
        self.completed = False
        self.texts = 0  # pieces of answer text that frames have held

    def open(self) -> bytes:
        """Return the events a response begins with, before anything has happened."""
        frames = [self._event(f"response.{name}", self._response()) for name in ("created", "in_progress")]
        self._told = self._next - 1
        return b"".join(frames)

    def empty_chunk(self) -> bytes:
        """Return response.in_progress once more: resets clients' per-event timeouts."""
        return self._unnumbered("response.in_progress", self._response())

    def receive(self, batch: Batch) -> bytes:
        """Return the frames of a batch's events, joined, up to the terminal one, whose are in ``tail`` then.

        Raises BusError for an answer that is too long.
        """
        frames: list[bytes] = []
        attempt, seq, items = batch
        transcript, output = self._transcript, self._output
        for item in items:
            piece = output.open
            if item.__class__ is str and transcript.in_text and piece is not None and piece is self._templated:
                piece.texts.append(item)
                frames.append(self._text_delta(piece, item))
            else:
                event = event_of(attempt, seq, item)
                if event.type in TERMINAL:
                    self.tail = self._end(event)
                    self.completed = event.type == RUN_COMPLETED
                    break
                made = [frame for part in transcript.receive(event) for frame in self._frames(part)]
                frames += made
                self.texts -= len(made) - made.count(b"")  # has counted the text among them itself
            seq += 1
        self.texts += len(frames) - frames.count(b"")  # at once: most are made in the first branch, one by one
        self._told = self._next - 1
        return b"".join(frames)

    def fail(self, code: str, message: str) -> None:
        """End the stream for a reason the log does not know."""
        self.tail = iter((self._error(failure_text(code, message), failure_type(code), code),))

    def _end(self, event: Event) -> Iterator[bytes]:
        for part in parts_of(self._transcript, event):
            if isinstance(part, Finish | Failure):
                for name, fields in end_of_output(self._output, part):
                    yield self._event(name, fields)
                yield self._event(_last_event(part), self._response(part))
            else:
                yield from self._frames(part)
        if self._after >= self._next:
            message = f"the response ends at {_NUMBER} {self._next - 1}; there is nothing after {self._after}"
            yield self._error(message, InvalidRequest.error_type, InvalidRequest.code)

    def _frames(self, part: Part) -> Iterator[bytes]:
        if isinstance(part, Named):
            if self._agent_events:
                yield self._event(f"agentstream.{part.name}", {"data": shown_data(part)})
            return
        for name, fields in self._output.take(part):
            if name == TEXT_DELTA and (piece := self._output.open) is not None:
                delta = self._text_delta(piece, fields["delta"])
                self.texts += delta != b""
                yield delta
            else:
                yield self._event(name, fields)

    def _text_delta(self, piece: Piece, text: str) -> bytes:
        self._characters += len(text)
        if self._characters > MAX_OUTPUT_CHARACTERS:
            message = f"the answer exceeds {MAX_OUTPUT_CHARACTERS} characters; ask for it as a chat completion stream"
            raise BusError(message)
        number = self._next
        self._next = number + 1
        if number <= self._after:
            return b""
        if piece is not self._templated or self._delta is None:
            fields = {"type": TEXT_DELTA, **piece.place, "logprobs": [], "delta": ""}
            self._delta = sse.NumberedTemplate(TEXT_DELTA, sse.json_line(fields).removesuffix(b'""}'), _NUMBER)
            self._templated = piece
        return self._delta.render(text, number)

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        number = self._next
        self._next = number + 1
        if number <= self._after:
            return b""
        return sse.frame(sse.json_line({"type": name, **fields, _NUMBER: number}), event=name, event_id=str(number))

    def _error(self, message: str, error_type: str, code: str) -> bytes:
        """Return the error event in both its forms: openai's SDKs raise for the field ``error`` only."""
        fields = {"code": code, "message": message, "param": None, **error_body(message, error_type, code=code)}
        return self._unnumbered("error", fields)

    def _unnumbered(self, name: str, fields: dict[str, Any]) -> bytes:
        return sse.frame(sse.json_line({"type": name, **fields, _NUMBER: max(self._after, self._told)}), event=name)

    def _response(self, end: Finish | Failure | None = None) -> dict[str, Any]:
        output = [] if end is None else self._output.items
        return {"response": response_body(self._head, self._echo, output, end=end)}


def _last_event(end: Finish | Failure) -> str:
    if isinstance(end, Failure):
        return "response.failed"
    return "response.completed" if incomplete_reason(end) is None else "response.incomplete"
