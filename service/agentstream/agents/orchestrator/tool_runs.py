"""The calls of the orchestrator's own tools in one turn. Each call has one result, also if its worker is lost."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from agentstream.agents.contract import Run
from agentstream.agents.orchestrator.approvals import Approvals
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
    """Runs the calls of a turn: those that need no approval at once, the others when people have approved them."""

    def __init__(self, run: Run, toolbox: Toolbox, progress: Progress, lost: Lost, approvals: Approvals) -> None:
        """``toolbox`` has the tools. ``progress`` gets the open turn. ``lost`` is what earlier attempts left."""
        self._run = run
        self._toolbox = toolbox
        self._progress = progress
        self._lost = lost
        self._approvals = approvals

    async def start(self, turn: Turn) -> list[ToolOutcome]:
        """Announce the calls of a turn, store a checkpoint, then run the calls. Return their outcomes.

        No call runs before the checkpoint is stored. So a call that an earlier attempt announced did not run: it runs
        now, and is not announced again. A call that needs approval is announced when it has been answered.
        """
        opened = OpenTurn(text=turn.text, echo=turn.echo, calls=turn.calls)
        for call in turn.calls:
            refusal = self._progress.guard.refusal(call)
            if refusal is not None:
                opened.refused[call.id] = refusal.content
            elif self._approvals.needed(call):
                reason = self._approvals.reason_not_to_ask(call, len(opened.asking))
                if reason:
                    opened.refused[call.id] = reason
                else:
                    opened.asking.append(call.id)
        for call in turn.calls:
            if call.id not in opened.asking:
                self._emit_start(call)
        self._progress.open_turn = opened
        await store_progress(self._run, self._progress)
        return await self._outcomes({}, ())

    async def go_on(self) -> list[ToolOutcome]:
        """Finish the calls of the open turn, which earlier attempts announced or asked for. Return their outcomes.

        A call that ended has its outcome in its event. A call that did not end runs again if its tool is repeatable.
        Otherwise the model and the clients learn that it was interrupted.
        """
        turn, known = self._progress.open_turn, dict[str, ToolOutcome]()
        for call in turn.calls:
            end = self._lost.tool_ends.get(call.id)
            if end is not None:
                known[call.id] = ToolOutcome(
                    tool=call.name, content=end["result"], success=end["success"], latency_s=end["latency"]
                )
            elif call.id not in turn.refused and call.id not in turn.asking:
                self._end_if_interrupted(call, known)
        return await self._outcomes(known, self._lost.tools_started)

    async def _outcomes(self, known: dict[str, ToolOutcome], begun: Collection[str]) -> list[ToolOutcome]:
        """Run the calls of the open turn whose outcome is not ``known``. Return the outcomes of all.

        ``begun`` are the ids of the calls that an earlier attempt may have run.
        """
        turn = self._progress.open_turn
        left = [call for call in turn.calls if call.id not in known]
        known |= await self._run_all([call for call in left if call.id not in turn.asking])
        if asked := [call for call in left if call.id in turn.asking]:
            refused = await self._approvals.ask(asked)
            for call in asked:
                self._emit_start(call)
                if call.id in refused:
                    known[call.id] = _refused(call, refused[call.id])
                    self._emit_end(call, known[call.id])
                elif call.id in begun:
                    self._end_if_interrupted(call, known)
            await self._run.drain()
            known |= await self._run_all([call for call in asked if call.id not in known])
        return [known[call.id] for call in turn.calls]

    async def _run_all(self, calls: Sequence[EngineToolCall]) -> dict[str, ToolOutcome]:
        """Run calls concurrently, and return their outcomes by id."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {call.id: group.create_task(self._call(call), name=f"tool {call.name}") for call in calls}
        except BaseExceptionGroup as failures:  # from run.emit; the worker handles the error by its class
            raise failures.exceptions[0] from failures
        return {call_id: task.result() for call_id, task in tasks.items()}

    async def _call(self, call: EngineToolCall) -> ToolOutcome:
        refusal = self._progress.open_turn.refused.get(call.id)
        outcome = await self._execute(call) if refusal is None else _refused(call, refusal)
        self._emit_end(call, outcome)
        return outcome

    def _end_if_interrupted(self, call: EngineToolCall, known: dict[str, ToolOutcome]) -> None:
        """End a call that an earlier attempt may have run, unless it may be repeated."""
        if not self._toolbox.is_repeatable(call.name):
            known[call.id] = _interrupted(call)
            self._emit_end(call, known[call.id])

    def _emit_start(self, call: EngineToolCall) -> None:
        """Announce a call, unless an earlier attempt has done so."""
        if call.id not in self._lost.tools_started:
            started = {"tool": call.name, "arguments": call.arguments, "tool_call_id": call.id, "agent": AGENT_NAME}
            self._run.emit(TOOL_CALL_START, started)

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
            approved = call.id in self._progress.open_turn.asking
            outcome = await self._toolbox.call(call.name, call.arguments, approved=approved)
            if tracing.content_enabled():
                content = {"gen_ai.tool.call.arguments": call.arguments, "gen_ai.tool.call.result": outcome.content}
                span.set({key: mask(text)[: tracing.MAX_CONTENT_CHARS] for key, text in content.items()})
            if not outcome.success:
                span.fail("tool_error", outcome.content)
        return outcome


def _refused(call: EngineToolCall, reason: str) -> ToolOutcome:
    return ToolOutcome(tool=call.name, content=reason, success=False, latency_s=0.0)


def _interrupted(call: EngineToolCall) -> ToolOutcome:
    explanation = (
        f"the call of {call.name} was interrupted, because its worker was lost: it is not known whether it had an "
        "effect. It was not repeated. If you can, find out before you call it again."
    )
    return ToolOutcome(tool=call.name, content=explanation, success=False, latency_s=0.0)
