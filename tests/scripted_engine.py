"""An engine that answers with a test's script, and helpers for tests of the orchestrator."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from agentstream.engines.base import EngineDelta, EngineToolCall, ToolChoice, ToolSchema
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.tools.base import Tool
from agentstream.tools.toolbox import Toolbox, default_tools
from tests.helpers import TIMEOUT_S, RecordingSink

WAIT = "wait"  # an item of a script: from here on the model sends nothing

Turn = Sequence[EngineDelta | str | Exception]


class ScriptedEngine:
    """Answers each turn with the next script; records its arguments and counts its open iterators."""

    name = "scripted"

    def __init__(self, *turns: Turn) -> None:
        self._turns = list(turns)
        self.conversations: list[list[dict[str, Any]]] = []
        self.offered: list[list[str]] = []
        self.schemas: list[list[ToolSchema]] = []
        self.choices: list[ToolChoice | None] = []
        self.silent = asyncio.Event()
        self.open = 0

    async def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None = None,
    ) -> AsyncIterator[EngineDelta]:
        del request
        self.conversations.append(json.loads(json.dumps(list(messages))))
        self.offered.append([tool.name for tool in tools])
        self.schemas.append(list(tools))
        self.choices.append(tool_choice)
        self.open += 1
        try:
            for item in self._turns.pop(0):
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, str):
                    self.silent.set()
                    await asyncio.get_running_loop().create_future()
                else:
                    yield item
        finally:
            self.open -= 1

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def call(name: str, arguments: str = "{}", call_id: str = "c1") -> EngineToolCall:
    return EngineToolCall(call_id, name, arguments)


def answer_turn(text: str, usage: Usage | None = None, finish_reason: str = "stop") -> Turn:
    words = [EngineDelta(text=word) for word in text.split("|") if word]
    return [*words, EngineDelta(finish_reason=finish_reason, usage=usage)]


def tool_call_turn(*calls: EngineToolCall, text: str = "", usage: Usage | None = None) -> Turn:
    return [*answer_turn(text)[:-1], EngineDelta(tool_calls=calls, finish_reason="tool_calls", usage=usage)]


def toolbox(*tools: Tool, timeout_s: float = TIMEOUT_S) -> Toolbox:
    return Toolbox([*default_tools(), *tools], timeout_s)


def kinds(sink: RecordingSink) -> list[str]:
    return [kind for kind, _ in sink.facts]


def data_of(sink: RecordingSink, kind: str) -> list[Any]:
    return [data for each, data in sink.facts if each == kind]
