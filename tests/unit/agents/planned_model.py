"""A model with a fixed plan, whose tokens are numbered. It answers each conversation with the next part of its plan."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from agentstream.engines.base import (
    CONTINUE_PROMPT,
    REST_PROMPT,
    SUMMARY_PROMPT,
    EngineDelta,
    EngineToolCall,
    EngineToolCallDelta,
    ToolChoice,
    ToolSchema,
)
from agentstream.protocol.openai import ChatCompletionRequest, Usage

PIECE = 4  # characters of a call's arguments in one delta


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One turn of the plan. The calls of the client's tools are streamed in pieces."""

    tokens: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    calls: Sequence[EngineToolCall] = ()
    streamed: bool = False  # whether the calls are sent in pieces before the end
    limit: int = 1000  # tokens of one answer


class PlannedModel:
    """An engine. It checks that each conversation is valid and continues the plan exactly."""

    name = "planned"

    def __init__(self, *turns: Planned, summary: Planned | None = None, prefill: bool = False) -> None:
        self._turns = turns
        self._summary = summary or Planned()
        self.supports_prefill = prefill
        self.asked = 0

    async def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None = None,
    ) -> AsyncIterator[EngineDelta]:
        del request, tools, tool_choice
        check_conversation(messages)
        self._check_echo(messages)
        self.asked += 1
        await asyncio.sleep(0)
        if (beginning := self._beginning_of_json(messages)) is not None:
            documents = [call.arguments for turn in self._turns for call in turn.calls if turn.streamed]
            documents += ["".join(turn.tokens) for turn in self._turns]
            asked = str(messages[-1]["content"]) + str(messages[-2]["content"])
            unmade = [document for document in documents if f" {document}" not in asked.partition("\n\n")[0]]
            whole = next(document for document in unmade if document.startswith(beginning))
            yield EngineDelta(text=whole[len(beginning) :])
            yield EngineDelta(finish_reason="stop", usage=usage_of(1))
            return
        turn = self._turn(messages)
        said = self._said(messages)
        left = _after(turn.tokens, said, stripped=self.supports_prefill)
        for thought in turn.reasoning:
            yield EngineDelta(reasoning=thought)
        for token in left[: turn.limit]:
            yield EngineDelta(text=token)
        if len(left) > turn.limit:
            yield EngineDelta(finish_reason="length", usage=usage_of(turn.limit))
            return
        if turn.streamed:
            for position, call in enumerate(turn.calls):
                yield _delta(position, call.id, call.name, "")
                for start in range(0, len(call.arguments), PIECE):
                    yield _delta(position, "", "", call.arguments[start : start + PIECE])
        reason = "tool_calls" if turn.calls else "stop"
        echo = {"reasoning_content": "".join(turn.reasoning)} if turn.reasoning else {}
        yield EngineDelta(tool_calls=turn.calls, finish_reason=reason, usage=usage_of(len(left)), echo=echo)

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _check_echo(self, messages: Sequence[dict[str, Any]]) -> None:
        """Check that the reasoning of each turn with calls is sent back, as some model servers require."""
        turns = [message for message in messages if "tool_calls" in message]
        for planned, message in zip(self._turns, turns, strict=False):
            assert message.get("reasoning_content", "") == "".join(planned.reasoning)

    def _turn(self, messages: Sequence[dict[str, Any]]) -> Planned:
        if any(message.get("content") == SUMMARY_PROMPT for message in messages):
            return self._summary
        before = messages[: -2 if messages[-1].get("content") == CONTINUE_PROMPT else -1]
        return self._turns[len([message for message in before if message["role"] == "assistant"])]

    def _said(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the text that the model must continue."""
        last = messages[-1]
        if last.get("content") == CONTINUE_PROMPT:
            assert not self.supports_prefill
            last = messages[-2]
        if last["role"] != "assistant":
            return ""
        assert last["content"].strip()
        return str(last["content"])

    def _beginning_of_json(self, messages: Sequence[dict[str, Any]]) -> str | None:
        """Return the beginning of a JSON text of which the model is asked for the rest."""
        question = next(message for message in reversed(messages) if message["role"] == "user")
        content = str(question["content"])
        if "JSON object" not in content:
            return None
        if REST_PROMPT in content:
            return content.partition("\n\n")[2]
        return str(messages[-1]["content"]) if messages[-1] is not question else ""


def usage_of(tokens: int) -> Usage:
    return Usage(prompt_tokens=10, completion_tokens=tokens, total_tokens=10 + tokens)


def numbers(first: int, last: int) -> list[str]:
    """Return numbers as tokens, each with a space before it."""
    return [f" {number}" for number in range(first, last + 1)]


def check_conversation(messages: Sequence[dict[str, Any]]) -> None:
    """Check that a model server would take the conversation: each call has exactly one result, right after it."""
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, f"the calls {open_calls} have no result"
        for call in message.get("tool_calls") or ():
            open_calls.append(call["id"])
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert not open_calls, f"the calls {open_calls} have no result"


def _after(tokens: Sequence[str], said: str, *, stripped: bool) -> Sequence[str]:
    """Return the tokens after those in ``said``, from whose end the whitespace may be ``stripped``."""
    for count in range(len(tokens) + 1):
        text = "".join(tokens[:count])
        if (text.rstrip() if stripped else text) == said:
            return tokens[count:]
    message = f"the model did not say {said!r}"
    raise AssertionError(message)


def _delta(position: int, call_id: str, name: str, arguments: str) -> EngineDelta:
    return EngineDelta(tool_call_deltas=[EngineToolCallDelta(position, call_id, name, arguments)])
