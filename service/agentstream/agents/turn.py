"""One turn of a model: asked, streamed to the run, made to fit its context window, continued if it was cut short."""

import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agentstream import errors
from agentstream.agents.client_tools import ClientToolCalls, used_call_ids
from agentstream.agents.context_window import Message, TrimResult, size_of, trim
from agentstream.agents.contract import Run
from agentstream.engines.base import (
    CONTINUE_PROMPT,
    SUMMARY_PROMPT,
    Engine,
    EngineDelta,
    EngineError,
    EngineToolCall,
    ToolChoice,
    ToolSchema,
)
from agentstream.protocol.openai import ChatCompletionRequest, Usage

log = logging.getLogger(__name__)

# The sizes tried, as shares of the first, when the model server says the conversation is too long: it seldom says by
# how much, and each try costs a request.
TRIMMED_TO: Final = (0.7, 0.4, 0.15)
# Of an answer the model server cut short at its own limit: four times that limit is a long answer.
MAX_CONTINUATIONS: Final = 3
# For a known limit: fewer than the usual 4, as too small a guess only trims a little early.
CHARS_PER_TOKEN: Final = 3
ANSWER_TOKENS: Final = 1024  # room left for the answer, if the client set no limit of its own


@dataclass(slots=True)
class Turn:
    """One answer of the model, as it comes in. ``echo`` are fields its server wants to see again."""

    texts: list[str] = field(default_factory=list)
    calls: list[EngineToolCall] = field(default_factory=list)
    finish_reason: str = ""  # not ended yet
    usage: Usage | None = None
    echo: dict[str, Any] = field(default_factory=dict)
    output_started: bool = False  # whether any of it was shown

    @property
    def text(self) -> str:
        """Everything said."""
        return "".join(self.texts)


