"""The questions that a graph asks people with ``interrupt``, and its breakpoints."""

import asyncio
from typing import Any, Final, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt

from agentstream.adapters.asking import Decision, ask, ask_approval, interrupt_id
from agentstream.adapters.langgraph.saving import Saving
from agentstream.agents import Run
from agentstream.errors import AgentError

ENDED: Final = object()  # the graph does not go on
KIND: Final = "langgraph"
_SINGLE_ID_CHARS: Final = 32  # LangGraph's ids are hashes; answers by id need them


class Pending(NamedTuple):
    """The questions that a graph waits for. Without interrupts it has stopped at a breakpoint, before ``nodes``."""

    interrupts: tuple[Interrupt[Any], ...]
    nodes: tuple[str, ...]
    checkpoint_id: str


class GraphQuestions:
    """Asks people what a graph wants to know.

    A value that is an object with the name of a ``tool`` becomes an approval, which is answered with ``approve`` and
    ``reason``. Every other value is the payload of a question of the kind "langgraph". The node gets the answer as it
    is.
    """

    def __init__(self, run: Run, graph: Pregel[Any, Any, Any, Any], config: RunnableConfig, saving: Saving) -> None:
        """``graph`` is the one that runs, with its checkpointer."""
        self._run = run
        self._graph = graph
        self._config = config
        self._saving = saving

    async def pending(self, *, is_new: bool) -> Pending | None:
        """Return the questions that the graph waits for; None if it waits for none.

        ``is_new`` is whether the graph has just stopped. Otherwise an earlier attempt began the graph: then a
        breakpoint before its next nodes may not have been passed yet.
        """
        if not self._graph.checkpointer:
            if not is_new:
                return None
            message = (
                "the graph interrupted to ask people, but it has no checkpointer, so it cannot go on with an answer. "
                "Use LangGraphAgent(graph, resumable=True), or compile the graph with a checkpointer"
            )
            raise AgentError(message)
        found = await self._graph.aget_state(self._config)
        before: Any = self._graph.interrupt_before_nodes
        stops = bool(self._graph.interrupt_after_nodes) or before == "*" or not set(before).isdisjoint(found.next)
        if not (found.interrupts or (found.next and (is_new or stops))):
            return None
        return Pending(found.interrupts, found.next, str(found.config["configurable"].get("checkpoint_id")))

    async def ask(self, pending: Pending | None) -> object:
        """Ask people, and return the input with which the graph goes on, or ENDED if it must not pass a breakpoint."""
        if pending is None:
            message = "the graph interrupted, but its checkpointer has no question and no next node"
            raise AgentError(message)
        await self._saving.asks()
        if not pending.interrupts:
            return await self._pass_breakpoint(pending)
        answers = await asyncio.gather(*map(self._answer, pending.interrupts))
        await self._saving.answered()
        if len(answers) == 1 and len(pending.interrupts[0].id) != _SINGLE_ID_CHARS:
            return Command(resume=answers[0])
        return Command(resume={each.id: answer for each, answer in zip(pending.interrupts, answers, strict=True)})

    async def _answer(self, interrupt: Interrupt[Any]) -> Any:  # noqa: ANN401 -- JSON
        question_id, value = interrupt_id(f"interrupt-{interrupt.id}"), interrupt.value
        if isinstance(value, dict) and isinstance(value.get("tool"), str) and interrupt.response_schema is None:
            arguments = value.get("arguments", {})
            return _as_answer(await ask_approval(self._run, question_id, value["tool"], arguments))
        return await ask(self._run, question_id, KIND, value, interrupt.response_schema)

    async def _pass_breakpoint(self, pending: Pending) -> object:
        """Ask whether the graph may go on. Return None, LangGraph's input for that, or ENDED."""
        nodes = ", ".join(pending.nodes)
        question_id = interrupt_id(f"breakpoint-{pending.checkpoint_id}")
        decision = await ask_approval(self._run, question_id, nodes, {})
        await self._saving.answered()
        return None if decision.approved else ENDED


def _as_answer(decision: Decision) -> dict[str, Any]:
    return {"approve": decision.approved} | ({"reason": decision.reason} if decision.reason else {})
