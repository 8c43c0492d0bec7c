r"""Translates a run's events into the parts of its answer, independent of any wire format.

No I/O, and deterministic: the same events give the same parts. A stream machine renders the parts as
frames (``agentstream.stream.chat``). ``AnswerFold`` collects them for an answer that is not streamed.

The parts of each event (deploy/PROTOCOL.md, "The SSE sequence"):

    ================  =======================  ===========================================================
    event             when                     parts
    ================  =======================  ===========================================================
    run_started       it resumes               none
    run_started       otherwise                none; tool results that were not reported are dropped
    agent's, named    always                   NamedEvent
    agent's, other    always                   CustomEvent
    text              first after tools ran    NamedEvent(tool_results), then Text
    text              after text and tools     as above, with Text("\n\n") before the Text
    reasoning         always                   Reasoning; after reasoning and tools, Reasoning("\n\n") before it
    tool_call_delta   always                   ToolCallDelta
    interrupt         always                   NamedEvent
    input_applied     always                   NamedEvent; it separates texts and reasoning as tools do
    run_parked        always                   Parked
    run_resumed       always                   none
    run_completed     no text was streamed     NamedEvent(tool_results) if any, a Text per word, Finish
    run_completed     text was streamed        NamedEvent(tool_results) if any were not reported, Finish
    run_cancelled     always                   Finish
    run_failed        always                   Text("\n\n") if text was streamed, Failure
    ================  =======================  ===========================================================
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from agentstream.errors import BusError
from agentstream.protocol.events import (
    HIDDEN_EVENTS,
    INPUT_APPLIED,
    INTERRUPT,
    NAMED_EVENTS,
    REASONING,
    RESERVED_EVENTS,
    RUN_CANCELLED,
    RUN_COMPLETED,
    RUN_PARKED,
    RUN_RESUMED,
    RUN_STARTED,
    TERMINAL_EVENTS,
    TEXT,
    TOOL_CALL_END,
    TOOL_CALL_START,
    TOOL_RESULTS,
    WRITTEN_EVENTS,
    Event,
)
from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.plain_json import json_text

TURN_SEPARATOR = "\n\n"
_NOT_THE_AGENTS_OWN: Final = RESERVED_EVENTS | HIDDEN_EVENTS
_QUESTION_EVENTS = frozenset({INTERRUPT, INPUT_APPLIED, RUN_PARKED, RUN_RESUMED})


class Text(NamedTuple):
    """A piece of the answer."""

    text: str


class Reasoning(NamedTuple):
    """A piece of the model's reasoning; it is never part of the answer."""

    text: str


class ToolCallDelta(NamedTuple):
    """A piece of a call of a client's tool.

    ``index`` numbers the calls of the answer from 0. Only the first piece of a call has an ``id`` and a ``name``.
    """

    index: int  # type: ignore[assignment]  # the name on the wire; it hides tuple.index
    id: str | None
    name: str | None
    arguments: str


class NamedEvent(NamedTuple):
    """An event that clients receive under its name."""

    name: str
    data: dict[str, Any]


class CustomEvent(NamedTuple):
    """An event of a type that is the agent's own. Clients that asked for the type receive it under its name."""

    name: str
    data: dict[str, Any]


class Finish(NamedTuple):
    """The end of a run that completed or was cancelled. ``usage`` has OpenAI's three keys."""

    reason: str
    usage: dict[str, int]
    cancelled: bool = False
    unapplied_inputs: tuple[str, ...] = ()  # ids of messages for the run that its agent has not taken


class Parked(NamedTuple):
    """The run waits for people. A stream ends here, unless later events show that it has been answered.

    ``interrupts`` are the open questions. ``usage`` is that of the run so far.
    """

    interrupts: tuple[Interrupt, ...]
    usage: dict[str, int]


class Failure(NamedTuple):
    """The end of a run that failed."""

    code: str
    message: str
    status: int | None = None  # the HTTP status, if it is not that of the code
    unapplied_inputs: tuple[str, ...] = ()


Part = Text | Reasoning | ToolCallDelta | NamedEvent | CustomEvent | Parked | Finish | Failure


