"""The response object of the Responses API: a run's parts become output items, and typed events that build them.

    part            item              events
    ==============  ================  ==========================================================================
    Text            message           content_part.added, output_text.delta ..., output_text.done, content_part.done
    Reasoning       reasoning         reasoning_summary_part.added, reasoning_summary_text.delta ..., .done, part.done
    ToolCallDelta   function_call     function_call_arguments.delta ..., function_call_arguments.done
    ToolCallDelta   custom_tool_call  custom_tool_call_input.delta, custom_tool_call_input.done
    interrupt       mcp_approval_request, of the kind ``approval`` only

Each item begins with output_item.added and ends with output_item.done. A message or reasoning item ends when another
item begins; calls end with the run. The input of a custom tool is known only then, so it comes as one delta. No I/O,
and deterministic, ids included. Source: the types of openai-python 3.57.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from agentstream.errors import failure_text, failure_type
from agentstream.protocol.events import INTERRUPT, RUN_FAILED, Event
from agentstream.protocol.interrupts import APPROVAL, Interrupt
from agentstream.protocol.plain_json import json_text
from agentstream.protocol.response_items import APPROVAL_REQUEST, item_id, response_id
from agentstream.protocol.response_tools import CUSTOM, ClientTool, tools_by_agent_name, unwrap_input
from agentstream.stream.chat import StreamHead, waiting_text
from agentstream.stream.response_segments import SegmentTracker, echo_of, shown_interrupts, without_separator
from agentstream.stream.transcript import (
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

TEXT_DELTA: Final = "response.output_text.delta"

TypedEvent = tuple[str, dict[str, Any]]
_Kind = Literal["message", "reasoning", "function_call", "custom_tool_call", "mcp_approval_request"]
SERVER_LABEL: Final = "agentstream"  # of an approval request whose tool belongs to no named server
# How events refer to the content of an item.
_CONTENT_INDEX: Final[dict[str, dict[str, int]]] = {"message": {"content_index": 0}, "reasoning": {"summary_index": 0}}


@dataclass(slots=True)
class OutputItem:
    """An item of the output, in progress or complete."""

    kind: _Kind
    index: int
    fields: dict[str, Any]  # fields that do not change; the id is the first
    texts: list[str] = field(default_factory=list)
    status: str = "in_progress"

    @property
    def location(self) -> dict[str, Any]:
        """The fields with which events refer to the item's content."""
        return {"item_id": self.fields["id"], "output_index": self.index, **_CONTENT_INDEX.get(self.kind, {})}

    @property
    def text(self) -> str:
        """The item's text, summary or arguments so far."""
        return "".join(self.texts)

    def item(self, *, empty: bool = False) -> dict[str, Any]:
        """Return the item as JSON, with its content so far; with ``empty``, without content."""
        if self.kind == APPROVAL_REQUEST:
            return {**self.fields, "type": self.kind}
        item = {**self.fields, "type": self.kind, "status": self.status}
        if self.kind == "function_call":
            return {**item, "arguments": "" if empty else self.text}
        if self.kind == "custom_tool_call":
            return {**item, "input": "" if empty else unwrap_input(self.text)}
        content = [] if empty else [self.content(self.text)]
        if self.kind == "reasoning":
            return {**item, "summary": content}
        return {**item, "role": "assistant", "content": content}

    def content(self, text: str) -> dict[str, Any]:
        """Return ``text`` as the item's only content part."""
        if self.kind == "reasoning":
            return {"type": "summary_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponseOutput:
    """The output items of a run. Its methods yield the events that build them."""

    __slots__ = ("_calls", "_items", "_run_id", "_segment", "_tools", "open_item")

    def __init__(self, run_id: str, echo: dict[str, Any], segment: int = 0) -> None:
        """Start empty. The client's tools are those in ``echo``, the fields of the request that the response repeats.

        They say which calls are of custom tools, and which tools have a namespace. ``segment`` is the part of the run.
        """
        self._run_id = run_id
        self._segment = segment
        self._tools: dict[str, ClientTool] = tools_by_agent_name(echo.get("tools") or ())
        self._items: list[OutputItem] = []
        self._calls: dict[int, OutputItem] = {}
        self.open_item: OutputItem | None = None  # the message or reasoning item in progress

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items so far. Incomplete calls are left out, because clients run all calls that they find."""
        return [p.item() for p in self._items if p.kind in _CONTENT_INDEX or p.status == "completed"]

    @property
    def empty(self) -> bool:
        """Whether no item has begun."""
        return not self._items

    def receive(self, part: Part) -> Iterator[TypedEvent]:
        """Yield the events of a part. Parts that are not output have none."""
        if isinstance(part, Text):
            output_item = yield from self._ensure_open_item("message")
            output_item.texts.append(part.text)
            yield TEXT_DELTA, {**output_item.location, "logprobs": [], "delta": part.text}
        elif isinstance(part, Reasoning):
            output_item = yield from self._ensure_open_item("reasoning")
            output_item.texts.append(part.text)
            yield "response.reasoning_summary_text.delta", {**output_item.location, "delta": part.text}
        elif isinstance(part, ToolCallDelta):
            yield from self._receive_call(part)
        elif isinstance(part, NamedEvent) and part.name == INTERRUPT and part.data["kind"] == APPROVAL:
            yield from self._ask(Interrupt.from_json(part.data))

    def _ask(self, asked: Interrupt) -> Iterator[TypedEvent]:
        """Yield the events of an approval request, which is complete at once."""
        yield from self._close_open_item(whole=True)
        payload = asked.payload if isinstance(asked.payload, dict) else {}
        arguments = payload.get("arguments", {})
        fields = {
            "id": item_id(APPROVAL_REQUEST, self._run_id, asked.id, self._segment),
            "name": str(payload.get("tool", asked.kind)),
            "arguments": arguments if isinstance(arguments, str) else json_text(arguments),
            "server_label": str(payload.get("server_label", SERVER_LABEL)),
        }
        output_item = OutputItem(APPROVAL_REQUEST, len(self._items), fields, status="completed")
        self._items.append(output_item)
        yield _added(output_item)
        yield "response.output_item.done", {"output_index": output_item.index, "item": output_item.item()}

    def close(self, *, whole: bool) -> Iterator[TypedEvent]:
        """Yield the events that end the open items. Calls end only if the answer is ``whole``."""
        yield from self._close_open_item(whole=whole)
        if whole:
            for output_item in self._calls.values():
                output_item.status = "completed"
                yield from _end_of_call(output_item)
                yield "response.output_item.done", {"output_index": output_item.index, "item": output_item.item()}

    def _ensure_open_item(self, kind: _Kind) -> Generator[TypedEvent, None, OutputItem]:
        """Yield the events that begin an item of this kind, unless one is open; return the open item."""
        output_item = self.open_item
        if output_item is None or output_item.kind != kind:
            yield from self._close_open_item(whole=True)
            output_item = self.open_item = self._new_item(kind, {})
            yield _added(output_item)
            name = "content_part" if kind == "message" else "reasoning_summary_part"
            yield f"response.{name}.added", {**output_item.location, "part": output_item.content("")}
        return output_item

    def _receive_call(self, part: ToolCallDelta) -> Iterator[TypedEvent]:
        output_item = self._calls.get(part.index)
        if output_item is None:
            yield from self._close_open_item(whole=True)
            tool = self._tools.get(part.name or "")
            fields = {"call_id": part.id, "name": tool.name if tool else part.name}
            if tool and tool.namespace:
                fields["namespace"] = tool.namespace
            kind: _Kind = "custom_tool_call" if tool and tool.kind == CUSTOM else "function_call"
            output_item = self._calls[part.index] = self._new_item(kind, fields)
            yield _added(output_item)
        if part.arguments:
            output_item.texts.append(part.arguments)
        if part.arguments and output_item.kind == "function_call":
            yield "response.function_call_arguments.delta", {**output_item.location, "delta": part.arguments}

    def _close_open_item(self, *, whole: bool) -> Iterator[TypedEvent]:
        output_item, self.open_item = self.open_item, None
        if output_item is None:
            return
        output_item.status = "completed" if whole else "incomplete"
        text = output_item.text
        part = {"part": output_item.content(text)}
        if output_item.kind == "message":
            yield "response.output_text.done", {**output_item.location, "text": text, "logprobs": []}
            yield "response.content_part.done", {**output_item.location, **part}
        else:
            yield "response.reasoning_summary_text.done", {**output_item.location, "text": text}
            yield "response.reasoning_summary_part.done", {**output_item.location, **part}
        yield "response.output_item.done", {"output_index": output_item.index, "item": output_item.item()}

    def _new_item(self, kind: _Kind, fields: dict[str, Any]) -> OutputItem:
        index = len(self._items)
        output_item = OutputItem(kind, index, {"id": item_id(kind, self._run_id, index, self._segment), **fields})
        self._items.append(output_item)
        return output_item


class ResponseFold:
    """Folds one response of a run, for requests that are not streamed."""

    def __init__(
        self, head: StreamHead, echo: dict[str, Any], segment: int = 0, *, interrupt_text: bool = True
    ) -> None:
        """Start empty. ``echo`` holds the request fields that the response repeats, ``segment`` is its number.

        With ``interrupt_text``, a sentence says what a parked run waits for, unless an approval request does.
        """
        self._head = head
        self._echo = echo
        self._segment = segment
        self._interrupt_text = interrupt_text
        self._transcript = Transcript()
        self._tracker = SegmentTracker()
        self._output = ResponseOutput(head.run_id, echo)
        self._waited_for: Parked | None = None  # at the end of this response
        self.earlier_items: list[dict[str, Any]] = []  # of the responses of this run before this one
        self.finish: Finish | None = None
        self.failure: Failure | None = None
        self.parked: Parked | None = None  # while the run waits for people

    @property
    def finished(self) -> bool:
        """Whether the last event of the response was received."""
        return self._transcript.finished or self.finish is not None

    @property
    def items(self) -> list[dict[str, Any]]:
        """The output items so far."""
        return self._output.items

    def receive(self, event: Event) -> None:
        """Add the next event. Events after the end of the response do nothing."""
        if self.finished:
            return
        self.parked = None
        parts = [*response_parts(self._transcript, event)]
        if self._tracker.receive(event, parts):
            self._begin()
        if self._tracker.number and self._output.empty:
            parts = [*without_separator(parts)]
        for part in parts:
            if isinstance(part, Parked):
                self._park(part)
            elif isinstance(part, Finish | Failure):
                self._end(part)
            else:
                for _ in self._output.receive(part):
                    pass

    def _begin(self) -> None:
        """Begin the next response, or end this one."""
        if self._waited_for is not None:
            self.finish = Finish("stop", self._waited_for.usage)
            return
        self.earlier_items += self._output.items
        self._output = ResponseOutput(self._head.run_id, self._echo, self._tracker.number)

    def _park(self, part: Parked) -> None:
        is_own = self._tracker.number == self._segment
        for _ in parked_events(self._output, part, interrupt_text=is_own and self._interrupt_text):
            pass
        if is_own:
            self.parked = self._waited_for = part._replace(usage=self._tracker.own_usage(part.usage))

    def _end(self, part: Finish | Failure) -> None:
        for _ in closing_events(self._output, part):
            pass
        if isinstance(part, Finish):
            self.finish = part._replace(usage=self._tracker.own_usage(part.usage))
        else:
            self.failure = part

    def body(self, *, status: str = "running", interrupt_text: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Return the response, with the events so far. ``status`` is used only while the run is open."""
        end = self.finish or self.failure or (Finish("stop", self.parked.usage) if self.parked else None)
        return response_body(
            self._head,
            self._echo,
            self.items,
            end=end,
            queued=status == "queued",
            segment=self._segment,
            waits_for=self._waited_for,
        )


def response_parts(transcript: Transcript, event: Event) -> Iterable[Part]:
    """Return the parts of an event that belong to a response. The separator before a failure does not."""
    parts = transcript.receive(event)
    return (part for part in parts if not isinstance(part, Text)) if event.type == RUN_FAILED else parts


def closing_events(output: ResponseOutput, end: Finish | Failure) -> Iterator[TypedEvent]:
    """Yield the events that end the open items at the end of the run."""
    return output.close(whole=isinstance(end, Finish) and incomplete_reason(end) is None)


def parked_events(output: ResponseOutput, part: Parked, *, interrupt_text: bool) -> Iterator[TypedEvent]:
    """Yield the events that end the open items when the run is parked.

    With ``interrupt_text``, a sentence for each interrupt comes first, unless the output has its approval request.
    """
    others = part._replace(interrupts=tuple(asked for asked in part.interrupts if asked.kind != APPROVAL))
    in_message = output.open_item is not None and output.open_item.kind == "message"
    for text in waiting_text(others, text_sent=in_message) if interrupt_text else ():
        yield from output.receive(Text(text))
    yield from output.close(whole=True)


def incomplete_reason(finish: Finish) -> str | None:
    """Return why an answer is incomplete, or None. OpenAI's API has no reason ``cancelled``; agentstream adds it."""
    return "cancelled" if finish.cancelled else _INCOMPLETE.get(finish.reason)


def response_body(  # noqa: PLR0913 -- the fields of the wire object
    head: StreamHead,
    echo: dict[str, Any],
    output: list[dict[str, Any]],
    *,
    end: Finish | Failure | None = None,
    queued: bool = False,
    segment: int = 0,
    waits_for: Parked | None = None,
) -> dict[str, Any]:
    """Return a response object. Fields that the client did not send have OpenAI's default.

    They are null if the default depends on the model. ``segment`` is the number of the response in its run;
    ``waits_for`` says why the run was parked at its end.
    """
    status, reason = "queued" if queued else "in_progress", None
    failure = end if isinstance(end, Failure) else None
    finish = end if isinstance(end, Finish) else None
    if finish is not None:
        reason = incomplete_reason(finish)
        status = "cancelled" if finish.cancelled else "incomplete" if reason else "completed"
    body = {
        "id": response_id(head.run_id, segment),
        "object": "response",
        "created_at": head.created,
        "status": "failed" if failure is not None else status,
        "error": None if failure is None else _error(failure),
        "incomplete_details": {"reason": reason} if reason else None,
        "model": head.model,
        "output": output,
        "usage": None if finish is None else _usage(finish.usage),
        **_DEFAULTS,
        **echo_of(echo, head.run_id, segment),
    }
    if waits_for is not None:
        body["interrupts"] = shown_interrupts(waits_for.interrupts, head.run_id, segment)
    if failure is not None:
        error = {"type": failure_type(failure.code, failure.status), "code": failure.code, "message": failure.message}
        body["agent_error"] = error
    return body


_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_DEFAULTS: Final[dict[str, Any]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


def _error(failure: Failure) -> dict[str, Any]:
    """Return the failure with one of OpenAI's codes. The response's ``agent_error`` has the exact code."""
    kind = failure_type(failure.code, failure.status)
    code = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}.get(
        kind, "server_error"
    )
    message = failure_text(failure.code, failure.message)
    return {"code": code, "message": message, "type": kind, "param": None}


def _usage(usage: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def _end_of_call(output_item: OutputItem) -> Iterator[TypedEvent]:
    if output_item.kind == "function_call":
        yield "response.function_call_arguments.done", {**output_item.location, "arguments": output_item.text}
        return
    text = unwrap_input(output_item.text)
    if text:
        yield "response.custom_tool_call_input.delta", {**output_item.location, "delta": text}
    yield "response.custom_tool_call_input.done", {**output_item.location, "input": text}


def _added(output_item: OutputItem) -> TypedEvent:
    return "response.output_item.added", {"output_index": output_item.index, "item": output_item.item(empty=True)}
