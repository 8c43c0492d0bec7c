"""One turn of a model: streams its answer to the run, trims a long conversation and continues a truncated answer."""

import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agentstream import errors
from agentstream.agents.contract import Run
from agentstream.agents.orchestrator.client_tools import ClientToolCalls, used_call_ids
from agentstream.agents.orchestrator.context_window import Message, TrimResult, size_of, trim
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
from agentstream.protocol.plain_json import whole_text

log = logging.getLogger(__name__)

# If the model server refuses a conversation as too long, these shares of its size are tried in order. The steps are
# large, because servers seldom report their limit and each try costs a request.
TRIMMED_TO: Final = (0.7, 0.4, 0.15)
# How often a truncated answer is continued. Four times the model server's limit is a long answer.
MAX_CONTINUATIONS: Final = 3
# Converts a context window to characters. The usual value is 4. With 3, some conversations are trimmed too early, but
# none is too long.
CHARS_PER_TOKEN: Final = 3
ANSWER_TOKENS: Final = 1024  # reserved for the answer if the client sets no limit


@dataclass(slots=True)
class Turn:
    """One answer of the model; it grows while the answer is streamed. For ``echo`` see ``EngineDelta``."""

    texts: list[str] = field(default_factory=list)
    calls: list[EngineToolCall] = field(default_factory=list)
    finish_reason: str = ""  # empty until the answer has ended
    usage: Usage | None = None
    echo: dict[str, Any] = field(default_factory=dict)
    output_started: bool = False  # whether a part of it was streamed to the client

    @property
    def text(self) -> str:
        """The text of the answer so far. The model server may have cut a character in two."""
        return whole_text("".join(self.texts))


class TurnRunner:
    """Asks the model, turn by turn, for one run."""

    def __init__(self, engine: Engine, run: Run, context_tokens: int | None) -> None:
        """``context_tokens`` is the model's context window in tokens, or None if it is not known."""
        self._engine = engine
        self._run = run
        self._context_tokens = context_tokens
        self._used_ids = used_call_ids(run.request)
        self.usages: list[Usage | None] = []  # one per completed inference; None if the engine reported none
        self.last_turn = Turn()  # the latest inference, also if it failed

    async def run_turn(
        self,
        messages: list[Message],
        tools: Sequence[ToolSchema],
        choice: ToolChoice | None,
        client_names: Collection[str] = (),
    ) -> Turn:
        """Stream one answer to the run and return it.

        ``messages`` is trimmed in place if it is too long. Calls of the tools in ``client_names`` are streamed to the
        client. If the model server truncates the answer at its own limit, the model is asked to continue, up to
        ``MAX_CONTINUATIONS`` times; if that fails, the truncated answer is returned. Raises EngineError if the model
        fails.
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
            added = [{"role": "assistant", "content": turn.text}, {"role": "user", "content": CONTINUE_PROMPT}]
            longer = [*messages, *added]
            try:
                more = await self._stream_with_trimming(longer, tools, choice, client_names, [*keep, *added])
            except EngineError as exc:
                if self.last_turn.output_started:
                    raise
                log.info("a truncated answer could not be continued: %s", exc)
                break
            turn.texts += more.texts
            turn.calls += more.calls
            turn.finish_reason = more.finish_reason
            turn.echo = more.echo or turn.echo
            if not more.text:
                break
        return turn

    def _can_continue(self, turn: Turn) -> bool:
        """Return whether the model server truncated the answer and the model can continue it.

        Only plain text is continued: a model seldom continues half a JSON document correctly.
        """
        request = self._run.request
        plain = request.response_format is None or request.response_format.get("type") == "text"
        truncated = turn.finish_reason == "length" and request.output_token_limit is None
        return truncated and plain and bool(turn.text.strip()) and not turn.calls

    async def _stream_with_trimming(
        self,
        messages: list[Message],
        tools: Sequence[ToolSchema],
        choice: ToolChoice | None,
        client_names: Collection[str],
        keep: Sequence[Message],
    ) -> Turn:
        """Stream one answer. If the model server refuses the conversation as too long, trim it and ask again."""
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
                too_long = exc.code == errors.CONTEXT_LENGTH and not turn.output_started
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
        """Return the conversation trimmed to the context window; None if the window is not known or large enough."""
        if self._context_tokens is None:
            return None
        answer_tokens = self._run.request.output_token_limit or min(ANSWER_TOKENS, self._context_tokens // 4)
        tools_chars = len(orjson.dumps([tool.in_openai_form() for tool in tools]))
        target = (self._context_tokens - answer_tokens) * CHARS_PER_TOKEN - tools_chars
        return trim(messages, max(target, 0), kept) if size_of(messages) > target else None

    async def _stream(  # noqa: PLR0913, PLR0917 -- the parts of one request
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
            removed = {"results_shortened": trimmed.results_shortened, "messages_dropped": trimmed.messages_dropped}
            started["trimmed"] = removed
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
                turn.calls += client_tool_calls.finish([_with_whole_text(call) for call in delta.tool_calls])
                turn.finish_reason = delta.finish_reason or turn.finish_reason
                turn.usage = delta.usage or turn.usage
                turn.echo = _whole_values(delta.echo) or turn.echo
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


def _with_whole_text(call: EngineToolCall) -> EngineToolCall:
    return EngineToolCall(call.id, whole_text(call.name), whole_text(call.arguments))


def _whole_values(echo: dict[str, Any]) -> dict[str, Any]:
    return {name: whole_text(value) if isinstance(value, str) else value for name, value in echo.items()}


@asynccontextmanager
async def _closing(deltas: AsyncIterator[EngineDelta]) -> AsyncIterator[AsyncIterator[EngineDelta]]:
    """Close the engine's iterator on exit. Otherwise the model would continue to generate after a cancel."""
    try:
        yield deltas
    finally:
        close = getattr(deltas, "aclose", None)  # async generators have it; the Engine protocol does not require it
        if close is not None:
            await close()
