r"""From a run's events to the parts of its answer: what is said, before how it is written down.

Sans-I/O and deterministic: the same events give the same parts. The SSE stream renders the parts as
frames (``agentstream.stream.chat``); a non-streamed completion collects them (``AnswerFold``).

What each event becomes (deploy/PROTOCOL.md, "The SSE sequence"):

    ================  =======================  ===========================================================
    event             when                     parts
    ================  =======================  ===========================================================
    run_started       always                   none; tool results not yet reported are forgotten
    agent's, named    always                   NamedEvent
    agent's, other    always                   none
    text              first after tools ran    NamedEvent(tool_results), then Text
    text              after text and tools     Text("\n\n") before it
    reasoning         always                   Reasoning; after reasoning and tools Reasoning("\n\n") before it
    tool_call_delta   always                   ToolCallDelta
    run_completed     nothing was streamed     NamedEvent(tool_results) if any, a Text per word, Finish
    run_completed     text was streamed        NamedEvent(tool_results) not yet reported, Finish
    run_cancelled     always                   Finish
    run_failed        always                   Text("\n\n") if text was streamed, Failure
    ================  =======================  ===========================================================
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from agentstream.errors import BusError
from agentstream.protocol.events import (
    NAMED_EVENTS,
    REASONING,
    RUN_CANCELLED,
    RUN_COMPLETED,
    RUN_STARTED,
    TERMINAL_EVENTS,
    TEXT,
    TOOL_CALL_END,
    TOOL_CALL_START,
    TOOL_RESULTS,
    WRITTEN_EVENTS,
    Event,
)

TURN_SEPARATOR = "\n\n"


class Text(NamedTuple):
    """A piece of the answer."""

    text: str


class Reasoning(NamedTuple):
    """A piece of what the model thought before it answered; never part of the answer."""

    text: str


class ToolCallDelta(NamedTuple):
    """A piece of a call of one of the client's own tools.

    ``index`` counts the answer's calls from 0; ``id`` and ``name`` are those of a call's first piece, None after it.
    """

    index: int  # type: ignore[assignment]  # the wire's name, over tuple.index
    id: str | None
    name: str | None
    arguments: str


class NamedEvent(NamedTuple):
    """An event the client sees under its name."""

    name: str
    data: dict[str, Any]


class Finish(NamedTuple):
    """The end of a run that completed or was cancelled. ``usage`` has the three OpenAI keys."""

    reason: str
    usage: dict[str, int]
    cancelled: bool = False


class Failure(NamedTuple):
    """The end of a run that did not."""

    code: str
    message: str


Part = Text | Reasoning | ToolCallDelta | NamedEvent | Finish | Failure


class Transcript:
    """Turns events into parts, one event at a time, in order."""

    __slots__ = (
        "_any_reported",
        "_call_places",
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
        self.in_text = False  # whether a text event now is one part, its text, and changes nothing: no need to ask
        self._text_sent = False
        self._tools_since_text = False
        self._unreported: tuple[dict[str, Any], ...] = ()
        self._reasoning_sent = False
        self._tools_since_reasoning = False
        self._call_places: dict[int, int] | None = None
        self._any_reported = False

    @property
    def calls_begun(self) -> bool:
        """Whether a call of a client's tool was sent, if only its beginning."""
        return bool(self._call_places)

    def receive(self, event: Event) -> Iterable[Part]:
        """Return the event's parts; for a terminal event, an iterator that makes them one by one.

        Raises BusError for an event after the terminal one: two terminal events are our own fault.
        """
        if self.finished:
            message = f"event {event.type!r} ({event.attempt}-{event.seq}) after the terminal event"
            raise BusError(message)
        kind = event.type
        if kind == TEXT:
            return self._text(event.data)
        if kind in NAMED_EVENTS:
            return (self._named(kind, event.data),)
        if kind in WRITTEN_EVENTS:
            return self._reasoning(event.data) if kind == REASONING else self._tool_call_delta(event.data)
        if kind == RUN_STARTED:
            self._unreported = ()
        elif kind in TERMINAL_EVENTS:
            self.finished, self.in_text = True, False
            if kind == RUN_CANCELLED:
                return iter((Finish("stop", event.data["usage"], cancelled=True),))
            return self._completed(event.data) if kind == RUN_COMPLETED else self._failed(event.data)
        return ()

    def fail(self, code: str, message: str) -> Iterable[Part]:
        """End without a terminal event: the run's events cannot be had any more."""
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
        # Threads may begin calls in another order than they took numbers; clients append what begins.
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

    def _completed(self, data: dict[str, Any]) -> Iterator[Part]:
        if self._text_sent:
            results: Sequence[dict[str, Any]] = self._unreported
            if not results and not self._any_reported:
                results = data["tool_results"]  # an agent that streams, but announces no tools
        else:
            results = data["tool_results"]
        if results:
            yield NamedEvent(TOOL_RESULTS, {"results": results})
        if not self._text_sent and (content := data["content"]):
            first, *others = content.split(" ")
            yield Text(first)
            for word in others:
                yield Text(" " + word)
        yield Finish(data["finish_reason"], data["usage"])

    def _failed(self, data: dict[str, Any]) -> Iterator[Part]:
        if self._text_sent:
            yield Text(TURN_SEPARATOR)
        yield Failure(data["code"], data["message"])

    def _take_tool_results(self) -> Iterator[NamedEvent]:
        if self._unreported:
            results, self._unreported = self._unreported, ()
            self._any_reported = True
            yield NamedEvent(TOOL_RESULTS, {"results": results})


def tool_result(tool_name: str, *, success: bool, output: str, latency_s: float) -> dict[str, Any]:
    """Return one entry of ``tool_results``, in the seed's shape; JSON has no infinity for an absurd latency."""
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
        output=str(data.get("result", "")),
        latency_s=latency_s if isinstance(latency_s, int | float) else 0.0,
    )


class _PartialToolCall(NamedTuple):
    id: str
    name: str
    arguments: list[str]


class AnswerFold:
    """A run folded into one answer, for requests that are not streamed."""

    def __init__(self) -> None:
        """Start empty."""
        self._transcript = Transcript()
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _PartialToolCall] = {}
        self.finish: Finish | None = None
        self.failure: Failure | None = None

    @property
    def finished(self) -> bool:
        """Whether the terminal event was received."""
        return self._transcript.finished

    @property
    def content(self) -> str:
        """The answer so far: exactly the joined deltas of the streamed form."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """The reasoning so far: exactly the joined deltas of the streamed form."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls of the client's tools so far, as an assistant message holds them, in the order of their index."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments)},
            }
            for _, call in sorted(self._calls.items())
        ]

    def receive(self, event: Event) -> None:
        """Take the next event."""
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
            elif isinstance(part, Failure):
                self.failure = part
