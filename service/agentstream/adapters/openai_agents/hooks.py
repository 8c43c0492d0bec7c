"""Receives the SDK's callbacks, emits the events of a run, and makes its checkpoints."""

import asyncio
import contextlib
from typing import Any, Final

from agents import ModelResponse, RunHooks, RunResultStreaming, Tool
from pydantic_core import to_jsonable_python

from agentstream.adapters.resuming import keep
from agentstream.adapters.run_reporter import RunReporter, as_text, usage_of
from agentstream.agents import Run

ADAPTER: Final = "openai_agents"
# Items that need no result from the SDK. After other items, such as computer calls, there is no checkpoint.
_COMPLETE_ITEMS: Final = frozenset(
    {"message", "reasoning", "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"}
)
# The result of a tool that raised starts with this text. The hook gets no other sign of the failure.
_TOOL_ERROR_PREFIX: Final = "An error occurred while running the tool"
# While a hook waits for the text, it checks at this interval whether a guardrail has ended the run.
_TEXT_POLL_S: Final = 0.1


class Hooks(RunHooks[Any]):
    """Receives the SDK's callbacks of models and tools.

    The text comes through another queue. So the callback at the end of an inference waits until its text was written.
    """

    result: RunResultStreaming

    def __init__(self, run: Run, reporter: RunReporter, turns: int, question_ids: list[str], *, can_save: bool) -> None:
        """Begin after ``turns`` inferences of earlier attempts. ``question_ids`` may grow."""
        self._run = run
        self._reporter = reporter
        self._can_save = can_save
        self._question_ids = question_ids
        self._items: list[Any] = []  # the input of the current inference
        self._agent = ""  # the name of the agent of the current inference
        self._answered: list[Any] = []  # the input and the output of the last inference, and the results of its tools
        self.is_first = True  # the state from which this attempt began is stored
        self.turns = turns
        self.wrote = False  # whether any text was written
        self.text_done = asyncio.Event()  # set when all text of the current inference has been written

    async def on_agent_start(self, _context: Any, agent: Any) -> None:  # noqa: ANN401 -- the SDK's generics
        """Report the start of an agent."""
        self._reporter.turn_start(agent.name)

    async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:  # noqa: ANN401, ARG002 -- the SDK passes names
        """Report a handoff."""
        self._reporter.handoff(from_agent.name, to_agent.name)

    async def on_llm_start(self, _context: Any, agent: Any, _prompt: Any, items: list[Any]) -> None:  # noqa: ANN401 -- the SDK's generics
        """Make a checkpoint, and report the start of an inference."""
        self.text_done.clear()
        self._items = list(items)
        if not self.is_first:
            await self._save(agent.name, self._items)
        self.is_first = False
        self._reporter.inference_start(_model_name(agent), "openai-agents")

    async def on_llm_end(self, _context: Any, agent: Any, response: ModelResponse) -> None:  # noqa: ANN401 -- the SDK's generics
        """Report the end of an inference, and make a checkpoint."""
        while not self.text_done.is_set() and not self.result.is_complete:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.text_done.wait(), _TEXT_POLL_S)
        used = usage_of(response.usage.input_tokens, response.usage.output_tokens)
        self._reporter.inference_end(_model_name(agent), used)
        self.turns += 1
        self._answered, self._agent = [*self._items, *response.to_input_items()], agent.name
        open_items = {item.type for item in response.output} - _COMPLETE_ITEMS
        if open_items <= {"function_call"}:
            is_complete = self.wrote and not open_items
            await self._save(agent.name, self._answered, is_complete=is_complete)

    def restore(self, agent: str, items: list[Any]) -> None:
        """Continue after an inference of an earlier attempt, without a new one."""
        self._agent, self._answered, self.is_first = agent, list(items), False

    async def save_asking(self, asking: dict[str, Any]) -> None:
        """Make a checkpoint before or after people are asked."""
        await self._save(self._agent, self._answered, asking=asking)

    async def _save(
        self, agent: str, items: list[Any], *, is_complete: bool = False, asking: dict[str, Any] | None = None
    ) -> None:
        """Make a checkpoint: the next attempt gives these items to this agent, or asks people first."""
        if not self._can_save:
            return
        state = {
            "items": to_jsonable_python(items),
            "agent": agent,
            "asking": asking,
            "question_ids": self._question_ids,
            "turns": self.turns,
            "wrote": self.wrote,
            "is_complete": is_complete,
            "reporter": self._reporter.saved(),
        }
        await keep(self._run, ADAPTER, state)

    async def on_tool_start(self, context: Any, _agent: Any, tool: Tool) -> None:  # noqa: ANN401 -- the SDK's generics
        """Report the start of a tool. It runs after this returns."""
        call_id = getattr(context, "tool_call_id", "") or tool.name
        self._reporter.tool_start(call_id, tool.name, getattr(context, "tool_arguments", "{}"), call_id)
        await self._run.drain()

    async def on_tool_end(self, context: Any, _agent: Any, tool: Tool, result: object) -> None:  # noqa: ANN401 -- the SDK's generics
        """Report the result of a tool."""
        failed = isinstance(result, str) and result.startswith(_TOOL_ERROR_PREFIX)
        call_id = getattr(context, "tool_call_id", "") or tool.name
        self._reporter.tool_end(call_id, result, success=not failed)
        self._answered.append({"type": "function_call_output", "call_id": call_id, "output": as_text(result)})


def _model_name(agent: Any) -> str:  # noqa: ANN401 -- the SDK's generics
    model = agent.model
    return model if isinstance(model, str) else str(getattr(model, "model", "") or "")
