"""The built-in agent: asks a model and runs the tools that it calls, turn by turn, until the model answers."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import orjson

from agentstream.agents.contract import AgentResult, Run, ToolResult
from agentstream.agents.orchestrator.client_tools import ToolOffer
from agentstream.agents.orchestrator.loop_guard import LoopGuard
from agentstream.agents.orchestrator.turn import Turn, TurnRunner
from agentstream.engines.base import SUMMARY_PROMPT, Engine, EngineError, EngineToolCall, ToolSchema
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.telemetry import tracing
from agentstream.telemetry.masking import mask
from agentstream.tools.toolbox import Toolbox, ToolOutcome

AGENT_NAME: Final = "orchestrator"
MAX_NAME_CHARS: Final = 128  # limit for tool names and call ids in a span; OpenAI allows 64
TURN_SEPARATOR: Final = "\n\n"  # the stream inserts it where tools ran between two texts
FAILED_PREFIX: Final = "Error: "  # marks a failed tool call for the model, which sees only text

log = logging.getLogger(__name__)

# The tool calls of a turn with such a finish_reason may be incomplete. They are not run.
_TRUNCATED_REASONS: Final = frozenset({"length", "content_filter"})


class Orchestrator:
    """An agent: ``await orchestrator(run)`` streams the answer and returns it.

    One instance serves any number of concurrent runs and keeps no state between them.
    """

    name = AGENT_NAME

    def __init__(
        self,
        engine: Engine,
        toolbox: Toolbox,
        max_turns: int = 10,
        system_prompt: str | None = None,
        context_tokens: int | None = None,
    ) -> None:
        """Create an agent from a model and its tools. A turn is one answer of the model and the tool calls in it.

        ``system_prompt`` is added to conversations without a system or developer message. ``context_tokens`` is the
        model's context window in tokens: longer conversations are trimmed before they are sent. If it is None, a
        conversation is trimmed only after the model server has refused it. Raises ValueError if ``max_turns`` is
        less than 1.
        """
        if max_turns < 1:
            message = f"max_turns must be at least 1, not {max_turns}"
            raise ValueError(message)
        self._engine = engine
        self._toolbox = toolbox
        self._max_turns = max_turns
        self._system_prompt = system_prompt
        self._context_tokens = context_tokens

    async def __call__(self, run: Run) -> AgentResult:
        """Answer ``run.request``.

        The tools of one turn run concurrently. The result of a failed tool is its error text; the model reads it.

        A turn that calls a client's tool ends the run with finish_reason "tool_calls". Own tools that the same turn
        calls are not run, because the client's next request could not contain their results. The model can call them
        again in that request.

        If there is no answer after ``max_turns``, or if the model repeats the same call, the model is asked for a
        summary without tools. If it gives none, the text lists the tools that were tried. The finish_reason is
        "length".

        ``metadata`` holds the sum of the usage of all inferences, or nothing if one inference reported no usage.
        Raises EngineError if the model fails. A cancel closes the request to the model server.
        """
        run.emit("agent_turn_start", {"agent": AGENT_NAME, "input": _last_user_text(run.request)})
        turn_runner = TurnRunner(self._engine, run, self._context_tokens)
        tool_offer = ToolOffer(run.request, self._toolbox.schemas())
        guard = LoopGuard()
        messages = self._conversation(run.request)
        texts: list[str] = []
        results: list[ToolResult] = []
        finish_reason = ""
        turns = 0
        while not finish_reason:
            turns += 1
            tools, choice = tool_offer.for_turn(turns, last=turns == self._max_turns)
            turn = await turn_runner.run_turn(messages, tools, choice, tool_offer.client_names)
            texts.append(turn.text)
            if turn.finish_reason in _TRUNCATED_REASONS:
                finish_reason = turn.finish_reason
            elif any(call.name in tool_offer.client_names for call in turn.calls):
                finish_reason = "tool_calls"
            elif not turn.calls:
                finish_reason = "stop"
            else:
                outcomes = await self._call_tools(run, turn.calls, guard)
                results += [ToolResult(o.tool, o.content, o.success, o.latency_s) for o in outcomes]
                messages += _turn_as_messages(turn, outcomes)
                if guard.stuck or turns == self._max_turns:
                    texts.append(await self._sum_up(run, turn_runner, messages, tools, turns, results))
                    finish_reason = "length"
        run.emit("agent_turn_end", {"agent": AGENT_NAME, "turns": turns})
        return AgentResult(
            content=TURN_SEPARATOR.join(text for text in texts if text),
            tool_results=results,
            metadata=_summed(turn_runner.usages),
            finish_reason=finish_reason,
        )

    async def _sum_up(  # noqa: PLR0913, PLR0917 -- the whole state of the run
        self,
        run: Run,
        turn_runner: TurnRunner,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        turns: int,
        results: Sequence[ToolResult],
    ) -> str:
        """Stream and return the model's summary, or a list of the tools that were tried if the model gives none."""
        prompted = [*messages, {"role": "user", "content": SUMMARY_PROMPT}]
        try:
            summary = (await turn_runner.run_turn(prompted, tools, "none")).text
        except EngineError as exc:
            if turn_runner.last_turn.output_started:
                raise
            log.warning("the model could not summarise the run: %s", exc)
            summary = ""
        if not summary:
            summary = _fallback_summary(turns, results)
            run.write(summary)
        return summary

    def _conversation(self, request: ChatCompletionRequest) -> list[dict[str, Any]]:
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        if self._system_prompt and not any(message["role"] in {"system", "developer"} for message in messages):
            messages.insert(0, {"role": "system", "content": self._system_prompt})
        return messages

    async def _call_tools(self, run: Run, calls: Sequence[EngineToolCall], guard: LoopGuard) -> list[ToolOutcome]:
        """Run the calls concurrently; return their outcomes in the order of the calls."""
        refusals = [guard.refusal(call) for call in calls]
        for call in calls:
            started = {"tool": call.name, "arguments": call.arguments, "tool_call_id": call.id, "agent": AGENT_NAME}
            run.emit("tool_call_start", started)
        await run.drain()  # wait until their starts are stored: then no later attempt runs these tools again
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._call_tool(run, call, refused), name=f"tool {call.name}")
                    for call, refused in zip(calls, refusals, strict=True)
                ]
        except BaseExceptionGroup as failures:  # from run.emit; the worker handles the error by its class
            raise failures.exceptions[0] from failures
        return [task.result() for task in tasks]

    async def _call_tool(self, run: Run, call: EngineToolCall, refused: ToolOutcome | None) -> ToolOutcome:
        outcome = refused or await self._execute(call)
        run.emit(
            "tool_call_end",
            {
                "tool": call.name,
                "success": outcome.success,
                "latency": round(outcome.latency_s, 6),  # seconds, to the microsecond
                "result": outcome.content,
                "tool_call_id": call.id,
                "agent": AGENT_NAME,
            },
        )
        return outcome

    async def _execute(self, call: EngineToolCall) -> ToolOutcome:
        name = str(call.name)[:MAX_NAME_CHARS]  # the model wrote it: there may be no such tool
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": str(call.id)[:MAX_NAME_CHARS],
            "gen_ai.tool.type": "function",
            "gen_ai.agent.name": AGENT_NAME,
        }
        with tracing.span(f"execute_tool {name}", attributes=attributes) as span:
            outcome = await self._toolbox.call(call.name, call.arguments)
            if tracing.content_enabled():
                content = {"gen_ai.tool.call.arguments": call.arguments, "gen_ai.tool.call.result": outcome.content}
                span.set({key: mask(text)[: tracing.MAX_CONTENT_CHARS] for key, text in content.items()})
            if not outcome.success:
                span.fail("tool_error", outcome.content)
        return outcome


