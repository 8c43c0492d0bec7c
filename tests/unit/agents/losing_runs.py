"""Runs of the orchestrator whose worker is lost after any number of stored events, as often as a test wants."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from agentstream.agents.checkpoint import EmittedEvent, Restored
from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.orchestrator import Orchestrator
from agentstream.agents.tool_calls import RestoredToolCall
from agentstream.errors import InterruptTimeout, RunCancelled
from agentstream.protocol.events import (
    INPUT_APPLIED,
    INTERRUPT,
    REASONING,
    RESERVED_EVENTS,
    RUN_CHECKPOINT,
    RUN_STARTED,
    STORED_FIRST,
    TEXT,
    TOOL_CALL_DELTA,
    Event,
)
from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.inputs import Inputs
from agentstream.stream.transcript import AnswerFold
from agentstream.tools.toolbox import Toolbox
from agentstream.worker.inputs import RunInputs
from tests.helpers import TIMEOUT_S, RecordingSink

ENDLESS = 10**9


@dataclass
class People:
    """The people who answer the questions of a run, and send it messages."""

    open: dict[str, Interrupt] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # answers, by the id of the question; None: no answer in time
    sent: list[dict[str, Any]] = field(default_factory=list)
    worker_lost: bool = False

    def send(self, text: str) -> None:
        """Send a message to the run, unless it was sent before or the worker is lost now."""
        message = {"role": "user", "content": text}
        if message not in self.sent and not self.worker_lost:
            self.sent.append(message)

    def answer(self, answers: Mapping[str, Any]) -> None:
        """Answer all open questions; the answers are given by the id of the question."""
        self.given |= {name: answers[name] for name in self.open}
        self.open.clear()


class CuttingSink(RecordingSink):
    """Stores the first ``limit`` events of an attempt. The agent does not notice the loss until it waits for one."""

    def __init__(self, limit: int, people: People, earlier: Sequence[tuple[str, Any]]) -> None:
        super().__init__()
        self._limit = limit
        self._people = people
        people.worker_lost = limit == 0
        applied = [len(data["inputs"]) for kind, data in earlier if kind == INPUT_APPLIED]
        self._inputs = RunInputs(lambda event_type, data, _: self.put(event_type, data))
        after = [Event(1, seq, *fact) for seq, fact in enumerate(after_checkpoint(earlier), 1)]
        self._inputs.restore(after, Inputs(people.sent, sum(applied)))
        self.put_count = 0
        self._waits = False  # whether an event of STORED_FIRST is lost

    def put(self, event_type: str, data: Any) -> None:
        self.put_count += 1
        self._people.worker_lost = self.put_count >= self._limit
        if self.put_count <= self._limit:
            self.facts.append((event_type, data))
        elif event_type in STORED_FIRST:
            self._waits = True

    def ask(self, asked: Interrupt) -> Future[Any]:
        """Return the answer, or end the attempt, because the run is parked."""
        future: Future[Any] = Future()
        if asked.id in self._people.given:
            answer = self._people.given[asked.id]
            if answer is None:
                future.set_exception(InterruptTimeout("nobody answered"))
            else:
                future.set_result(answer)
            return future
        if asked.id not in self._people.open:
            self.put(INTERRUPT, asked.as_json())
            if self.put_count <= self._limit:
                self._people.open[asked.id] = asked
        future.set_exception(RunCancelled("the run is parked"))
        return future

    def take_inputs(self) -> list[dict[str, Any]]:
        """Return the messages that the agent has not got yet, as a worker does."""
        self._inputs.receive(Inputs(list(self._people.sent), 0))
        return self._inputs.take()

    def put_checkpoint(self, state: bytes) -> bool:
        self.put(RUN_CHECKPOINT, orjson.loads(state))
        return False

    async def wait_for_room(self) -> None:
        await asyncio.sleep(0)
        if self._waits:
            message = "the attempt is over"
            raise RunCancelled(message)


class Effects:
    """A tool that counts its calls."""

    description = "Has an effect."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {"n": {"type": "integer"}}}

    def __init__(
        self, name: str, *, idempotent: bool = False, read_only: bool = False, needs_approval: bool = False
    ) -> None:
        self.name = name
        self.idempotent = idempotent
        self.read_only = read_only
        self.needs_approval = needs_approval
        self.calls: list[int] = []

    async def run(self, arguments: dict[str, Any]) -> str:
        await asyncio.sleep(0)
        self.calls.append(arguments["n"])
        return f"{self.name} {arguments['n']}"


@dataclass
class LosingRun:
    """One run, whose attempts share the stored events."""

    orchestrator: Orchestrator
    request: ChatCompletionRequest
    attempts: list[list[tuple[str, Any]]] = field(default_factory=list)
    people: People = field(default_factory=People)
    put_count: int = 0  # events of the latest attempt, also those that were not stored

    @property
    def facts(self) -> list[tuple[str, Any]]:
        """All stored events, in order."""
        return [fact for attempt in self.attempts for fact in attempt]

    async def attempt(self, limit: int = ENDLESS) -> AgentResult | None:
        """Make an attempt of which ``limit`` events are stored. Return the result.

        It is None if the worker is lost, or if the run is parked.
        """
        sink = CuttingSink(limit, self.people, self.facts)
        run = Run("chatcmpl-1", self.request, sink)
        restored = restored_from(self.facts)
        run.restore(restored, sum(kind == TOOL_CALL_DELTA and "name" in data for kind, data in self.facts))
        result: AgentResult | None = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                result = await self.orchestrator(run)
        except RunCancelled:
            assert limit < ENDLESS or self.people.open
        self.attempts.append(sink.facts)
        self.put_count = sink.put_count
        return result if limit == ENDLESS else None

    def fold(self) -> AnswerFold:
        """Return the answer that a client assembles."""
        fold = AnswerFold()
        for number, facts in enumerate(self.attempts, 1):
            started = (RUN_STARTED, {"resumes": True} if number > 1 else {})
            for seq, (kind, data) in enumerate([started, *facts], 1):
                fold.receive(Event(number, seq, kind, data))
        return fold

    def data_of(self, kind: str) -> list[Any]:
        """Return the data of all stored events of a type."""
        return [data for each, data in self.facts if each == kind]

    async def whole(self, answers: Mapping[str, Any]) -> AgentResult:
        """Make attempts until the run ends; whenever it is parked, people answer. Return the result."""
        for _ in range(10):
            if (result := await self.attempt()) is not None:
                return result
            self.people.answer(answers)
        message = "the run asks again and again"
        raise AssertionError(message)


def after_checkpoint(facts: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
    """Return the events after the last checkpoint."""
    checkpoints = [number for number, (kind, _) in enumerate(facts) if kind == RUN_CHECKPOINT]
    return facts[checkpoints[-1] + 1 :] if checkpoints else facts


def restored_from(facts: Sequence[tuple[str, Any]]) -> Restored | None:
    """Return what the next attempt finds."""
    if not facts:
        return None
    checkpoints = [number for number, (kind, _) in enumerate(facts) if kind == RUN_CHECKPOINT]
    state = facts[checkpoints[-1]][1] if checkpoints else None
    after = after_checkpoint(facts)
    calls: dict[int, RestoredToolCall] = {}
    for kind, data in after:
        if kind == TOOL_CALL_DELTA:
            index = data["index"]
            call = calls.setdefault(index, RestoredToolCall(index, data.get("id", ""), data.get("name", "")))
            call.arguments += data["arguments"]
    return Restored(
        state=json.loads(json.dumps(state)),
        text="".join(data for kind, data in after if kind == TEXT),
        reasoning="".join(data for kind, data in after if kind == REASONING),
        events=[EmittedEvent(kind, data) for kind, data in after if kind not in RESERVED_EVENTS],
        tool_calls=list(calls.values()),
    )


def losing_run(engine: Any, *tools: Effects, fields: dict[str, Any] | None = None, **options: Any) -> LosingRun:
    """Return a run of an orchestrator with an engine and tools. ``fields`` are further fields of the request."""
    body = {"model": "m1", "messages": [{"role": "user", "content": "count"}], **(fields or {})}
    orchestrator = Orchestrator(engine, Toolbox(tools, TIMEOUT_S), **options)
    return LosingRun(orchestrator, ChatCompletionRequest.model_validate(body))
