"""Runs that are put down at their questions and continued by other attempts, without a worker."""

import asyncio
import copy
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from agentstream.agents import AgentResult, EmittedEvent, Restored, Run
from agentstream.errors import InterruptTimeout, RunCancelled
from agentstream.protocol.events import INTERRUPT, RUN_CHECKPOINT, TEXT
from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.openai import ChatCompletionRequest
from tests.helpers import TIMEOUT_S, RecordingSink

TIMED_OUT: Final = object()  # as an answer
_QUIET_TURNS: Final = 50  # of the event loop, after which all questions of one moment have been asked


@dataclass
class LosingSink(RecordingSink):
    """A sink of one attempt, whose worker is lost right after an event of the type ``lost_after``."""

    lost_after: str = ""
    lost: bool = False
    in_place: Any = None  # the answer to every question that ``answers`` does not have

    def put(self, event_type: str, data: Any) -> None:
        """Store an event, unless the worker is lost."""
        self._check()
        super().put(event_type, data)
        self.lost = event_type == self.lost_after

    def put_checkpoint(self, state: bytes) -> bool:
        """Store a checkpoint, unless the worker is lost."""
        self._check()
        return super().put_checkpoint(state)

    def ask(self, asked: Interrupt) -> Future[Any]:
        """Return the future answer. Only an answer of TIMED_OUT is an error."""
        self._check()
        future = super().ask(asked)
        if self.in_place is not None and not future.done():
            future.set_result(self.in_place)
        if self.answers.get(asked.id) is TIMED_OUT:
            future = Future()
            future.set_exception(InterruptTimeout("nobody has answered"))
        return future

    async def wait_for_room(self) -> None:
        """Raise RunCancelled if the worker is lost."""
        await asyncio.sleep(0)
        self._check()

    def _check(self) -> None:
        if self.lost:
            message = "the worker is lost"
            raise RunCancelled(message)


@dataclass
class ParkedRun:
    """A run of ``agent``. ``facts`` are the events of all its attempts."""

    agent: Any
    text: str = "hi"
    facts: list[tuple[str, Any]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)  # messages that people send
    result: AgentResult | None = None

    async def attempt(
        self, answers: dict[str, Any] | None = None, *, lost_after: str = "", in_place: Any = None, questions: int = 1
    ) -> list[dict[str, Any]]:
        """Run the agent with these answers until it ends, asks or loses its worker; return its open questions.

        It asks at least this number of ``questions``. ``in_place`` answers every other question while the agent waits
        in its worker.
        """
        self.answers |= answers or {}
        sink = LosingSink(answers=self.answers, inputs=self.inputs, lost_after=lost_after, in_place=in_place)
        request = {"model": "m", "messages": [{"role": "user", "content": self.text}]}
        run = Run("chatcmpl-1", ChatCompletionRequest.model_validate(request), sink)
        run.restore(self._restored(), 0)
        task = asyncio.ensure_future(self.agent(run))
        async with asyncio.timeout(TIMEOUT_S):
            quiet = 0
            while not (task.done() or sink.lost or quiet >= _QUIET_TURNS):
                asked = sum(name == INTERRUPT for name, _ in sink.facts)
                quiet = quiet + 1 if in_place is None and asked >= questions else 0
                await asyncio.sleep(0 if quiet else 0.001)
        if task.done() and not sink.lost:
            self.facts += sink.facts
            self.result = task.result()
            return []
        run.cancel(continued=True)
        task.cancel()
        await asyncio.wait({task})
        self.facts += sink.facts
        return [data for name, data in sink.facts if name == INTERRUPT]

    def _restored(self) -> Restored | None:
        if not self.facts:
            return None
        at = max((index for index, (name, _) in enumerate(self.facts) if name == RUN_CHECKPOINT), default=-1)
        after = self.facts[at + 1 :]
        shown = "".join(data for name, data in after if name == TEXT)
        events = tuple(EmittedEvent(name, data) for name, data in after if name not in {TEXT, INTERRUPT})
        return Restored(state=copy.deepcopy(self.facts[at][1]) if at >= 0 else None, text=shown, events=events)

    @property
    def answer(self) -> str:
        """The whole text, also that of a result without text."""
        text = "".join(data for name, data in self.facts if name == TEXT)
        return text or (self.result.content if self.result else "")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of the events of one type."""
        return [data for name, data in self.facts if name == kind]

    def tools(self) -> list[tuple[str, str, Any]]:
        """Return the events of tools in order: the kind, the tool, and whether it succeeded."""
        kinds = {f"tool_call_{kind}": kind for kind in ("start", "waiting", "end")}
        return [(kinds[name], data["tool"], data.get("success")) for name, data in self.facts if name in kinds]
