"""Requests to an OpenAI engine, and its answers."""

from collections.abc import Callable, Sequence
from typing import Any

from agentstream.engines.base import EngineDelta, ToolSchema
from agentstream.engines.openai import OpenAIEngine
from agentstream.protocol.openai import ChatCompletionRequest
from tests.model_server import DONE, FakeModelServer, chunk

CALCULATOR = ToolSchema("calculator", "Works things out.", {"type": "object", "properties": {}})
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]

MakeEngine = Callable[..., OpenAIEngine]


def request_of(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "requested-model", "messages": HELLO, **fields})


async def pieces_of(
    engine: OpenAIEngine,
    request: ChatCompletionRequest | None = None,
    tools: Sequence[ToolSchema] = (),
) -> list[EngineDelta]:
    return [piece async for piece in engine.stream(request or request_of(), HELLO, tools)]


async def calls_of(server: FakeModelServer, engine: OpenAIEngine, *parts: dict[str, Any]) -> list[tuple[str, str, str]]:
    server.scripts.append([*parts, chunk(finish_reason="tool_calls"), DONE])
    last = (await pieces_of(engine, tools=[CALCULATOR]))[-1]
    return [(tool_call.id, tool_call.name, tool_call.arguments) for tool_call in last.tool_calls]
