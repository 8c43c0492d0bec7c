"""Emits the events of an adapter's run, and collects the run's result."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentstream.adapters.sub_agents import SubAgents, path_of
from agentstream.agents import AgentResult, Run, ToolResult
from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.events import AGENT_HANDOFF, TOOL_CALL_WAITING
from agentstream.protocol.openai import Usage
from agentstream.protocol.plain_json import json_text
from agentstream.telemetry.masking import mask

log = logging.getLogger(__name__)

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
    is_repeated: bool = False  # clients have seen the end of this call, from an earlier attempt
    path: Sequence[str] = ()  # of the sub-agent that called the tool


class RunReporter:
    """Emits a run's events and collects its tool results, usage and finish_reason for the AgentResult.

    In an attempt that continues a run, it knows the events that clients have seen, and emits none of them again.

    The ``path`` of a method names the sub-agent that the event is about. Without it, it is the current agent: the first
    one, or the one that a handoff has made a sub-agent.
    """

    def __init__(
        self, run: Run, agent: str, saved: Mapping[str, Any] | None = None, sub_agents: Collection[str] = ()
    ) -> None:
        """``agent`` is the agent's name in the events. ``saved`` is the value of ``saved()`` at the last checkpoint.

        ``sub_agents`` are the names with which paths of this adapter begin. Earlier events with other paths are not the
        adapter's: the user's own code has emitted them with ``run.child``.
        """
        self._run = run
        self._first_agent = self._agent = agent
        self._sub_agents = SubAgents(run, sub_agents)
        self._paths: dict[str, Sequence[str]] = {}  # of calls in ``interrupted`` that sub-agents made
        self._calls: dict[object, _OpenCall] = {}
        self._usages: list[Usage | None] = []
        self._results: list[ToolResult] = []
        self._finish_reason = "stop"
        self._turn_began = False  # in an earlier attempt, by this agent
        self._cut_inferences = 0  # of earlier attempts: started, but not ended
        self.interrupted: dict[str, str] = {}  # of earlier attempts: call id -> tool, started, but not ended
        self.ended: dict[str, str] = {}  # after the last checkpoint, in earlier attempts: call id -> result
        if saved is not None:
            self._restore(saved)
        for event in run.restored.events if run.restored is not None else ():
            if self._sub_agents.has_emitted(event.data):
                self._replay(event.type, event.data)

    @property
    def has_seen_calls(self) -> bool:
        """Whether earlier attempts began any tool call after the last checkpoint."""
        return bool(self.interrupted or self.ended)

    def saved(self) -> dict[str, Any]:
        """Return everything as JSON, for a checkpoint."""
        return {
            "agent": self._agent,
            "usages": [usage and usage.model_dump() for usage in self._usages],
            "results": [[each.tool_name, each.content, each.success, each.latency_seconds] for each in self._results],
            "finish_reason": self._finish_reason,
            "cut_inferences": self._cut_inferences,
            "interrupted": self.interrupted | {call.call_id: call.tool for call in self._calls.values()},
            "paths": self._paths | {call.call_id: list(call.path) for call in self._calls.values() if call.path},
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._agent, self._turn_began = saved["agent"], True
        self._usages = [usage and Usage.model_validate(usage) for usage in saved["usages"]]
        self._results = [ToolResult(*each) for each in saved["results"]]
        self._finish_reason = saved["finish_reason"]
        self._cut_inferences = saved["cut_inferences"]
        self.interrupted = dict(saved["interrupted"])
        self._paths = dict(saved.get("paths", {}))

    def _replay(self, event_type: str, data: dict[str, Any]) -> None:
        """Note an event that an earlier attempt emitted after its last checkpoint."""
        if event_type == "agent_turn_start":
            self._agent, self._turn_began = str(data.get("agent")), True
        elif event_type == "inference_start":
            self._cut_inferences += 1
        elif event_type == "inference_end":
            self._cut_inferences -= 1
            self._note_inference(data.get("usage") and Usage.model_validate(data["usage"]), data.get("finish_reason"))
        elif event_type == "tool_call_start":
            self.interrupted[str(data.get("tool_call_id"))] = str(data["tool"])
            self._paths[str(data.get("tool_call_id"))] = path_of(data)
        elif event_type == "tool_call_end":
            call_id, result = str(data.get("tool_call_id")), as_text(data.get("result"))
            self.interrupted.pop(call_id, None)
            self.ended[call_id] = result
            self._results.append(ToolResult(str(data["tool"]), result, bool(data["success"]), data["latency"]))

    def turn_start(self, agent: str | None = None) -> None:
        """Emit the start of an agent's turn. ``agent`` is the new name if the agent changes, as after a handoff."""
        began, self._turn_began = self._turn_began and agent in {None, self._agent}, False
        if began:
            return
        self._agent = agent or self._agent
        messages = self._run.request.messages
        question = next((message.text for message in reversed(messages) if message.role == "user"), "")
        self._emit("agent_turn_start", {"agent": self._agent, "input": question})

    def handoff(self, from_agent: str, to_agent: str) -> None:
        """Emit that an agent gives the conversation to another one."""
        self._emit(AGENT_HANDOFF, {"from": from_agent, "to": to_agent})

    def custom(self, event_type: str, data: dict[str, Any], path: Sequence[str]) -> None:
        """Emit an event of the user's own type. One that is too large is left out: the framework allows any size."""
        try:
            self._emit(event_type, data, path)
        except InvalidAgentOutput as exc:
            log.warning("an event of the framework is left out: %s", exc)

    def _emit(self, event_type: str, data: dict[str, Any], path: Sequence[str] | None = None) -> None:
        self._sub_agents.run_of(self._own_path if path is None else path).emit(event_type, data)

    @property
    def _own_path(self) -> Sequence[str]:
        """The path of the current agent."""
        return () if self._agent == self._first_agent else (self._agent,)

    def inference_start(self, model: str, engine: str, path: Sequence[str] | None = None) -> None:
        """Emit the start of an inference. One that an earlier attempt began goes on, so nothing is emitted."""
        if self._cut_inferences > 0:
            self._cut_inferences -= 1
            return
        self._emit("inference_start", {"model": model, "engine": engine}, path)

    def inference_end(
        self,
        model: str,
        usage: Usage | None,
        finish_reason: str | None = None,
        path: Sequence[str] | None = None,
    ) -> None:
        """Emit the end of an inference. ``usage`` is that of this inference, or None if it is not known."""
        self._note_inference(usage, finish_reason)
        known = {"usage": usage.model_dump()} if usage else {}
        self._emit("inference_end", {"model": model, **known, "finish_reason": finish_reason}, path)

    def _note_inference(self, usage: Usage | None, finish_reason: str | None) -> None:
        self._usages.append(usage)
        self._finish_reason = finish_reason if finish_reason in _FORWARDED_REASONS else "stop"

    def tool_start(  # noqa: PLR0913 -- the fields of the event
        self,
        key: object,
        tool: str,
        arguments: object,
        call_id: str,
        *,
        is_repeated: bool = False,
        path: Sequence[str] | None = None,
    ) -> None:
        """Emit the start of a tool call. On the event loop, await ``run.drain()`` before the tool runs.

        ``key`` identifies the call in ``tool_end``. The start is not emitted for a call that an earlier attempt began.
        Neither is the end if it has been seen: ``is_repeated`` says so if this reporter does not know.
        """
        is_repeated = call_id not in self.interrupted and (is_repeated or call_id in self.ended)
        path = self._own_path if path is None else path
        self._calls[key] = _OpenCall(tool, call_id, is_repeated=is_repeated, path=path)
        if is_repeated or self.interrupted.pop(call_id, None) is not None:
            return
        started = {"tool": tool, "arguments": as_text(arguments), "tool_call_id": call_id, "agent": self._agent}
        self._emit("tool_call_start", started, path)

    def tool_end(self, key: object, result: object, *, success: bool) -> None:
        """Emit the end of a tool call. Do nothing if ``key`` names no open call.

        A call that waited for people need not start again if ``key`` is its id.
        """
        call = self._calls.pop(key, None)
        if call is None and isinstance(key, str) and key in self.interrupted:
            call = _OpenCall(self.interrupted.pop(key), key, path=self._paths.get(key, ()))
        if call is not None and not call.is_repeated:
            self._end(call, result, success=success)

    def suspend(self, key: object) -> None:
        """Note that an open call waits for people. When it starts again, clients do not see a second start."""
        call = self._calls.pop(key, None)
        if call is not None and not call.is_repeated:
            self.interrupted[call.call_id] = call.tool
            self._paths[call.call_id] = list(call.path)
            waiting = {"tool": call.tool, "tool_call_id": call.call_id, "agent": self._agent}
            self._emit(TOOL_CALL_WAITING, waiting, call.path)

    def suspend_all(self) -> None:
        """Note that all open calls wait for people, and that the agent's turn goes on after their answers."""
        for key in list(self._calls):
            self.suspend(key)
        self._turn_began = True

    def end_interrupted(self, result: str) -> None:
        """Emit the end of each call that an earlier attempt began and that is not run again."""
        while self.interrupted:
            call_id, tool = self.interrupted.popitem()
            self.ended[call_id] = result
            self._end(_OpenCall(tool, call_id, path=self._paths.get(call_id, ())), result, success=False)

    def _end(self, call: _OpenCall, result: object, *, success: bool) -> None:
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
        self._emit("tool_call_end", ended, call.path)

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
