"""The built-in agent: asks a model, runs the tools it wants, asks again, until there is an answer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from service.agents.client_tools import CallsOut, Offer, ids_of
from service.agents.contract import AgentResult, Run, ToolResult
from service.engines.base import Engine, EngineError, EngineToolCall, Piece, ToolChoice, ToolSchema
from service.protocol.openai import ChatCompletionRequest, Usage
from service.tools.toolbox import Toolbox, ToolOutcome

AGENT_NAME: Final = "orchestrator"
TURN_SEPARATOR: Final = "\n\n"  # what the stream puts between texts that tools ran between
FAILED_PREFIX: Final = "Error: "  # tells a model, which sees only text, that a tool failed

# A turn that ended so may have lost the end of its tool calls; running half a call is worse than none.
_CUT_SHORT: Final = frozenset({"length", "content_filter"})


@dataclass(slots=True)
class _Turn:
    """One answer of the model, as it comes in."""

    texts: list[str] = field(default_factory=list)
    calls: list[EngineToolCall] = field(default_factory=list)
    finish_reason: str = ""  # not ended yet
    usage: Usage | None = None
    echo: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Orchestrator:
    """An agent: ``await orchestrator(run)`` streams the answer and returns it.

    One instance serves any number of runs at once; it keeps nothing between them.
    """

    def __init__(
        self,
        engine: Engine,
        toolbox: Toolbox,
        max_turns: int = 10,
        system_prompt: str | None = None,
    ) -> None:
        """Take the parts. A turn is one answer of the model and the tools it asked for in it.

        ``system_prompt`` is put in front of conversations that bring none of their own.
        """
        if max_turns < 1:
            message = f"max_turns must be at least 1, not {max_turns}"
            raise ValueError(message)
        self._engine = engine
        self._toolbox = toolbox
        self._max_turns = max_turns
        self._system_prompt = system_prompt

    async def __call__(self, run: Run) -> AgentResult:
        """Answer ``run.request``.

        Tools of one turn run at the same time; a tool that fails is told to the model, not raised. Without
        an answer after ``max_turns`` the text ends by saying what was tried, finish_reason "length". A turn that calls
        a tool of the client's ends the run, finish_reason "tool_calls"; our own tools it calls beside are not run,
        as the client's next request could not carry their results: the model calls them again, if it still needs to.
        ``metadata`` holds the usage summed over the turns, if the engine told it for every one.
        Raises EngineError; on cancellation the engine's request is closed first.
        """
        run.emit("agent_turn_start", {"agent": AGENT_NAME, "input": _last_user_text(run.request)})
        messages = self._conversation(run.request)
        turns: list[_Turn] = []
        results: list[ToolResult] = []
        used_ids = ids_of(run.request)
        offer = Offer(run.request, self._toolbox.schemas())
        closing = ""
        finish_reason = "stop"
        while True:
            tools, choice = offer.of_turn(len(turns) + 1, last=len(turns) + 1 == self._max_turns)
            turn = await self._infer(run, messages, tools, choice, CallsOut(run, offer.client_names, used_ids))
            turns.append(turn)
            if turn.finish_reason in _CUT_SHORT:
                finish_reason = turn.finish_reason
                break
            if any(call.name in offer.client_names for call in turn.calls):
                finish_reason = "tool_calls"
                break
            if not turn.calls:
                break
            outcomes = await self._call_tools(run, turn.calls)
            results += [ToolResult(o.tool, o.content, o.success, o.latency_s) for o in outcomes]
            if len(turns) == self._max_turns:
                closing, finish_reason = _closing_words(len(turns), results), "length"
                run.write(closing)
                break
            messages += _turn_as_messages(turn, outcomes)
        run.emit("agent_turn_end", {"agent": AGENT_NAME, "turns": len(turns)})
        return AgentResult(
            content=TURN_SEPARATOR.join(text for text in [*(turn.text for turn in turns), closing] if text),
            tool_results=results,
            metadata=_summed([turn.usage for turn in turns]),
            finish_reason=finish_reason,
        )

    def _conversation(self, request: ChatCompletionRequest) -> list[dict[str, Any]]:
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        if self._system_prompt and not any(message["role"] in {"system", "developer"} for message in messages):
            messages.insert(0, {"role": "system", "content": self._system_prompt})
        return messages

    async def _infer(
        self,
        run: Run,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        choice: ToolChoice | None,
        calls_out: CallsOut,
    ) -> _Turn:
        """Stream one answer of the model to the run."""
        model = run.request.model
        run.emit("inference_start", {"model": model, "engine": self._engine.name})
        turn = _Turn()
        async with _closing(self._engine.stream(run.request, messages, tools, choice)) as pieces:
            async for piece in pieces:
                run.write_reasoning(piece.reasoning)
                turn.texts.append(piece.text)
                run.write(piece.text)
                for part in piece.call_parts:
                    calls_out.receive(part)
                turn.calls += calls_out.finish(piece.tool_calls)
                turn.finish_reason = piece.finish_reason or turn.finish_reason
                turn.usage = piece.usage or turn.usage
                turn.echo = piece.echo or turn.echo
                await run.drain()
        if not turn.finish_reason:
            message = f"the engine {self._engine.name!r} ended its answer without a finish_reason"
            raise EngineError(message)
        run.emit(
            "inference_end",
            {
                "model": model,
                **({"usage": turn.usage.model_dump()} if turn.usage else {}),
                "content": turn.text,
                "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in turn.calls],
                "finish_reason": turn.finish_reason,
            },
        )
        return turn

    async def _call_tools(self, run: Run, calls: Sequence[EngineToolCall]) -> list[ToolOutcome]:
        """Run the calls at the same time; return their outcomes in the order of the calls."""
        for call in calls:
            started = {"tool": call.name, "arguments": call.arguments, "tool_call_id": call.id, "agent": AGENT_NAME}
            run.emit("tool_call_start", started)
        await run.drain()  # once their start is stored, no later attempt runs them again
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._call_tool(run, call), name=f"tool {call.name}") for call in calls]
        except BaseExceptionGroup as failures:  # of emit: one reason is enough, and the worker knows it by its class
            raise failures.exceptions[0] from failures
        return [task.result() for task in tasks]

    async def _call_tool(self, run: Run, call: EngineToolCall) -> ToolOutcome:
        outcome = await self._toolbox.call(call.name, call.arguments)
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


@asynccontextmanager
async def _closing(pieces: AsyncIterator[Piece]) -> AsyncIterator[AsyncIterator[Piece]]:
    """Close the engine's iterator on the way out: a cancelled run must not leave a model generating."""
    try:
        yield pieces
    finally:
        close = getattr(pieces, "aclose", None)  # every async generator has it; the protocol does not ask for it
        if close is not None:
            await close()


