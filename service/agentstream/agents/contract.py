"""Run, AgentResult, ToolResult: the types users write against. Kept stable."""

import itertools
import math
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

import orjson

from agentstream.errors import InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import REASONING, TEXT, TOOL_CALL_DELTA, check_agent_event
from agentstream.protocol.openai import ChatCompletionRequest, FinishReason, Usage


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What one tool call came to. ``latency_seconds`` is its wall-clock duration."""

    tool_name: str
    content: str
    success: bool = True
    latency_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class AgentResult:
    """An agent's answer.

    ``metadata`` may hold ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``; without a total
    the usage is estimated. ``finish_reason`` is one of stop, length, content_filter, tool_calls; a ``stop`` after
    ``run.write_tool_call`` is sent as ``tool_calls``.
    """

    content: str
    tool_results: list[ToolResult] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = "stop"

    def check(self) -> None:
        """Raise InvalidAgentOutput if a field has the wrong type; says which."""
        for name, fine in (
            ("content", _has_type(self.content, str)),
            (
                "tool_results",
                _has_type(self.tool_results, list, tuple) and all(map(_is_tool_result, self.tool_results)),
            ),
            ("metadata", _has_type(self.metadata, dict)),
            ("finish_reason", self.finish_reason in get_args(FinishReason)),
        ):
            if not fine:
                value = getattr(self, name)
                message = f"AgentResult.{name} cannot be {value!r:.120} ({type(value).__name__})"
                raise InvalidAgentOutput(message)

    def usage(self) -> Usage | None:
        """Return the usage told in ``metadata``, or None if there is none (total 0 or absent)."""
        counts = {name: self.metadata.get(name) or 0 for name in Usage.model_fields}
        if not counts["total_tokens"]:
            return None
        try:
            return Usage.model_validate(counts)
        except ValueError as exc:
            message = f"AgentResult.metadata has unusable token counts: {counts!r}"
            raise InvalidAgentOutput(message) from exc


def _json_text(arguments: dict[str, Any]) -> str:
    try:
        return orjson.dumps(arguments).decode()
    except TypeError as exc:
        message = f"run.write_tool_call: the arguments cannot be written as JSON: {exc}"
        raise InvalidAgentOutput(message) from exc


def _has_type(value: object, *types: type) -> bool:
    """Return whether a user's value really has the type it is declared with."""
    return isinstance(value, types)


def _is_tool_result(value: object) -> bool:
    return (
        isinstance(value, ToolResult)
        and _has_type(value.tool_name, str)
        and _has_type(value.content, str)
        and _has_type(value.latency_seconds, int, float)
        and math.isfinite(value.latency_seconds)
    )


class EventSink(Protocol):
    """Where a run's events go. Callable from any thread; ``put`` may block a thread, never the loop."""

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Take one event."""

    async def wait_for_room(self) -> None:
        """Return when there is room for more."""


class ToolCallWriter:
    """A call of one of the client's tools that is being written; made by ``Run.write_tool_call``.

    ``id`` is what the client's result will name; ``index`` numbers the run's calls from 0.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], index: int, call_id: str) -> None:
        """Bind the call to its run."""
        self._write = write
        self.index = index
        self.id = call_id

    def write(self, arguments: str) -> None:
        """Stream more of the call's JSON text, from any thread. Raises as ``Run.write`` does."""
        if not _has_type(arguments, str):
            message = f"a tool call's write takes a str, got {type(arguments).__name__}"
            raise InvalidAgentOutput(message)
        if arguments:
            self._write({"index": self.index, "arguments": arguments})


class Run:
    """One execution of an agent for one request: what the agent sees of it.

    ``id`` is the completion id, ``request`` the validated request (``.model``, ``.messages`` ...).
    """

    def __init__(self, run_id: str, request: ChatCompletionRequest, sink: EventSink) -> None:
        """Bind the run to where its events go."""
        self.id = run_id
        self.request = request
        self._sink = sink
        self._cancelled = False
        self._call_numbers = itertools.count()  # each is given once, whichever threads ask

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled; a threaded agent checks it in long loops that emit nothing."""
        return self._cancelled

    def cancel(self) -> None:
        """Mark the run cancelled: from now on ``emit`` and ``write`` raise RunCancelled."""
        self._cancelled = True

    def emit(self, type: str, data: dict[str, Any]) -> None:  # noqa: A002 -- the published name
        """Publish an event, from any thread. ``data`` is JSON-serialisable.

        Sent to clients: agent_turn_start, inference_start, inference_end, tool_call_start, tool_call_end;
        other types are stored, not sent. Raises RunCancelled after a cancel, InvalidAgentOutput for a
        reserved or malformed type or unserialisable data.
        """
        self._raise_if_cancelled()
        check_agent_event(type, data)
        self._sink.put(type, data)

    def write(self, text: str) -> None:
        """Stream answer text, from any thread. Raises RunCancelled after a cancel."""
        self._raise_if_cancelled()
        if not _has_type(text, str):
            message = f"run.write takes a str, got {type(text).__name__}"
            raise InvalidAgentOutput(message)
        if text:
            self._sink.put(TEXT, text)

    def write_reasoning(self, text: str) -> None:
        """Stream what the model thinks before it answers, from any thread; clients keep it apart from the answer.

        Raises as ``write`` does.
        """
        self._raise_if_cancelled()
        if not _has_type(text, str):
            message = f"run.write_reasoning takes a str, got {type(text).__name__}"
            raise InvalidAgentOutput(message)
        if text:
            self._sink.put(REASONING, text)

    def write_tool_call(
        self,
        name: str,
        arguments: str | dict[str, Any] = "",
        *,
        id: str | None = None,  # noqa: A002 -- the wire's name
    ) -> ToolCallWriter:
        """Hand the client a call of one of its own tools (``run.request.tools``), from any thread.

        ``arguments`` is an object, or JSON text, of which more may follow by ``write`` on what is returned; without
        an ``id`` the call gets one. The client runs the tool after the run has ended, and sends its result as a
        ``tool`` message of its next request. Raises as ``write`` does.
        """
        self._raise_if_cancelled()
        if not (_has_type(name, str) and name and _has_type(arguments, str, dict) and _has_type(id, str, type(None))):
            message = f"run.write_tool_call takes a name, and arguments as str or dict; got {name!r:.120}"
            raise InvalidAgentOutput(message)
        text = arguments if isinstance(arguments, str) else _json_text(arguments)
        call_id = id or f"call_{secrets.token_hex(12)}"
        call = ToolCallWriter(self._write_tool_call_delta, next(self._call_numbers), call_id)
        self._write_tool_call_delta({"index": call.index, "id": call_id, "name": name, "arguments": text})
        return call

    def _write_tool_call_delta(self, piece: dict[str, Any]) -> None:
        self._raise_if_cancelled()
        self._sink.put(TOOL_CALL_DELTA, piece)

    async def drain(self) -> None:
        """Wait until there is room for more output; for async agents that write a lot.

        Await it between ``emit("tool_call_start", ...)`` and the tool itself: it returns when the start is stored, so
        that no later attempt runs the tool again. In a thread ``emit`` waits for that by itself.
        """
        await self._sink.wait_for_room()

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            message = f"run {self.id} was cancelled"
            raise RunCancelled(message)


Agent = Callable[[Run], Awaitable[AgentResult]] | Callable[[Run], AgentResult]