class Transcript:
    """Translates events into parts, one event at a time, in order."""

    __slots__ = (
        "_any_reported",
        "_call_places",
        "_interrupts",
        "_reasoning_sent",
        "_text_sent",
        "_tools_since_reasoning",
        "_tools_since_text",
        "_unreported",
        "finished",
        "in_text",
    )

    def __init__(self) -> None:
        """Start before the first event."""
        self.finished = False
        # Whether a text event now gives exactly one Text and changes no state. Then callers need not call ``receive``.
        self.in_text = False
        self._text_sent = False
        self._tools_since_text = False
        self._unreported: tuple[dict[str, Any], ...] = ()
        self._reasoning_sent = False
        self._tools_since_reasoning = False
        self._call_places: dict[int, int] | None = None
        self._any_reported = False
        self._interrupts: tuple[Interrupt, ...] = ()

    @property
    def text_sent(self) -> bool:
        """Whether a piece of the answer was sent."""
        return self._text_sent

    @property
    def calls_begun(self) -> bool:
        """Whether a call of a client's tool was sent, at least its first piece."""
        return bool(self._call_places)

    def receive(self, event: Event) -> Iterable[Part]:
        """Return the parts of an event; for a terminal event, an iterator that creates them one by one.

        Raises BusError for an event after the terminal event. The cause is then a bug in agentstream.
        """
        if self.finished:
            message = f"event {event.type!r} ({event.attempt}-{event.seq}) came after the terminal event"
            raise BusError(message)
        kind = event.type
        if kind == TEXT:
            return self._text(event.data)
        if kind in NAMED_EVENTS:
            return (self._named(kind, event.data),)
        if kind in WRITTEN_EVENTS:
            return self._reasoning(event.data) if kind == REASONING else self._tool_call_delta(event.data)
        if kind in TERMINAL_EVENTS:
            return self._end(kind, event.data)
        if kind in _QUESTION_EVENTS:
            return self._question(kind, event.data)
        if kind == RUN_STARTED and not event.data.get("resumes"):
            self._unreported = ()
        is_own = kind not in _NOT_THE_AGENTS_OWN and event.data.__class__ is dict
        return (CustomEvent(kind, event.data),) if is_own else ()

    def _question(self, kind: str, data: dict[str, Any]) -> Iterable[Part]:
        if kind == RUN_PARKED:
            return (Parked(self._interrupts, data["usage"]),)
        if kind == RUN_RESUMED:
            self._interrupts = tuple(asked for asked in self._interrupts if asked.id not in data["answered"])
            return ()
        if kind == INTERRUPT:
            self._interrupts += (Interrupt.from_json(data),)
        elif kind == INPUT_APPLIED:  # what follows is a new answer
            self._tools_since_text = self._tools_since_reasoning = True
            self.in_text = False
        return (NamedEvent(kind, data),)

    def fail(self, code: str, message: str) -> Iterable[Part]:
        """Return the parts of a failure that is not in the replay log; the transcript is then finished."""
        self.finished, self.in_text = True, False
        return self._failed({"code": code, "message": message})

    def _text(self, text: str) -> Iterable[Part]:
        if not self._tools_since_text:
            self._text_sent = self.in_text = True
            return (Text(text),)
        parts: list[Part] = [*self._take_tool_results()]
        if self._text_sent:
            parts.append(Text(TURN_SEPARATOR))
        parts.append(Text(text))
        self._text_sent = self.in_text = True
        self._tools_since_text = False
        return parts

    def _reasoning(self, text: str) -> Iterable[Part]:
        new_turn = self._reasoning_sent and self._tools_since_reasoning
        self._reasoning_sent, self._tools_since_reasoning = True, False
        return (Reasoning(TURN_SEPARATOR), Reasoning(text)) if new_turn else (Reasoning(text),)

    def _tool_call_delta(self, data: dict[str, Any]) -> Iterable[Part]:
        # Threads may begin calls in another order than that of their index. Clients expect new calls in order.
        places = self._call_places = self._call_places or {}
        place = places.setdefault(data["index"], len(places))
        return (ToolCallDelta(place, data.get("id"), data.get("name"), data["arguments"]),)

    def _named(self, kind: str, data: dict[str, Any]) -> NamedEvent:
        if kind in {TOOL_CALL_START, TOOL_CALL_END}:
            self._tools_since_text = self._tools_since_reasoning = True
            self.in_text = False
        if kind == TOOL_CALL_END:
            self._unreported += (_result_of_event(data),)
        return NamedEvent(kind, data)

    def _end(self, kind: str, data: dict[str, Any]) -> Iterator[Part]:
        self.finished, self.in_text = True, False
        if kind == RUN_CANCELLED:
            return iter((Finish("stop", data["usage"], cancelled=True, unapplied_inputs=_unapplied(data)),))
        return self._completed(data) if kind == RUN_COMPLETED else self._failed(data)

    def _completed(self, data: dict[str, Any]) -> Iterator[Part]:
        if self._text_sent:
            results: Sequence[dict[str, Any]] = self._unreported
            if not results and not self._any_reported:
                results = data["tool_results"]  # the agent streams text, but emits no tool events
        else:
            results = data["tool_results"]
        if results:
            yield NamedEvent(TOOL_RESULTS, {"results": results})
        if not self._text_sent and (content := data["content"]):
            first, *others = content.split(" ")
            yield Text(first)
            for word in others:
                yield Text(" " + word)
        yield Finish(data["finish_reason"], data["usage"], unapplied_inputs=_unapplied(data))

    def _failed(self, data: dict[str, Any]) -> Iterator[Part]:
        if self._text_sent:
            yield Text(TURN_SEPARATOR)
        yield Failure(data["code"], data["message"], data.get("status"), _unapplied(data))

    def _take_tool_results(self) -> Iterator[NamedEvent]:
        if self._unreported:
            results, self._unreported = self._unreported, ()
            self._any_reported = True
            yield NamedEvent(TOOL_RESULTS, {"results": results})


