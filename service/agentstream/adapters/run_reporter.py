"""Emits the events of an adapter's run, and collects the run's result."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

from agentstream.agents import AgentResult, Run, ToolResult
from agentstream.protocol.openai import Usage
from agentstream.protocol.plain_json import json_text
from agentstream.telemetry.masking import mask

# Limit for a tool's result in events, as in the orchestrator. The framework's own model reads the whole result.
MAX_RESULT_CHARS: Final = 20_000

# Only these finish_reasons of a model become the run's. Others, such as tool_calls, are internal to the framework.
_FORWARDED_REASONS: Final = frozenset({"length", "content_filter"})


@dataclass(slots=True)
class _OpenCall:
    """A tool call that has not ended. ``started`` is a value of ``time.perf_counter``, in seconds."""

    tool: str
    call_id: str
    started: float = field(default_factory=time.perf_counter)


class RunReporter:
    """Emits a run's events and collects its tool results, usage and finish_reason for the AgentResult."""

    def __init__(self, run: Run, agent: str) -> None:
        """``agent`` is the agent's name in the events."""
        self._run = run
        self._agent = agent
        self._calls: dict[object, _OpenCall] = {}
        self._usages: list[Usage | None] = []
        self._results: list[ToolResult] = []
        self._finish_reason = "stop"

    def turn_start(self, agent: str | None = None) -> None:
        """Emit the start of an agent's turn. ``agent`` is the new name if the agent changes, as after a handoff."""
        self._agent = agent or self._agent
        messages = self._run.request.messages
        question = next((message.text for message in reversed(messages) if message.role == "user"), "")
        self._run.emit("agent_turn_start", {"agent": self._agent, "input": question})

    def inference_start(self, model: str, engine: str) -> None:
        """Emit the start of an inference."""
        self._run.emit("inference_start", {"model": model, "engine": engine})

    def inference_end(self, model: str, usage: Usage | None, finish_reason: str | None = None) -> None:
        """Emit the end of an inference. ``usage`` is that of this inference, or None if it is not known."""
        self._usages.append(usage)
        self._finish_reason = finish_reason if finish_reason in _FORWARDED_REASONS else "stop"
        known = {"usage": usage.model_dump()} if usage else {}
        self._run.emit("inference_end", {"model": model, **known, "finish_reason": finish_reason})

    def tool_start(self, key: object, tool: str, arguments: object, call_id: str) -> None:
        """Emit the start of a tool call. On the event loop, await ``run.drain()`` before the tool runs.

        ``key`` identifies the call in ``tool_end``.
        """
        self._calls[key] = _OpenCall(tool, call_id)
        started = {"tool": tool, "arguments": as_text(arguments), "tool_call_id": call_id, "agent": self._agent}
        self._run.emit("tool_call_start", started)

    def tool_end(self, key: object, result: object, *, success: bool) -> None:
        """Emit the end of a tool call. Do nothing if ``key`` names no open call."""
        call = self._calls.pop(key, None)
        if call is None:
            return
        latency_s = time.perf_counter() - call.started
        text = mask(as_text(result))[:MAX_RESULT_CHARS]  # a cut secret would not be recognised
        self._results.append(ToolResult(call.tool, text, success, latency_s))
        ended = {
            "tool": call.tool,
            "success": success,
            "latency": latency_s,
            "result": text,
            "tool_call_id": call.call_id,
            "agent": self._agent,
        }
        self._run.emit("tool_call_end", ended)

    def result(self, content: str = "") -> AgentResult:
        """Return the run's result. ``content`` is the answer if the agent wrote no text."""
        return AgentResult(content, self._results, total(self._usages), self._finish_reason)


def total(usages: list[Usage | None]) -> dict[str, Any]:
    """Return the sum of the usages as result metadata, or an empty dict if one of them is not known."""
    known = [usage for usage in usages if usage is not None]
    if not known or len(known) < len(usages):
        return {}
    return {name: sum(getattr(usage, name) for usage in known) for name in Usage.model_fields}


def usage_of(prompt_tokens: int | None, completion_tokens: int | None) -> Usage | None:
    """Return a usage, or None if the framework reports none: both counts are None or 0."""
    if not prompt_tokens and not completion_tokens:
        return None
    prompt, completion = prompt_tokens or 0, completion_tokens or 0
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def as_text(value: object) -> str:
    """Return a string unchanged, and any other value as JSON. An object that cannot be JSON becomes ``str(value)``."""
    try:
        return json_text(value, unknown=str)
    except (TypeError, ValueError):  # for example a circular reference
        return str(value)
