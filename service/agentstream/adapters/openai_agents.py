"""Runs an agent of the OpenAI Agents SDK.

In your own module::

    from agentstream.adapters.openai_agents import OpenAIAgent

    agent = OpenAIAgent(Agent(name="Assistant"))  # AGENTSTREAM_AGENT=my_module:agent

The answer is the streamed text of the agent's model, and of the agents that it hands off to. For a structured output
the answer is the JSON that the model wrote. The SDK sends traces to OpenAI; to prevent this, call
``agents.set_tracing_disabled(True)``. Options may depend on the run: ``OpenAIAgent(agent, context=lambda run: ...)``.
"""

import asyncio
import contextlib
from typing import Any, Final

from agentstream.adapters.per_run import options_for, since_last_answer
from agentstream.adapters.run_reporter import RunReporter, as_text, usage_of
from agentstream.agents import AgentResult, Run
from agentstream.errors import missing_extra
from agentstream.protocol.openai import ChatMessage, ImagePart, TextPart

try:
    from agents import Agent, ModelResponse, RunHooks, Runner, RunResultStreaming, Tool
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "openai-agents")) from exc

PER_RUN: Final = frozenset(
    {"context", "session", "run_config", "max_turns", "conversation_id", "previous_response_id"},
)
_TEXT_EVENTS: Final = frozenset({"response.output_text.delta", "response.refusal.delta"})
# The result of a tool that raised starts with this text. The hook gets no other sign of the failure.
_TOOL_ERROR_PREFIX: Final = "An error occurred while running the tool"
# While a hook waits for the text, it checks at this interval whether a guardrail has ended the run.
_TEXT_POLL_S: Final = 0.1
# How long a cancelled run may take to close its model request; shorter than the worker's cleanup time for an agent.
_CLOSE_S: Final = 4.0


class OpenAIAgent:
    """An agent: ``await agent(run)`` runs the SDK's agent once. One instance serves any number of concurrent runs."""

    def __init__(self, agent: Agent[Any], **options: Any) -> None:  # noqa: ANN401 -- the SDK's own
        """``options``, for example ``max_turns`` and ``run_config``, are passed to ``Runner.run_streamed``.

        An option in ``PER_RUN`` may be a function of the run, for example ``context=lambda run: User(run.caller)``. The
        function may be async. If there is a ``session``, it holds the conversation: only the messages after the last
        answer of the request are added.
        """
        self._agent = agent
        self._options = options

    async def __call__(self, run: Run) -> AgentResult:
        """Run the SDK's agent and return the result. Exceptions of the SDK are raised unchanged.

        A cancel closes the request to the model server.
        """
        reporter = RunReporter(run, self._agent.name)
        hooks = _Hooks(run, reporter)
        given: Any = conversation(run.request.messages)
        options = await options_for(self._options, PER_RUN, run)
        if options.get("session") is not None:  # it already holds the messages up to the last answer
            given = conversation(since_last_answer(run.request.messages))
        result = Runner.run_streamed(self._agent, given, hooks=hooks, **options)
        hooks.result = result
        wrote = False
        try:
            async for event in result.stream_events():
                part: Any = event.data if event.type == "raw_response_event" else None
                if part is not None and part.type in _TEXT_EVENTS:
                    run.write(part.delta)
                    wrote = True
                    await run.drain()
                elif part is not None and part.type == "response.completed":
                    hooks.text_done.set()
        finally:
            if result.run_loop_task is not None and not result.run_loop_task.done():
                result.cancel()
                await asyncio.wait({result.run_loop_task}, timeout=_CLOSE_S)
        return reporter.result("" if wrote else as_text(result.final_output))


class _Hooks(RunHooks[Any]):
    """Receives the SDK's callbacks of models and tools.

    The text comes through another queue. So the callback at the end of an inference waits until its text was written.
    """

    result: RunResultStreaming

    def __init__(self, run: Run, reporter: RunReporter) -> None:
        self._run = run
        self._reporter = reporter
        self.text_done = asyncio.Event()  # set when all text of the current inference has been written

    async def on_agent_start(self, _context: Any, agent: Any) -> None:  # noqa: ANN401 -- the SDK's generics
        self._reporter.turn_start(agent.name)

    async def on_llm_start(self, _context: Any, agent: Any, *_: Any) -> None:  # noqa: ANN401 -- the SDK's generics
        self.text_done.clear()
        self._reporter.inference_start(_model_name(agent), "openai-agents")

    async def on_llm_end(self, _context: Any, agent: Any, response: ModelResponse) -> None:  # noqa: ANN401 -- the SDK's generics
        while not self.text_done.is_set() and not self.result.is_complete:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.text_done.wait(), _TEXT_POLL_S)
        used = usage_of(response.usage.input_tokens, response.usage.output_tokens)
        self._reporter.inference_end(_model_name(agent), used)

    async def on_tool_start(self, context: Any, _agent: Any, tool: Tool) -> None:  # noqa: ANN401 -- the SDK's generics
        call_id = getattr(context, "tool_call_id", "") or tool.name
        self._reporter.tool_start(call_id, tool.name, getattr(context, "tool_arguments", "{}"), call_id)
        await self._run.drain()

    async def on_tool_end(self, context: Any, _agent: Any, tool: Tool, result: object) -> None:  # noqa: ANN401 -- the SDK's generics
        failed = isinstance(result, str) and result.startswith(_TOOL_ERROR_PREFIX)
        self._reporter.tool_end(getattr(context, "tool_call_id", "") or tool.name, result, success=not failed)


def _model_name(agent: Any) -> str:  # noqa: ANN401 -- the SDK's generics
    model = agent.model
    return model if isinstance(model, str) else str(getattr(model, "model", "") or "")


def conversation(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Convert a conversation to input items of the Responses API, which the SDK takes."""
    items: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "tool":
            items.append({"type": "function_call_output", "call_id": message.tool_call_id, "output": message.text})
            continue
        if message.role != "assistant" or message.text:
            items.append({"role": message.role, "content": _content(message)})
        items += [
            {
                "type": "function_call",
                "call_id": call.id,
                "name": call.function.name,
                "arguments": call.function.arguments or "{}",
            }
            for call in message.tool_calls or ()
        ]
    return items


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    if message.role != "user" or not isinstance(message.content, list):
        return message.text
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, TextPart):
            parts.append({"type": "input_text", "text": part.text})
        elif isinstance(part, ImagePart):
            detail = part.image_url.detail or "auto"
            parts.append({"type": "input_image", "image_url": part.image_url.url, "detail": detail})
    return parts
