"""The result of an agent, and those of its tools."""

import math
from dataclasses import dataclass, field
from typing import Any, get_args

from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.openai import FinishReason, Usage
from agentstream.protocol.plain_json import json_text


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of one tool call.

    ``content`` is the tool's output, or the error text if ``success`` is False. A value that is no text is sent as its
    JSON text. ``latency_seconds`` is the wall-clock time of the call, in seconds.
    """

    tool_name: str
    content: Any
    success: bool = True
    latency_seconds: float = 0.0

    def text(self) -> str:
        """Return ``content`` as text. Raises InvalidAgentOutput if it cannot be written as JSON."""
        return result_text(self.content, f"ToolResult.content of {self.tool_name!r}")


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The return value of an agent.

    ``content`` is the answer of an agent that never called ``run.write``. Otherwise it is ignored, because the
    written text is the answer.

    ``tool_results`` are the results of the agent's tool calls. An agent that emitted ``tool_call_end`` events and
    wrote text has reported its results already; then ``tool_results`` is ignored.

    ``metadata`` may hold the token counts ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``. Without
    ``total_tokens``, or if it is 0, the usage is estimated. Other keys are ignored.

    ``finish_reason`` is ``stop``, ``length``, ``content_filter`` or ``tool_calls``. After ``run.write_tool_call``,
    ``stop`` is sent to the client as ``tool_calls``.

    Creating an AgentResult checks nothing. The worker checks it after the agent returned; a wrong type ends the run
    with the error code ``invalid_agent_output``.
    """

    content: str
    tool_results: list[ToolResult] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = "stop"

    def check(self) -> None:
        """Raise InvalidAgentOutput if a field has a wrong type or value. The error names the field and the value."""
        reasons = get_args(FinishReason)
        for name, expected, valid in (
            ("content", "a str", has_type(self.content, str)),
            (
                "tool_results",
                "a list of ToolResult",
                has_type(self.tool_results, list, tuple) and all(map(_is_tool_result, self.tool_results)),
            ),
            ("metadata", "a dict", has_type(self.metadata, dict)),
            ("finish_reason", f"one of {', '.join(reasons)}", self.finish_reason in reasons),
        ):
            if not valid:
                value = getattr(self, name)
                message = f"AgentResult.{name} must be {expected}, not {value!r:.120} ({type(value).__name__})"
                raise InvalidAgentOutput(message)

    def usage(self) -> Usage | None:
        """Return the token counts in ``metadata``, or None if ``total_tokens`` is absent or 0.

        Raises InvalidAgentOutput if a count is not a whole number of at least 0.
        """
        counts = {name: self.metadata.get(name) or 0 for name in Usage.model_fields}
        if not counts["total_tokens"]:
            return None
        try:
            return Usage.model_validate(counts)
        except ValueError as exc:
            message = f"AgentResult.metadata has invalid token counts: {counts!r}"
            raise InvalidAgentOutput(message) from exc


def result_text(value: object, where: str) -> str:
    """Return a value from an agent as text. Raises InvalidAgentOutput, which names ``where`` it is from."""
    try:
        return json_text(value)
    except Exception as exc:  # a class of the agent's may raise anything when its fields are read
        message = f"{where} cannot be written as JSON: {exc}"
        raise InvalidAgentOutput(message) from exc


def has_type(value: object, *types: type) -> bool:
    """Return whether a value from an agent has one of the types, because Python does not check its type hints."""
    return isinstance(value, types)


def _is_tool_result(value: object) -> bool:
    return (
        isinstance(value, ToolResult)
        and has_type(value.tool_name, str)
        and has_type(value.latency_seconds, int, float)
        and math.isfinite(value.latency_seconds)
    )
