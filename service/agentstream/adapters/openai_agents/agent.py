"""The agent that runs an agent of the SDK, once for each run."""

import asyncio
from typing import Any, Final

from agents import Agent, Handoff, Runner, RunResultStreaming, RunState
from agents.run import DEFAULT_MAX_TURNS

from agentstream.adapters.asking import QuestionIds
from agentstream.adapters.openai_agents.approvals import Approvals
from agentstream.adapters.openai_agents.conversation import conversation
from agentstream.adapters.openai_agents.hooks import ADAPTER, Hooks
from agentstream.adapters.per_run import options_for, since_last_answer
from agentstream.adapters.resuming import CONTINUE_PROMPT, NOT_RUN, UNKNOWN_OUTCOME, kept, shown_text
from agentstream.adapters.run_reporter import RunReporter, as_text
from agentstream.agents import AgentResult, Run
from agentstream.errors import AgentError

PER_RUN: Final = frozenset(
    {"context", "session", "run_config", "max_turns", "conversation_id", "previous_response_id"},
)
# With one of these options the conversation is kept elsewhere, so a repeated input would be added to it twice.
_REMEMBERED: Final = frozenset({"session", "conversation_id", "previous_response_id", "auto_previous_response_id"})
_TEXT_EVENTS: Final = frozenset({"response.output_text.delta", "response.refusal.delta"})
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
        question_ids = QuestionIds(saved.get("question_ids", ()) if saved else ())
        hooks = Hooks(run, reporter, saved["turns"] if saved else 0, question_ids.used, can_save=self.resumable)
        hooks.wrote = bool(saved and saved["wrote"]) or bool(shown_text(run))
        approvals = Approvals(run, reporter, hooks, question_ids)
        given: Any = None
        if saved is not None and saved.get("asking") is not None:
            given = await approvals.go_on(self._agent, saved, options.get("context"))
        if given is None and options.get("session") is not None:  # it already holds the messages up to the last answer
            given = conversation(since_last_answer(run.request.messages))
        elif given is None:
            given = _begin(run, reporter, saved, agent)
        if hooks.turns and (max_turns := options.get("max_turns", DEFAULT_MAX_TURNS)) is not None:
            options["max_turns"] = max(1, max_turns - hooks.turns)
        while True:
            result = Runner.run_streamed(
                self._agent if isinstance(given, RunState) else agent, given, hooks=hooks, **options
            )
            hooks.result = result
            await _follow(run, result, hooks)
            if not result.interruptions:
                return reporter.result("" if hooks.wrote else as_text(result.final_output))
            given = await approvals.ask(result.to_state())


async def _follow(run: Run, result: RunResultStreaming, hooks: Hooks) -> None:
    """Write the text of a run of the SDK until it ends. A cancel closes its request to the model server."""
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
