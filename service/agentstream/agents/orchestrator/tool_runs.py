"""The calls of the orchestrator's own tools in one turn. Each call has one result, also if its worker is lost."""

import asyncio
from typing import Final

from agentstream.agents.contract import Run
from agentstream.agents.orchestrator.inference import Turn
from agentstream.agents.orchestrator.lost import Lost
from agentstream.agents.orchestrator.progress import OpenTurn, Progress, store_progress
from agentstream.engines.base import EngineToolCall
from agentstream.protocol.events import TOOL_CALL_END, TOOL_CALL_START
from agentstream.telemetry import tracing
from agentstream.telemetry.masking import mask
from agentstream.tools.toolbox import Toolbox, ToolOutcome

AGENT_NAME: Final = "orchestrator"
MAX_NAME_CHARS: Final = 128  # limit for tool names and call ids in a span; OpenAI allows 64


class ToolRuns:
    """Runs the calls of a turn."""

    def __init__(self, run: Run, toolbox: Toolbox, progress: Progress) -> None:
        """``toolbox`` has the tools. ``progress`` gets the open turn."""
        self._run = run
        self._toolbox = toolbox
        self._progress = progress

    async def start(self, turn: Turn, lost: Lost) -> list[ToolOutcome]:
        """Announce the calls of a turn, store a checkpoint, then run the calls. Return their outcomes.

        No call runs before the checkpoint is stored. So a call that ``lost`` announces did not run: it runs now, and is
        not announced again.
        """
        refusals = {call.id: self._progress.guard.refusal(call) for call in turn.calls}
        for call in turn.calls:
            if call.id not in lost.tools_started:
                started = {"tool": call.name, "arguments": call.arguments, "tool_call_id": call.id, "agent": AGENT_NAME}
                self._run.emit(TOOL_CALL_START, started)
        refused = {call_id: outcome.content for call_id, outcome in refusals.items() if outcome}
        self._progress.open_turn = OpenTurn(text=turn.text, echo=turn.echo, calls=turn.calls, refused=refused)
        await store_progress(self._run, self._progress)
        return await self._outcomes({})

    async def go_on(self, lost: Lost) -> list[ToolOutcome]:
        """Finish the calls of the open turn, which an earlier attempt announced. Return their outcomes.

        A call that ended has its outcome in its event. A call that did not end runs again if its tool is repeatable.
        Otherwise the model and the clients learn that it was interrupted.
        """
        known: dict[str, ToolOutcome] = {}
        for call in self._progress.open_turn.calls:
            end = lost.tool_ends.get(call.id)
            if end is not None:
                known[call.id] = ToolOutcome(
                    tool=call.name, content=end["result"], success=end["success"], latency_s=end["latency"]
                )
            elif call.id not in self._progress.open_turn.refused and not self._toolbox.is_repeatable(call.name):
                known[call.id] = _interrupted(call)
                self._emit_end(call, known[call.id])
        return await self._outcomes(known)

    async def _outcomes(self, known: dict[str, ToolOutcome]) -> list[ToolOutcome]:
        """Run the calls of the open turn whose outcome is not known, concurrently. Return the outcomes of all."""
        turn = self._progress.open_turn
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    call.id: group.create_task(self._call(call, turn.refused.get(call.id)), name=f"tool {call.name}")
                    for call in turn.calls
                    if call.id not in known
                }
        except BaseExceptionGroup as failures:  # from run.emit; the worker handles the error by its class
            raise failures.exceptions[0] from failures
        return [known[call.id] if call.id in known else tasks[call.id].result() for call in turn.calls]

    async def _call(self, call: EngineToolCall, refusal: str | None) -> ToolOutcome:
        if refusal is None:
            outcome = await self._execute(call)
        else:
            outcome = ToolOutcome(tool=call.name, content=refusal, success=False, latency_s=0.0)
        self._emit_end(call, outcome)
        return outcome

    def _emit_end(self, call: EngineToolCall, outcome: ToolOutcome) -> None:
        self._run.emit(
            TOOL_CALL_END,
            {
                "tool": call.name,
                "success": outcome.success,
                "latency": round(outcome.latency_s, 6),  # seconds, to the microsecond
                "result": outcome.content,
                "tool_call_id": call.id,
                "agent": AGENT_NAME,
            },
        )

    async def _execute(self, call: EngineToolCall) -> ToolOutcome:
        name = str(call.name)[:MAX_NAME_CHARS]  # the model wrote it: there may be no such tool
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": str(call.id)[:MAX_NAME_CHARS],
            "gen_ai.tool.type": "function",
            "gen_ai.agent.name": AGENT_NAME,
        }
        with tracing.span(f"execute_tool {name}", attributes=attributes) as span:
            outcome = await self._toolbox.call(call.name, call.arguments)
            if tracing.content_enabled():
                content = {"gen_ai.tool.call.arguments": call.arguments, "gen_ai.tool.call.result": outcome.content}
                span.set({key: mask(text)[: tracing.MAX_CONTENT_CHARS] for key, text in content.items()})
            if not outcome.success:
                span.fail("tool_error", outcome.content)
        return outcome


def _interrupted(call: EngineToolCall) -> ToolOutcome:
    explanation = (
        f"the call of {call.name} was interrupted, because its worker was lost: it is not known whether it had an "
        "effect. It was not repeated. If you can, find out before you call it again."
    )
    return ToolOutcome(tool=call.name, content=explanation, success=False, latency_s=0.0)