def _unapplied(data: dict[str, Any]) -> tuple[str, ...]:
    return tuple(data.get("unapplied_inputs") or ())


def tool_result(tool_name: str, *, success: bool, output: str, latency_s: float) -> dict[str, Any]:
    """Return one entry of ``tool_results``, in the form of the original bridge.

    ``latency_ms`` is 0 if the latency is not finite, because JSON has no infinity.
    """
    latency_ms = latency_s * 1000
    return {
        "tool_name": tool_name,
        "success": success,
        "output": output,
        "latency_ms": latency_ms if math.isfinite(latency_ms) else 0.0,
    }


def _result_of_event(data: dict[str, Any]) -> dict[str, Any]:
    latency_s = data.get("latency", 0.0)
    return tool_result(
        str(data.get("tool", "")),
        success=bool(data.get("success", True)),
        output=json_text(data.get("result", "")),
        latency_s=latency_s if isinstance(latency_s, int | float) else 0.0,
    )


class _PartialToolCall(NamedTuple):
    id: str
    name: str
    arguments: list[str]


class AnswerFold:
    """Folds a run into one answer, for requests that are not streamed."""

    def __init__(self) -> None:
        """Start empty."""
        self._transcript = Transcript()
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _PartialToolCall] = {}
        self.finish: Finish | None = None
        self.parked: Parked | None = None  # while the run waits for people
        self.failure: Failure | None = None

    @property
    def finished(self) -> bool:
        """Whether the terminal event was received."""
        return self._transcript.finished

    @property
    def content(self) -> str:
        """The answer so far. It equals the joined content deltas of the stream."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """The reasoning so far. It equals the joined reasoning deltas of the stream."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls of the client's tools so far, in the form of an assistant message, ordered by index."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments)},
            }
            for _, call in sorted(self._calls.items())
        ]

    def receive(self, event: Event) -> None:
        """Add the next event; raises BusError for an event after the terminal event."""
        self.parked = None
        for part in self._transcript.receive(event):
            if isinstance(part, Text):
                self._texts.append(part.text)
            elif isinstance(part, Reasoning):
                self._reasoning.append(part.text)
            elif isinstance(part, ToolCallDelta):
                call = self._calls.setdefault(part.index, _PartialToolCall(part.id or "", part.name or "", []))
                call.arguments.append(part.arguments)
            elif isinstance(part, Finish):
                self.finish = part
            elif isinstance(part, Parked):
                self.parked = part
            elif isinstance(part, Failure):
                self.failure = part
