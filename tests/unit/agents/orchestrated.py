"""Runs of the built-in agent with a scripted engine and a recording sink."""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.orchestrator import Orchestrator
from agentstream.protocol.events import Event
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.stream.transcript import AnswerFold
from agentstream.tools.base import Tool, ToolError
from tests.helpers import TIMEOUT_S, RecordingSink
from tests.scripted_engine import ScriptedEngine, kinds, toolbox


class Meeting:
    """A tool whose calls wait for each other: they return only if ``size`` of them run concurrently."""

    name = "meeting"
    description = "Waits for the other calls."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {"n": {"type": "integer"}}}

    def __init__(self, size: int) -> None:
        self._barrier = asyncio.Barrier(size)
        self.arrivals = asyncio.Semaphore(0)
        self.cancelled = 0

    async def run(self, arguments: dict[str, Any]) -> str:
        self.arrivals.release()
        try:
            await self._barrier.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"met {arguments.get('n')}"


class Failing:
    name = "failing"
    description = "Fails."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}}

    async def run(self, arguments: dict[str, Any]) -> str:
        del arguments
        message = "it rained"
        raise ToolError(message)


def run_of(*messages: dict[str, Any]) -> tuple[Run, RecordingSink]:
    sink = RecordingSink()
    conversation = messages or ({"role": "user", "content": "what is 17*23?"},)
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": conversation})
    return Run("chatcmpl-1", request, sink), sink


async def result_of(
    engine: ScriptedEngine,
    *tools: Tool,
    messages: Sequence[dict[str, Any]] = (),
    timeout_s: float = TIMEOUT_S,
    **options: Any,
) -> tuple[AgentResult, RecordingSink]:
    run, sink = run_of(*messages)
    result = await Orchestrator(engine, toolbox(*tools, timeout_s=timeout_s), **options)(run)
    result.check()
    assert_content_is_the_streamed_text(result, sink)
    assert engine.open == 0
    return result, sink


def assert_content_is_the_streamed_text(result: AgentResult, sink: RecordingSink) -> None:
    """Assemble the answer from the events, as a client does, and compare."""
    completion = AnswerFold()
    for seq, (kind, data) in enumerate(sink.facts, 1):
        completion.receive(Event(1, seq, kind, data))
    assert completion.content == result.content


async def emitted(sink: RecordingSink, kind: str) -> None:
    """Wait for an event of this kind."""
    while kind not in kinds(sink):
        sink.new.clear()
        await sink.new.wait()