def _turn_as_messages(turn: _Turn, outcomes: Sequence[ToolOutcome]) -> list[dict[str, Any]]:
    """Return what the model reads of a turn with tools: its own message, then one per result."""
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
    answers = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": outcome.content if outcome.success else f"{FAILED_PREFIX}{outcome.content}",
        }
        for call, outcome in zip(turn.calls, outcomes, strict=True)
    ]
    return [assistant, *answers]


def _json_object(arguments: str) -> str:
    """Return the arguments, or ``{}`` if malformed: servers' chat templates fail on what they cannot parse.

    The tool's result quotes what was wrong.
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
        return {}  # a sum with a part missing would be taken for the whole
    return {name: sum(getattr(usage, name) for usage in known) for name in Usage.model_fields}


def _closing_words(count_of_turns: int, results: Sequence[ToolResult]) -> str:
    calls = Counter(result.tool_name for result in results)
    failures = Counter(result.tool_name for result in results if not result.success)
    tried = [
        f"{name} ({count} {'call' if count == 1 else 'calls'}{f', {failures[name]} failed' if failures[name] else ''})"
        for name, count in calls.items()
    ]
    turns = "1 turn" if count_of_turns == 1 else f"{count_of_turns} turns"
    return f"I stopped after {turns} without reaching an answer. What I tried: {', '.join(tried)}."
