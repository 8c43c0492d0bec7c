"""One inference: a request to the model, whose answer is streamed to the run. A long conversation is trimmed."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from agentstream import errors
from agentstream.agents.contract import Run
from agentstream.agents.orchestrator.client_tools import ClientToolCalls
from agentstream.agents.orchestrator.context_window import Message, TrimResult, size_of, trim
from agentstream.engines.base import Engine, EngineDelta, EngineError, EngineToolCall, ToolChoice, ToolSchema
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.protocol.plain_json import whole_text

# If the model server refuses a conversation as too long, these shares of its size are tried in order. The steps are
# large, because servers seldom report their limit and each try costs a request.
TRIMMED_TO: Final = (0.7, 0.4, 0.15)
# Converts a context window to characters. The usual value is 4. With 3, some conversations are trimmed too early, but
# none is too long.
CHARS_PER_TOKEN: Final = 3
INFERENCE_ECHO: Final = "inference_echo"  # the echo of an answer with calls, for an attempt that continues the run
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The prompt of one inference. ``keep`` are messages that are never trimmed.

    ``continued`` is the text that the engine continues by prefill. With ``hide_reasoning`` clients do not see the
    reasoning. If ``check`` is given, they see nothing of the answer: it is called with the whole text and returns the
    finish reason for clients.
    """

    request: ChatCompletionRequest
    messages: list[Message]
    tools: Sequence[ToolSchema]
    choice: ToolChoice | None
    client_names: Collection[str] = ()
    keep: Sequence[Message] = ()
    continued: str = ""
    hide_reasoning: bool = False
    check: Callable[[str], str] | None = None


class Inferences:
    """Asks the model for one run."""

    def __init__(
        self,
        engine: Engine,
        run: Run,
        context_tokens: int | None,
        used_ids: set[str],
        usages: list[Usage | None],
    ) -> None:
        """``context_tokens`` is the model's context window in tokens, or None if it is not known.

        ``used_ids`` are the ids of all calls so far. ``usages`` gets the usage of each completed inference; None if the
        engine reported none.
        """
        self._engine = engine
        self._run = run
        self._context_tokens = context_tokens
        self._used_ids = used_ids
        self._usages = usages
        self.last_turn = Turn()  # the latest inference, also if it failed

    async def stream(self, prompt: Prompt) -> Turn:
        """Stream one answer to the run and return it.

        ``prompt.messages`` is trimmed in place if it is too long for the context window, or if the model server refuses
        it as too long. Raises EngineError if the model fails.
        """
        turn = self.last_turn = Turn()
        messages = prompt.messages
        kept = {id(message) for message in prompt.keep}
        trimmed = self._trimmed_to_window(prompt, kept)
        if trimmed is not None:
            messages[:] = trimmed.messages
        whole = size_of(messages)
        for share in (*TRIMMED_TO, None):
            try:
                await self._stream(turn, prompt, trimmed)
            except EngineError as exc:
                too_long = exc.code == errors.CONTEXT_LENGTH and not turn.output_started
                trimmed = trim(messages, int(whole * share), kept) if share and too_long else None
                if trimmed is None:
                    raise
                messages[:] = trimmed.messages
                self.emit_end(turn, errors.CONTEXT_LENGTH)
            else:
                break
        return turn

    def emit_end(self, turn: Turn, finish_reason: str) -> None:
        """Emit the end of an inference."""
        calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in turn.calls]
        self._run.emit(
            "inference_end",
            {
                "model": self._run.request.model,
                **({"usage": turn.usage.model_dump()} if turn.usage else {}),
                "content": turn.text,
                "tool_calls": calls,
                "finish_reason": finish_reason,
            },
        )

    def _trimmed_to_window(self, prompt: Prompt, kept: Collection[int]) -> TrimResult | None:
        """Return the conversation trimmed to the context window; None if the window is not known or large enough."""
        if self._context_tokens is None:
            return None
        answer_tokens = prompt.request.output_token_limit or min(ANSWER_TOKENS, self._context_tokens // 4)
        tools_chars = len(orjson.dumps([tool.in_openai_form() for tool in prompt.tools]))
        target = (self._context_tokens - answer_tokens) * CHARS_PER_TOKEN - tools_chars
        return trim(prompt.messages, max(target, 0), kept) if size_of(prompt.messages) > target else None

    async def _stream(self, turn: Turn, prompt: Prompt, trimmed: TrimResult | None) -> None:
        run = self._run
        started: dict[str, Any] = {"model": run.request.model, "engine": self._engine.name}
        if trimmed is not None:
            removed = {"results_shortened": trimmed.results_shortened, "messages_dropped": trimmed.messages_dropped}
            started["trimmed"] = removed
        run.emit("inference_start", started)
        client_tool_calls = ClientToolCalls(run, prompt.client_names, self._used_ids)
        write = run.write if prompt.check is None else _show_nothing
        write_reasoning = _show_nothing if prompt.hide_reasoning or prompt.check else run.write_reasoning
        answer = self._engine.stream(prompt.request, prompt.messages, prompt.tools, prompt.choice)
        async with _closing(_after(prompt.continued, answer) if prompt.continued else answer) as deltas:
            async for delta in deltas:
                turn.output_started = turn.output_started or bool(
                    delta.text or delta.reasoning or delta.tool_call_deltas
                )
                write_reasoning(delta.reasoning)
                turn.texts.append(delta.text)
                write(delta.text)
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
        if turn.echo and turn.calls:
            run.emit(INFERENCE_ECHO, turn.echo)
        self._usages.append(turn.usage)
        self.emit_end(turn, turn.finish_reason if prompt.check is None else prompt.check(turn.text))


def _show_nothing(text: str) -> None:
    """Take a piece of an answer that clients must not see."""


async def _after(shown: str, deltas: AsyncIterator[EngineDelta]) -> AsyncGenerator[EngineDelta, None]:
    """Yield the continuation of ``shown`` without the whitespace at its end, if the model repeats exactly that.

    Model servers get a text without this whitespace, because some refuse it and others remove it.
    """
    space = shown[len(shown.rstrip()) :]
    waiting = ""
    async with _closing(deltas):
        async for delta in deltas:
            text = waiting + delta.text
            if not delta.finish_reason and len(text) < len(space) and space.startswith(text):
                waiting, text = text, ""
            else:
                text, waiting, space = text.removeprefix(space), "", ""
            yield replace(delta, text=text)


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