class TurnRunner:
    """Asks the model on behalf of one run."""

    def __init__(self, engine: Engine, run: Run, context_tokens: int | None) -> None:
        """Take the engine; ``context_tokens`` is its context window, if it is known."""
        self._engine = engine
        self._run = run
        self._context_tokens = context_tokens
        self._used_ids = used_call_ids(run.request)
        self.usages: list[Usage | None] = []  # of everything that was answered
        self.last_turn = Turn()  # what was last asked for, also if it failed

    async def run_turn(
        self,
        messages: list[Message],
        tools: Sequence[ToolSchema],
        choice: ToolChoice | None,
        client_names: Collection[str] = (),
    ) -> Turn:
        """Stream one answer to the run and return it. ``messages`` is trimmed in place if it is too long.

        Calls of ``client_names`` are streamed as well. An answer cut at the model server's own limit is asked on, a
        few times; if that fails, it stays as it is. Raises EngineError.
        """
        keep: list[Message] = []
        for message in reversed(messages):
            if message["role"] == "user":
                keep.insert(0, message)
                if message.get("content") != SUMMARY_PROMPT:
                    break
        turn = await self._stream_with_trimming(messages, tools, choice, client_names, keep)
        for _ in range(MAX_CONTINUATIONS):
            if not self._can_continue(turn):
                break
            said = [{"role": "assistant", "content": turn.text}, {"role": "user", "content": CONTINUE_PROMPT}]
            try:
                more = await self._stream_with_trimming([*messages, *said], tools, choice, client_names, [*keep, *said])
            except EngineError as exc:
                if self.last_turn.output_started:
                    raise
                log.info("an answer that was cut short could not be continued: %s", exc)
                break
            turn.texts += more.texts
            turn.calls += more.calls
            turn.finish_reason = more.finish_reason
            turn.echo = more.echo or turn.echo
            if not more.text:
                break
        return turn

    def _can_continue(self, turn: Turn) -> bool:
        """Whether more text would be more of the answer: half a JSON document is seldom continued as one."""
        request = self._run.request
        plain = request.response_format is None or request.response_format.get("type") == "text"
        cut = turn.finish_reason == "length" and request.output_token_limit is None
        return cut and plain and bool(turn.text.strip()) and not turn.calls

    async def _stream_with_trimming(
        self,
        messages: list[Message],
        tools: Sequence[ToolSchema],
        choice: ToolChoice | None,
        client_names: Collection[str],
        keep: Sequence[Message],
    ) -> Turn:
        """Stream one answer, with a shorter conversation if the model server finds it too long."""
        turn = self.last_turn = Turn()
        kept = {id(message) for message in keep}
        trimmed = self._trimmed_to_window(messages, tools, kept)
        if trimmed is not None:
            messages[:] = trimmed.messages
        whole = size_of(messages)
        for share in (*TRIMMED_TO, None):
            try:
                await self._stream(turn, messages, tools, choice, client_names, trimmed)
            except EngineError as exc:
                too_long = errors.failure_code(str(exc)) == errors.CONTEXT_LENGTH and not turn.output_started
                trimmed = trim(messages, int(whole * share), kept) if share and too_long else None
                if trimmed is None:
                    raise
                messages[:] = trimmed.messages
                self._run.emit("inference_end", _inference_end_data(self._run.request, turn, errors.CONTEXT_LENGTH))
            else:
                break
        return turn

    def _trimmed_to_window(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], kept: Collection[int]
    ) -> TrimResult | None:
        """Return the conversation trimmed to the known limit; None if there is none, or it fits."""
        if self._context_tokens is None:
            return None
        answer_tokens = self._run.request.output_token_limit or min(ANSWER_TOKENS, self._context_tokens // 4)
        offered = len(orjson.dumps([tool.in_openai_form() for tool in tools]))
        target = (self._context_tokens - answer_tokens) * CHARS_PER_TOKEN - offered
        return trim(messages, max(target, 0), kept) if size_of(messages) > target else None

    async def _stream(  # noqa: PLR0913, PLR0917 -- a request's parts
        self,
        turn: Turn,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        choice: ToolChoice | None,
        client_names: Collection[str],
        trimmed: TrimResult | None,
    ) -> None:
        run = self._run
        started: dict[str, Any] = {"model": run.request.model, "engine": self._engine.name}
        if trimmed is not None:
            lost = {"results_shortened": trimmed.results_shortened, "messages_dropped": trimmed.messages_dropped}
            started["trimmed"] = lost
        run.emit("inference_start", started)
        client_tool_calls = ClientToolCalls(run, client_names, self._used_ids)
        async with _closing(self._engine.stream(run.request, messages, tools, choice)) as deltas:
            async for delta in deltas:
                turn.output_started = turn.output_started or bool(
                    delta.text or delta.reasoning or delta.tool_call_deltas
                )
                run.write_reasoning(delta.reasoning)
                turn.texts.append(delta.text)
                run.write(delta.text)
                for part in delta.tool_call_deltas:
                    client_tool_calls.receive(part)
                turn.calls += client_tool_calls.finish(delta.tool_calls)
                turn.finish_reason = delta.finish_reason or turn.finish_reason
                turn.usage = delta.usage or turn.usage
                turn.echo = delta.echo or turn.echo
                await run.drain()
        if not turn.finish_reason:
            message = f"the engine {self._engine.name!r} ended its answer without a finish_reason"
            raise EngineError(message)
        self.usages.append(turn.usage)
        run.emit("inference_end", _inference_end_data(run.request, turn, turn.finish_reason))


def _inference_end_data(request: ChatCompletionRequest, turn: Turn, finish_reason: str) -> dict[str, Any]:
    return {
        "model": request.model,
        **({"usage": turn.usage.model_dump()} if turn.usage else {}),
        "content": turn.text,
        "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in turn.calls],
        "finish_reason": finish_reason,
    }


@asynccontextmanager
async def _closing(deltas: AsyncIterator[EngineDelta]) -> AsyncIterator[AsyncIterator[EngineDelta]]:
    """Close the engine's iterator on the way out: a cancelled run must not leave a model generating."""
    try:
        yield deltas
    finally:
        close = getattr(deltas, "aclose", None)  # every async generator has it; the protocol does not ask for it
        if close is not None:
            await close()
