"""Runs an agent of the OpenAI Agents SDK.

In your own module::

    from agentstream.adapters.openai_agents import OpenAIAgent

    agent = OpenAIAgent(Agent(name="Assistant"))  # AGENTSTREAM_AGENT=my_module:agent

The answer is the streamed text of the agent's model, and of the agents that it hands off to. For a structured output
the answer is the JSON that the model wrote. The SDK sends traces to OpenAI; to prevent this, call
``agents.set_tracing_disabled(True)``. Options may depend on the run: ``OpenAIAgent(agent, context=lambda run: ...)``.

The first agent hands off to others as to sub-agents: their events have the field ``agent_path`` with their name, and
the event ``agent_handoff`` says who hands off to whom. An agent as a tool shows only its call, because the SDK does not
show what it does. To show it, call it with a child of the run in a tool of your own: ``OpenAIAgent(helper)(child)``.

The agent is resumable, unless the conversation is kept elsewhere: in a session or by OpenAI. The items of the
conversation are stored before and after each inference. If the worker is lost, another one continues with them. An
answer that was cut is continued by the model. The model is told which tools were interrupted or not run.
"""

import asyncio
import contextlib
from typing import Any, Final

from agentstream.adapters.per_run import options_for, since_last_answer
from agentstream.adapters.resuming import CONTINUE_PROMPT, NOT_RUN, UNKNOWN_OUTCOME, keep, kept, shown_text
from agentstream.adapters.run_reporter import RunReporter, as_text, usage_of
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError, missing_extra
from agentstream.protocol.openai import ChatMessage, ImagePart, TextPart

try:
    from agents import Agent, Handoff, ModelResponse, RunHooks, Runner, RunResultStreaming, Tool
    from agents.run import DEFAULT_MAX_TURNS
    from pydantic_core import to_jsonable_python
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "openai-agents")) from exc

PER_RUN: Final = frozenset(
    {"context", "session", "run_config", "max_turns", "conversation_id", "previous_response_id"},
)
ADAPTER: Final = "openai_agents"
# With one of these options the conversation is kept elsewhere, so a repeated input would be added to it twice.
_REMEMBERED: Final = frozenset({"session", "conversation_id", "previous_response_id", "auto_previous_response_id"})
# Items that need no result from the SDK. After other items, such as computer calls, there is no checkpoint.
_COMPLETE_ITEMS: Final = frozenset(
    {"message", "reasoning", "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"}
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
        self.resumable = not any(options.get(name) for name in _REMEMBERED)

    async def __call__(self, run: Run) -> AgentResult:
        """Run the SDK's agent and return the result. Exceptions of the SDK are raised unchanged.

        A cancel closes the request to the model server. Raises AgentError if the run was continued and cannot be: a
        JSON answer was cut, or the current agent is not found among the handoffs.
        """
        saved = kept(run, ADAPTER)
        names = [agent.name for agent in _reachable(self._agent)]
        reporter = RunReporter(run, self._agent.name, saved and saved["reporter"], names)
        if saved is not None and saved["is_complete"]:
            return reporter.result()
        agent = self._agent if saved is None else _agent_named(saved["agent"], self._agent)
        options = await options_for(self._options, PER_RUN, run)
        hooks = _Hooks(run, reporter, saved["turns"] if saved else 0, can_save=self.resumable)
        if options.get("session") is not None:  # it already holds the messages up to the last answer
            given: list[Any] = conversation(since_last_answer(run.request.messages))
        else:
            given = _begin(run, reporter, saved, agent)
        if hooks.turns and (max_turns := options.get("max_turns", DEFAULT_MAX_TURNS)) is not None:
            options["max_turns"] = max(1, max_turns - hooks.turns)
        result = Runner.run_streamed(agent, given, hooks=hooks, **options)
        hooks.result = result
        hooks.wrote = bool(saved and saved["wrote"]) or bool(shown_text(run))
        try:
            async for event in result.stream_events():
                part: Any = event.data if event.type == "raw_response_event" else None
                if part is not None and part.type in _TEXT_EVENTS:
                    run.write(part.delta)
                    hooks.wrote = True
                    await run.drain()
                elif part is not None and part.type == "response.completed":
                    hooks.text_done.set()
        finally:
            if result.run_loop_task is not None and not result.run_loop_task.done():
                result.cancel()
                await asyncio.wait({result.run_loop_task}, timeout=_CLOSE_S)
        return reporter.result("" if hooks.wrote else as_text(result.final_output))


class _Hooks(RunHooks[Any]):
    """Receives the SDK's callbacks of models and tools.

    The text comes through another queue. So the callback at the end of an inference waits until its text was written.
    """

    result: RunResultStreaming

    def __init__(self, run: Run, reporter: RunReporter, turns: int, *, can_save: bool) -> None:
        self._run = run
        self._reporter = reporter
        self._can_save = can_save
        self._is_first = True  # the state from which this attempt began is stored
        self._items: list[Any] = []  # the input of the current inference
        self.turns = turns  # inferences that earlier attempts completed
        self.wrote = False  # whether any text was written
        self.text_done = asyncio.Event()  # set when all text of the current inference has been written

    async def on_agent_start(self, _context: Any, agent: Any) -> None:  # noqa: ANN401 -- the SDK's generics
        self._reporter.turn_start(agent.name)

    async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:  # noqa: ANN401, ARG002 -- the SDK passes names
        self._reporter.handoff(from_agent.name, to_agent.name)

    async def on_llm_start(self, _context: Any, agent: Any, _prompt: Any, items: list[Any]) -> None:  # noqa: ANN401 -- the SDK's generics
        self.text_done.clear()
        self._items = list(items)
        if not self._is_first:
            await self._save(agent, self._items)
        self._is_first = False
        self._reporter.inference_start(_model_name(agent), "openai-agents")

    async def on_llm_end(self, _context: Any, agent: Any, response: ModelResponse) -> None:  # noqa: ANN401 -- the SDK's generics
        while not self.text_done.is_set() and not self.result.is_complete:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.text_done.wait(), _TEXT_POLL_S)
        used = usage_of(response.usage.input_tokens, response.usage.output_tokens)
        self._reporter.inference_end(_model_name(agent), used)
        self.turns += 1
        open_items = {item.type for item in response.output} - _COMPLETE_ITEMS
        if open_items <= {"function_call"}:
            is_complete = self.wrote and not open_items
            await self._save(agent, [*self._items, *response.to_input_items()], is_complete=is_complete)

    async def _save(self, agent: Any, items: list[Any], *, is_complete: bool = False) -> None:  # noqa: ANN401 -- the SDK's generics
        """Make a checkpoint: the next attempt gives these items to this agent."""
        if not self._can_save:
            return
        state = {
            "items": to_jsonable_python(items),
            "agent": agent.name,
            "turns": self.turns,
            "wrote": self.wrote,
            "is_complete": is_complete,
            "reporter": self._reporter.saved(),
        }
        await keep(self._run, ADAPTER, state)

    async def on_tool_start(self, context: Any, _agent: Any, tool: Tool) -> None:  # noqa: ANN401 -- the SDK's generics
        call_id = getattr(context, "tool_call_id", "") or tool.name
        self._reporter.tool_start(call_id, tool.name, getattr(context, "tool_arguments", "{}"), call_id)
        await self._run.drain()

    async def on_tool_end(self, context: Any, _agent: Any, tool: Tool, result: object) -> None:  # noqa: ANN401 -- the SDK's generics
        failed = isinstance(result, str) and result.startswith(_TOOL_ERROR_PREFIX)
        self._reporter.tool_end(getattr(context, "tool_call_id", "") or tool.name, result, success=not failed)


