"""Deferred tool calls: people approve them, or give their results."""

import asyncio
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_ai import (
    DeferredToolRequests,
    DeferredToolResults,
    ModelMessage,
    ModelRequest,
    ToolApproved,
    ToolCallPart,
    ToolDenied,
    ToolReturnPart,
)

from agentstream.adapters.asking import NOBODY_ANSWERED, Decision, QuestionIds, ask, ask_approval
from agentstream.adapters.pydantic_ai.saving import Saving
from agentstream.adapters.resuming import UNKNOWN_OUTCOME
from agentstream.adapters.run_reporter import RunReporter
from agentstream.agents import Run
from agentstream.errors import InterruptTimeout

KIND: Final = "deferred_tool"  # of a question whose answer is the result of a tool

_requests: Final[TypeAdapter[DeferredToolRequests]] = TypeAdapter(DeferredToolRequests)


class Deferred:
    """Asks people about the deferred calls of a run."""

    def __init__(self, run: Run, reporter: RunReporter, question_ids: QuestionIds, saving: Saving) -> None:
        """Note ``question_ids``, which has those of earlier questions."""
        self._run = run
        self._reporter = reporter
        self._ids = question_ids
        self._saving = saving
        self.results: list[Any] = []  # of the calls of the current answer that have ended

    async def handle(self, context: Any, requests: DeferredToolRequests) -> DeferredToolResults:  # noqa: ANN401 -- generic in the agent's types
        """Answer the deferred calls of an answer of the model, in the middle of pydantic-ai's run."""
        ended = [ModelRequest(list(self.results))] if self.results else []
        return await self.ask([*context.messages, *ended], requests)

    async def ask(self, messages: list[ModelMessage], requests: DeferredToolRequests) -> DeferredToolResults:
        """Ask people about calls. ``messages`` end with the answer that has the calls, and the results so far."""
        self._reporter.suspend_all()
        ids = {call.tool_call_id: self._ids.new(call.tool_call_id) for call in _calls_of(requests)}
        asking = {"requests": _requests.dump_python(requests, mode="json"), "ids": ids}
        await self._saving.save(messages, asking)
        return await self._answered(messages, asking)

    async def go_on(
        self, messages: list[ModelMessage], asking: dict[str, Any]
    ) -> tuple[list[ModelMessage], DeferredToolResults | None]:
        """Continue an earlier attempt that asked people. Return the messages, and the results that they lack.

        If people had answered, the approved calls may have run, so they do not run again.
        """
        if "answers" not in asking:
            return messages, await self._answered(messages, asking)
        results = _results_of(asking)
        waiting = self._reporter.interrupted
        begun = {call_id for call_id, approval in results.approvals.items() if isinstance(approval, ToolApproved)}
        self._reporter.interrupted = {call_id: waiting.pop(call_id) for call_id in begun & waiting.keys()}
        self._reporter.end_interrupted(UNKNOWN_OUTCOME)
        self._reporter.interrupted = waiting  # they were denied, or people gave their results
        names = {call.tool_call_id: call.tool_name for call in _calls_of(_requests.validate_python(asking["requests"]))}
        ended = {call_id: self._reporter.ended[call_id] for call_id in names if call_id in self._reporter.ended}
        for call_id in ended:
            results.approvals.pop(call_id, None)
            results.calls.pop(call_id, None)
        if ended:
            parts = [ToolReturnPart(names[call_id], result, call_id) for call_id, result in ended.items()]
            last = messages[-1]
            if isinstance(last, ModelRequest):
                messages = [*messages[:-1], ModelRequest([*last.parts, *parts])]
            else:
                messages = [*messages, ModelRequest(parts)]
        if results.approvals or results.calls:
            return messages, results
        await self._saving.save(messages)
        return messages, None

    async def _answered(self, messages: list[ModelMessage], asking: dict[str, Any]) -> DeferredToolResults:
        requests, ids = _requests.validate_python(asking["requests"]), asking["ids"]
        answers = await asyncio.gather(
            *(
                self._approval(call, ids[call.tool_call_id], requests)
                if call in requests.approvals
                else self._result(call, ids[call.tool_call_id], requests)
                for call in _calls_of(requests)
            )
        )
        answered = {**asking, "answers": dict(answers)}
        await self._saving.save(messages, answered)
        return _results_of(answered)

    async def _approval(self, call: ToolCallPart, question_id: str, _: DeferredToolRequests) -> tuple[str, Any]:
        decision = await ask_approval(self._run, question_id, call.tool_name, call.args or {})
        return call.tool_call_id, list(decision)

    async def _result(self, call: ToolCallPart, question_id: str, requests: DeferredToolRequests) -> tuple[str, Any]:
        payload: dict[str, Any] = {"tool": call.tool_name, "arguments": call.args_as_json_str()}
        if metadata := requests.metadata.get(call.tool_call_id):
            payload["metadata"] = metadata
        try:
            return call.tool_call_id, await ask(self._run, question_id, KIND, payload)
        except InterruptTimeout:
            return call.tool_call_id, f"The tool has no result: {NOBODY_ANSWERED}"


def _calls_of(requests: DeferredToolRequests) -> list[ToolCallPart]:
    return [*requests.approvals, *requests.calls]


def _results_of(asking: dict[str, Any]) -> DeferredToolResults:
    """Return the answers in pydantic-ai's form."""
    requests, answers = _requests.validate_python(asking["requests"]), asking["answers"]
    decisions = {call.tool_call_id: Decision(*answers[call.tool_call_id]) for call in requests.approvals}
    return DeferredToolResults(
        approvals={
            call_id: ToolApproved() if decision.approved else ToolDenied(decision.for_model)
            for call_id, decision in decisions.items()
        },
        calls={call.tool_call_id: answers[call.tool_call_id] for call in requests.calls},
        metadata=requests.metadata,
    )
