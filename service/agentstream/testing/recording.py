"""Attempts at a run whose events are kept in memory, and the loss of their worker."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, Final, cast

import orjson

from agentstream.agents import Agent, Restored
from agentstream.agents.checkpoint import encode_state
from agentstream.agents.lifespan import ManagedAgent, is_context_manager
from agentstream.agents.shapes import as_agent, takes_nothing
from agentstream.errors import RUN_TIMEOUT, AgentError
from agentstream.protocol.events import (
    REASONING,
    RUN_CHECKPOINT,
    RUN_STARTED,
    START,
    TEXT,
    TOOL_CALL_DELTA,
    Cursor,
    Event,
    encode_event,
)
from agentstream.protocol.jobs import Job
from agentstream.store.bus.bus import StoredCheckpoint
from agentstream.store.queue import Claim
from agentstream.testing.outcome import AgentOutcome, outcome_of
from agentstream.worker.execution import CLEANUP_TIMEOUT_S, LEASE_LOST, Execution
from agentstream.worker.takeover import pack, takeover_of
from agentstream.worker.tally import Tally

WORKER: Final = "test"


class WorkerKilled(BaseException):  # so that ``except Exception`` does not catch it
    """Ends an attempt at the place where its worker is lost."""


class RecordedRun:
    """The events and the last checkpoint of one run, over all its attempts."""

    def __init__(self, job: Job) -> None:
        """Begin without events."""
        self.job = job
        self.events: list[Event] = []
        self.checkpoint: StoredCheckpoint | None = None
        self.attempts = 0

    def begin_attempt(self, *, resumes: bool) -> None:
        """Begin the next attempt."""
        self.attempts += 1
        self.add(RUN_STARTED, {"worker": WORKER, **({"resumes": True} if resumes else {})})

    def add(self, event_type: str, data: Any) -> Event:  # noqa: ANN401 -- JSON
        """Add an event of the current attempt, and return it."""
        last = self.events[-1] if self.events else None
        seq = last.seq + 1 if last and last.attempt == self.attempts else 1
        event = Event(self.attempts, seq, event_type, data)
        self.events.append(event)
        return event

    def add_checkpoint(self, content: bytes) -> Event:
        """Add a checkpoint in the form in which a worker stores it."""
        event = self.add(RUN_CHECKPOINT, {})
        self.checkpoint = StoredCheckpoint(Cursor(event.attempt, event.seq), content)
        return event

    def add_restored(self, restored: Restored) -> None:
        """Add an earlier attempt that left ``restored``. Raises InvalidAgentOutput if its state is not JSON."""
        self.begin_attempt(resumes=False)
        if restored.state is not None:
            self.add_checkpoint(pack(encode_state(restored.state), Tally()))
        for channel, text in ((REASONING, restored.reasoning), (TEXT, restored.text)):
            if text:
                self.add(channel, text)
        for event_type, data in restored.events:
            self.add(event_type, data)
        for call in restored.tool_calls:
            data = {"index": call.index, "id": call.id, "name": call.name, "arguments": call.arguments}
            self.add(TOOL_CALL_DELTA, data)

    def restored(self, execution: Execution) -> Restored | None:
        """Return what the earlier attempts left, as the worker of the next attempt reads it."""
        position = self.checkpoint.position if self.checkpoint else START
        after = [event for event in self.events if Cursor(event.attempt, event.seq) > position]
        restored = takeover_of(self.checkpoint, after, self.attempts + 1, execution.tally).restored
        execution.tally.running_tools = 0
        return restored


class Recording(Execution):
    """One attempt at a recorded run. Its worker can be lost after a number of events."""

    def __init__(
        self, agent: Agent, run: RecordedRun, *, kill_after: int | None = None, only_checkpoints: bool = False
    ) -> None:
        """``kill_after`` is a number of events of this attempt, or with ``only_checkpoints`` of its checkpoints."""
        super().__init__(lambda _model: agent, Claim("", run.job, 0.0), lambda _success: None)
        self._run = run
        self._lock = threading.Lock()
        self._loop_thread = threading.get_ident()
        self._left = kill_after
        self._only_checkpoints = only_checkpoints
        self.killed_after: Event | None = None  # the last event, if the worker was lost
        self.restored: Restored | None = None  # what the earlier attempts left

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Record an event as it would be sent. Any thread may call it. Raises InvalidAgentOutput like a worker."""
        item = orjson.loads(encode_event(event_type, data))
        with self._lock:
            self._raise_if_killed()
            event = self._run.add(event_type, item if event_type == TEXT else item[1])
            self.tally.record(event_type, data)
            self._kill_after(event)

    def put_checkpoint(self, state: bytes) -> bool:
        """Record a checkpoint. Any thread may call it."""
        with self._lock:
            self._raise_if_killed()
            self._kill_after(self._run.add_checkpoint(pack(state, self.tally)))
        return True

    async def wait_for_room(self) -> None:
        """Let other tasks run, as in a worker: an agent that never waits could not reach its time limit."""
        self._raise_if_killed()
        await asyncio.sleep(0)

    def _raise_if_killed(self) -> None:
        if self.killed_after is not None:
            raise WorkerKilled

    def _kill_after(self, event: Event) -> None:
        if self._left is None or (self._only_checkpoints and event.type != RUN_CHECKPOINT):
            return
        self._left -= 1
        if self._left:
            return
        self.killed_after = event
        if threading.get_ident() == self._loop_thread:
            self.stop(LEASE_LOST)
        else:
            self._loop.call_soon_threadsafe(self.stop, LEASE_LOST)
        raise WorkerKilled

    async def outcome(self, timeout_s: float) -> AgentOutcome | None:
        """Run the agent and return its outcome; None if its worker was lost. Raises its exception."""
        self.restored = self._run.restored(self)
        self._run.begin_attempt(resumes=self._run.attempts > 0)
        try:
            terminal = await self.run_agent(timeout_s, self.restored)
        except asyncio.CancelledError:
            await self._until_finished()
            raise
        if self.killed_after is not None:
            await self._until_finished()
            return None
        if self.failure is not None:
            raise self.failure
        event_type, data = cast("tuple[str, dict[str, Any]]", terminal)
        if self.result is None:
            raise (TimeoutError if data["code"] == RUN_TIMEOUT else AgentError)(data["message"])
        self._run.add(event_type, data)
        return outcome_of(self._run.events, self.result)

    async def _until_finished(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEANUP_TIMEOUT_S):
                await self.wait_until_finished()


@contextlib.asynccontextmanager
async def started(agent: object, timeout_s: float) -> AsyncIterator[Agent]:
    """Yield the agent. If it must be started, enter its context manager and leave it afterwards."""
    if not (is_context_manager(agent) or takes_nothing(agent)):
        try:
            called = as_agent(agent)
        except TypeError as exc:
            message = f"the agent {exc}"
            raise TypeError(message) from exc
        yield called
        return
    managed = ManagedAgent("the agent", agent)
    async with asyncio.timeout(timeout_s):
        await managed.enter()
    try:
        yield managed.agent
    finally:
        async with asyncio.timeout(timeout_s):
            await managed.leave()