def _turn_as_messages(turn: Turn, outcomes: Sequence[ToolOutcome]) -> list[dict[str, Any]]:
    """Return a turn with tools as messages for the model: the assistant's message, then one message per result."""
    assistant = {
        **turn.echo,
        "role": "assistant",
        "content": turn.text or None,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _json_object(call.arguments)},
            }
            for call in turn.calls
        ],
    }
    tool_messages = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": outcome.content if outcome.success else f"{FAILED_PREFIX}{outcome.content}",
        }
        for call, outcome in zip(turn.calls, outcomes, strict=True)
    ]
    return [assistant, *tool_messages]


def _json_object(arguments: str) -> str:
    """Return the arguments, or ``{}`` if they are no JSON object: chat templates of model servers would fail on them.

    The result of the tool call quotes the malformed arguments.
    """
    try:
        return arguments if isinstance(orjson.loads(arguments), dict) else "{}"
    except ValueError:
        return "{}"


def _last_user_text(request: ChatCompletionRequest) -> str:
    return next((message.text for message in reversed(request.messages) if message.role == "user"), "")


def _summed(usages: Sequence[Usage | None]) -> dict[str, Any]:
    known = [usage for usage in usages if usage is not None]
    if len(known) < len(usages):
        return {}  # an incomplete sum would look like the real usage
    return {name: sum(getattr(usage, name) for usage in known) for name in Usage.model_fields}


def _fallback_summary(count_of_turns: int, results: Sequence[ToolResult]) -> str:
    calls = Counter(result.tool_name for result in results)
    failures = Counter(result.tool_name for result in results if not result.success)
    tried = [
        f"{name} ({count} {'call' if count == 1 else 'calls'}{f', {failures[name]} failed' if failures[name] else ''})"
        for name, count in calls.items()
    ]
    turns = "1 turn" if count_of_turns == 1 else f"{count_of_turns} turns"
    return f"I stopped after {turns} without an answer. I tried: {', '.join(tried)}."
