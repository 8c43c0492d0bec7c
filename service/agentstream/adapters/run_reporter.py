"""What an adapter tells of its run, in the names and fields of our events."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agentstream.agents import AgentResult, Run, ToolResult
from agentstream.protocol.openai import Usage

# Of a tool's result: the orchestrator's bound too. What the framework's own model reads is not cut.
MAX_RESULT_CHARS: Final = 20_000

# Reasons to stop that the client should hear of; all others (tool_calls, ...) are the framework's own affair.
_FORWARDED_REASONS: Final = frozenset({"length", "content_filter"})


@dataclass(slots=True)
class _OpenCall:
    """A tool call that has not ended. ``started`` is on the clock of ``time.perf_counter``."""

    tool: str
    call_id: str
    started: float = field(default_factory=time.perf_counter)


class RunReporter:
    """Emits a run's events and keeps what its AgentResult needs: tool results, usage, the reason to stop."""

    def __init__(self, run: Run, agent: str) -> None:
        """Begin for an agent of that name."""
        self._run = run
        self._agent = agent
        self._calls: dict[object, _OpenCall] = {}
        self._usages: list[Usage | None] = []
        self._results: list[ToolResult] = []
        self._finish_reason = "stop"

    def turn_start(self, agent: str | None = None) -> None:
        """Tell that an agent begins; ``agent`` if it is another than before, as after a handoff."""
        self._agent = agent or self._agent
        asked = next((message.text for message in reversed(self._run.request.messages) if message.role == "user"), "")
        self._run.emit("agent_turn_start", {"agent": self._agent, "input": asked})

    def inference_start(self, model: str, engine: str) -> None:
        """Tell that a model is asked."""
        self._run.emit("inference_start", {"model": model, "engine": engine})

    def inference_end(self, model: str, usage: Usage | None, finish_reason: str | None = None) -> None:
        """Tell that a model has answered; ``usage`` is of this answer alone, None if it was not told."""
        self._usages.append(usage)
        self._finish_reason = finish_reason if finish_reason in _FORWARDED_REASONS else "stop"
        told = {"usage": usage.model_dump()} if usage else {}
        self._run.emit("inference_end", {"model": model, **told, "finish_reason": finish_reason})

    def tool_start(self, key: object, tool: str, arguments: object, call_id: str) -> None:
        """Tell that a tool begins; ``key`` finds it again when it ends. Await ``run.drain()`` before it runs."""
        self._calls[key] = _OpenCall(tool, call_id)
        started = {"tool": tool, "arguments": as_text(arguments), "tool_call_id": call_id, "agent": self._agent}
        self._run.emit("tool_call_start", started)

    def tool_end(self, key: object, result: object, *, success: bool) -> None:
        """Tell that a tool has ended; nothing if it never began."""
        call = self._calls.pop(key, None)
        if call is None:
            return
        latency_s = time.perf_counter() - call.started
        text = as_text(result)[:MAX_RESULT_CHARS]
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
        """Return the run's result; ``content`` is the answer of an agent that wrote none."""
        return AgentResult(content, self._results, total(self._usages), self._finish_reason)


def total(usages: list[Usage | None]) -> dict[str, Any]:
    """Return the sum as result metadata; nothing if a part is unknown, for it would be taken for the whole."""
    known = [usage for usage in usages if usage is not None]
    if not known or len(known) < len(usages):
        return {}
    return {name: sum(getattr(usage, name) for usage in known) for name in Usage.model_fields}


def usage_of(prompt_tokens: int | None, completion_tokens: int | None) -> Usage | None:
    """Return a usage, or None if a framework reports none (absent, or nothing but zeros)."""
    if not prompt_tokens and not completion_tokens:
        return None
    prompt, completion = prompt_tokens or 0, completion_tokens or 0
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def as_text(value: object) -> str:
    """Return text as it is, and anything else as JSON (what JSON lacks, as ``str`` has it)."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # numbers beyond 64 bits, circles
        return str(value)
