"""The SDK's interruptions: calls of tools that people approve or deny."""

import asyncio
from typing import Any

from agents import Agent, RunState

from agentstream.adapters.asking import Decision, QuestionIds, ask_approval
from agentstream.adapters.openai_agents.hooks import Hooks
from agentstream.adapters.run_reporter import RunReporter
from agentstream.agents import Run

State = RunState[Any, Agent[Any]]


class Approvals:
    """Asks people about the interruptions of a run."""

    def __init__(self, run: Run, reporter: RunReporter, hooks: Hooks, question_ids: QuestionIds) -> None:
        """Note ``question_ids``, which has those of earlier questions."""
        self._run = run
        self._reporter = reporter
        self._hooks = hooks
        self._ids = question_ids

    async def ask(self, state: State) -> State:
        """Ask people about the interruptions of a state of the SDK. Return the state with their decisions."""
        self._reporter.suspend_all()
        ids = [self._ids.new(item.call_id or item.name or "tool") for item in state.get_interruptions()]
        asking = {"ids": ids, "run_state": _as_json(state)}
        await self._hooks.save_asking(asking)
        return await self._answered(state, asking)

    async def go_on(self, first: Agent[Any], saved: dict[str, Any], context: Any) -> State | None:  # noqa: ANN401 -- the user's own
        """Continue an earlier attempt that asked people. Return the state with their decisions.

        Return None if people had answered and tools have begun since then. The items in ``saved`` then have the results
        of the calls that were denied, and the other calls are treated as after every loss of a worker.
        """
        asking = saved["asking"]
        answers = asking.get("answers")
        if answers is not None and self._reporter.has_seen_calls:
            denied = [(call_id, Decision(*decision)) for call_id, decision in answers]
            saved["items"] += [
                {"type": "function_call_output", "call_id": call_id, "output": decision.for_model}
                for call_id, decision in denied
                if not decision.approved
            ]
            return None
        state = await RunState.from_json(first, asking["run_state"], context_override=context)
        self._hooks.restore(saved["agent"], saved["items"])
        if answers is None:
            return await self._answered(state, asking)
        _decide(state, [Decision(*decision) for _, decision in answers])
        return state

    async def _answered(self, state: State, asking: dict[str, Any]) -> State:
        interruptions = state.get_interruptions()
        decisions = await asyncio.gather(
            *(
                ask_approval(self._run, question_id, item.qualified_name or item.name or "", item.arguments or "{}")
                for question_id, item in zip(asking["ids"], interruptions, strict=True)
            )
        )
        answers = [[item.call_id, list(decision)] for item, decision in zip(interruptions, decisions, strict=True)]
        for item, decision in zip(interruptions, decisions, strict=True):
            if not decision.approved:  # the SDK calls no hook for such a tool
                call_id = item.call_id or ""
                self._reporter.tool_start(call_id, item.name or "", item.arguments or "{}", call_id)
                self._reporter.tool_end(call_id, decision.for_model, success=False)
        await self._hooks.save_asking({**asking, "answers": answers})
        _decide(state, decisions)
        return state


def _decide(state: State, decisions: list[Decision]) -> None:
    for item, decision in zip(state.get_interruptions(), decisions, strict=True):
        if decision.approved:
            state.approve(item)
        else:
            state.reject(item, rejection_message=decision.for_model)


def _as_json(state: State) -> dict[str, Any]:
    """Return a state without the user's context, which may hold secrets and need not be JSON."""
    dumped = state.to_json(context_serializer=lambda _: {})
    if dumped["context"]["context"]:
        dumped["context"]["context"] = {}
    return dumped