def _begin(run: Run, reporter: RunReporter, saved: dict[str, Any] | None, agent: Agent[Any]) -> list[Any]:
    """Return the items with which this attempt begins, with everything that clients have seen."""
    items: list[Any] = conversation(run.request.messages) if saved is None else saved["items"]
    reporter.end_interrupted(UNKNOWN_OUTCOME)
    answered = {item.get("call_id") for item in items if item.get("type") == "function_call_output"}
    calls = [
        item["call_id"] for item in items if item.get("type") == "function_call" and item["call_id"] not in answered
    ]
    if saved is not None:
        outputs = [(call_id, reporter.ended.pop(call_id, NOT_RUN)) for call_id in calls]
        items += [{"type": "function_call_output", "call_id": call_id, "output": output} for call_id, output in outputs]
    if reporter.ended:
        message = "the run cannot be continued: its worker was lost during a tool whose call is in no checkpoint"
        raise AgentError(message)
    if text := shown_text(run):
        if agent.output_type not in {None, str}:
            message = "the run cannot be continued: its worker was lost in the middle of an answer in JSON"
            raise AgentError(message)
        items += [{"role": "assistant", "content": text}, {"role": "user", "content": CONTINUE_PROMPT}]
    return items


def _reachable(first: Agent[Any]) -> list[Agent[Any]]:
    """Return the first agent and all agents to which it can hand off, directly or through others."""
    found, waiting = [first], [first]
    while waiting:
        for handoff in waiting.pop().handoffs:
            reference: Any = (
                getattr(handoff, "_agent_ref", None) if isinstance(handoff, Handoff) else lambda it=handoff: it
            )
            agent = reference() if reference is not None else None
            if agent is not None and all(agent is not known for known in found):
                found.append(agent)
                waiting.append(agent)
    return found


def _agent_named(name: str, first: Agent[Any]) -> Agent[Any]:
    """Return the agent of this name among those that are reachable. Raises AgentError if there is not exactly one."""
    named = [agent for agent in _reachable(first) if agent.name == name]
    if len(named) != 1:
        message = f"the run cannot be continued: {len(named)} agents are called {name!r}; give each agent its own name"
        raise AgentError(message)
    return named[0]


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
