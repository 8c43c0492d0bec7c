"""The stream machine of the Responses API: it turns a run's events into typed events with sequence numbers.

It has no I/O and is deterministic, like the chat machine (``stream.chat``). A stream is resumed by folding the
replay log from its start and leaving out the events that the client has. Sequence numbers have no gaps; each is also
the ``id:`` of its frame. Agent events are numbered too, so a client that resumes must ask for them as before. Frames
that are not in the log (``empty_chunk``, the error of a lost stream) repeat the last number. So a client that resumes
after such a frame misses nothing.

A run that was parked has several responses (``response_segments``). The stream of one of them begins with number 0, and
its end does not depend on whether the run has gone on.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from agentstream.errors import BusError, InvalidRequest, error_body, failure_text, failure_type
from agentstream.protocol.events import INTERRUPT, RUN_COMPLETED, TERMINAL_EVENTS, Batch, Event, event_of
from agentstream.protocol.requested_events import RequestedEvents, is_sent
from agentstream.stream import sse
from agentstream.stream.chat import StreamHead, public_data
from agentstream.stream.response_output import (
    TEXT_DELTA,
    OutputItem,
    ResponseOutput,
    closing_events,
    incomplete_reason,
    parked_events,
    response_body,
    response_parts,
)
from agentstream.stream.response_segments import SegmentTracker, without_separator
from agentstream.stream.transcript import CustomEvent, Failure, Finish, NamedEvent, Parked, Part, Transcript

# The last events repeat the whole answer, so a stream holds it in memory. An answer that is not streamed has the
# same limit.
MAX_OUTPUT_CHARACTERS: Final = 16 << 20
_NUMBER: Final = "sequence_number"


class ResponseStream:
    """Renders a run as the typed events of a response for one client."""

    __slots__ = (
        "_after",
        "_agent_events",
        "_characters",
        "_delta",
        "_echo",
        "_event_types",
        "_head",
        "_interrupt_text",
        "_last_number",
        "_next",
        "_output",
        "_segment",
        "_templated",
        "_tracker",
        "_transcript",
        "completed",
        "parked",
        "tail",
        "text_count",
    )

    def __init__(  # noqa: PLR0913 -- the run, and how to show it
        self,
        head: StreamHead,
        echo: dict[str, Any],
        *,
        agent_events: bool,
        event_types: RequestedEvents = frozenset(),
        after: int | None = None,
        segment: int = 0,
        interrupt_text: bool = True,
    ) -> None:
        """Create a stream. The response repeats the request fields ``echo``; events up to ``after`` are left out.

        With ``agent_events``, ``event_types`` are the types of the agent's own events that are sent, too. ``segment``
        is the number of the response in its run. With ``interrupt_text`` a sentence says what a parked run waits for.
        """
        self._segment = segment
        self._interrupt_text = interrupt_text
        self._tracker = SegmentTracker()
        self._head = head
        self._echo = echo
        self._agent_events = agent_events
        self._event_types = event_types
        self._after = -1 if after is None else after
        self._next = 0  # the next event's number
        self._last_number = 0  # of the events returned so far; a batch that raises an error does not change it
        self._characters = 0
        self._transcript = Transcript()
        self._output = ResponseOutput(head.run_id, echo, segment)
        self._templated: OutputItem | None = None  # the message whose deltas _delta renders
        self._delta: sse.NumberedTemplate | None = None
        self.tail: Iterator[bytes] | None = None
        self.completed = False
        self.parked: Parked | None = None
        self.text_count = 0

    def open(self) -> bytes:
        """Return the events that begin a response. Call this before all other methods."""
        frames = [self._event(f"response.{name}", self._response()) for name in ("created", "in_progress")]
        self._last_number = self._next - 1
        return b"".join(frames)

    def empty_chunk(self) -> bytes:
        """Return response.in_progress again. It resets the per-event timeouts of clients."""
        return self._unnumbered("response.in_progress", self._response())

    def receive(self, batch: Batch) -> bytes:
        """Return the frames of a batch, joined. The frames of the terminal event are in ``tail`` instead.

        Raises BusError if the answer is longer than MAX_OUTPUT_CHARACTERS.
        """
        frames: list[bytes] = []
        attempt, seq, items = batch
        transcript, output = self._transcript, self._output
        for item in items:
            output_item = output.open_item
            if (
                item.__class__ is str
                and transcript.in_text
                and output_item is not None
                and output_item is self._templated
            ):
                output_item.texts.append(item)
                frames.append(self._text_delta(output_item, item))
            else:
                event = event_of(attempt, seq, item)
                if event.type in TERMINAL_EVENTS:
                    self.tail = self._end(event)
                    self.completed = event.type == RUN_COMPLETED
                    break
                made = [frame for part in self._own_parts(event) for frame in self._frames(part)]
                if self.tail is not None:
                    break
                frames += made
                self.text_count -= len(made) - made.count(b"")  # added again below; _frames has counted the texts
            seq += 1
        self.text_count += len(frames) - frames.count(b"")  # one addition for all texts of the first branch
        self._last_number = self._next - 1
        return b"".join(frames)

    def fail(self, code: str, message: str) -> None:
        """End the stream with a failure that is not in the replay log; its frame is in ``tail``."""
        self.tail = iter((self._error(failure_text(code, message), failure_type(code), code),))

    def park(self) -> None:
        """Do nothing: ``receive`` ends the response where the run is parked, also if the run has gone on."""

    def _own_parts(self, event: Event) -> Sequence[Part]:
        """Return the parts of an event that belong to this response. The event that parks the run sets ``tail``."""
        parts = tuple(self._transcript.receive(event))
        self._tracker.receive(event, parts)
        if self._tracker.number != self._segment:
            return ()
        if parts and isinstance(parts[0], Parked):
            self.tail = self._wait(parts[0])
            return ()
        return without_separator(parts) if self._segment and self._output.empty else parts

    def _wait(self, part: Parked) -> Iterator[bytes]:
        for name, fields in parked_events(self._output, part, interrupt_text=self._interrupt_text):
            yield self._event(name, fields)
        yield from self._close(Finish("stop", self._tracker.own_usage(part.usage)), part)

    def _finish(self, part: Finish | Failure) -> Iterator[bytes]:
        for name, fields in closing_events(self._output, part):
            yield self._event(name, fields)
        if isinstance(part, Finish):
            part = part._replace(usage=self._tracker.own_usage(part.usage))
        yield from self._close(part)

    def _close(self, part: Finish | Failure, waits_for: Parked | None = None) -> Iterator[bytes]:
        yield self._event(_last_event(part), self._response(part, waits_for))
        if self._after >= self._next:
            message = f"the response ends at {_NUMBER} {self._next - 1}; there is nothing after {self._after}"
            yield self._error(message, InvalidRequest.error_type, InvalidRequest.code)

    def _end(self, event: Event) -> Iterator[bytes]:
        for part in response_parts(self._transcript, event):
            if isinstance(part, Finish | Failure):
                yield from self._finish(part)
            else:
                yield from self._frames(part)

    def _frames(self, part: Part) -> Iterator[bytes]:
        if isinstance(part, NamedEvent | CustomEvent):
            if self._agent_events and (isinstance(part, NamedEvent) or is_sent(part.name, self._event_types)):
                yield self._event(f"agentstream.{part.name}", {"data": public_data(part)})
            if part.name != INTERRUPT:
                return
        for name, fields in self._output.receive(part):
            if name == TEXT_DELTA and (output_item := self._output.open_item) is not None:
                delta = self._text_delta(output_item, fields["delta"])
                self.text_count += delta != b""
                yield delta
            else:
                yield self._event(name, fields)

    def _text_delta(self, output_item: OutputItem, text: str) -> bytes:
        self._characters += len(text)
        if self._characters > MAX_OUTPUT_CHARACTERS:
            message = f"the answer exceeds {MAX_OUTPUT_CHARACTERS} characters; ask for it as a chat completion stream"
            raise BusError(message)
        number = self._next
        self._next = number + 1
        if number <= self._after:
            return b""
        if output_item is not self._templated or self._delta is None:
            fields = {"type": TEXT_DELTA, **output_item.location, "logprobs": [], "delta": ""}
            self._delta = sse.NumberedTemplate(TEXT_DELTA, sse.json_line(fields).removesuffix(b'""}'), _NUMBER)
            self._templated = output_item
        return self._delta.render(text, number)

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        number = self._next
        self._next = number + 1
        if number <= self._after:
            return b""
        return sse.frame(sse.json_line({"type": name, **fields, _NUMBER: number}), event=name, event_id=str(number))

    def _error(self, message: str, error_type: str, code: str) -> bytes:
        """Return the error event in both of OpenAI's forms: OpenAI's SDKs raise only for the field ``error``."""
        fields = {"code": code, "message": message, "param": None, **error_body(message, error_type, code=code)}
        return self._unnumbered("error", fields)

    def _unnumbered(self, name: str, fields: dict[str, Any]) -> bytes:
        return sse.frame(
            sse.json_line({"type": name, **fields, _NUMBER: max(self._after, self._last_number)}), event=name
        )

    def _response(self, end: Finish | Failure | None = None, waits_for: Parked | None = None) -> dict[str, Any]:
        output = [] if end is None else self._output.items
        body = response_body(self._head, self._echo, output, end=end, segment=self._segment, waits_for=waits_for)
        return {"response": body}


def _last_event(end: Finish | Failure) -> str:
    if isinstance(end, Failure):
        return "response.failed"
    return "response.completed" if incomplete_reason(end) is None else "response.incomplete"
