"""The execution of one job, from its claim to its terminal event.

    claimed -> begun (attempt counted, run_started stored) -> events of the agent -> terminal event -> removed

If the worker of a job is lost, another worker begins a new attempt. It calls the agent only if clients have seen no
text of the run and no tool ran, so that no text appears twice and no tool runs twice. The setting ``retry_after_tools``
allows a new call after tools.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentstream import errors
from agentstream.errors import AgentStreamError, BusError, Fenced, InvalidAgentOutput, LogTrimmed
from agentstream.protocol.events import RUN_FAILED, TEXT
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits, RunPublisher
from agentstream.store.queue import BegunAttempt, Claim, JobQueue
from agentstream.telemetry import tracing
from agentstream.worker.execution import HAND_BACK, LEASE_LOST, AgentResolver, Execution, Terminal, failed_event
from agentstream.worker.leases import Leases
from agentstream.worker.metrics import HANDED_BACK, NOT_STORED, QueueMetrics
from agentstream.worker.run_log_lines import RunLogLines
from agentstream.worker.spans import job_span, record_end

log = logging.getLogger(__name__)

# Time for the last events of a run to be stored while Redis is unavailable. After it the worker gives the run up.
FLUSH_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The limits of one run. ``max_attempts`` does not count attempts that were handed back."""

    run_timeout_s: float
    max_attempts: int
    retry_after_tools: bool
    log: LogLimits


class Runner:
    """Executes claimed jobs, each with the agent of its model."""

    def __init__(  # noqa: PLR0913, PLR0917 -- the parts that it joins
        self,
        resolve_agent: AgentResolver,
        bus: Bus,
        queue: JobQueue,
        leases: Leases,
        limits: RunLimits,
        metrics: QueueMetrics,
        *,
        log_content: bool = False,
        hide_errors: bool = False,
        on_agent_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Bind the parts.

        ``log_content`` allows the texts of users and agents in log lines. With ``hide_errors`` clients do not see the
        texts of the errors of agents. ``on_agent_end`` is called after each call of an agent.
        """
        self._resolve_agent = resolve_agent
        self._bus = bus
        self._queue = queue
        self._leases = leases
        self._limits = limits
        self._metrics = metrics
        self._log_lines = RunLogLines(content=log_content)
        self._hide_errors = hide_errors
        self._on_agent_end = on_agent_end
        self._executions: set[Execution] = set()
        self._text_events_before = 0  # written in runs that have ended

    @property
    def text_events(self) -> int:
        """The number of pieces of text that the agents have written since this worker began."""
        return self._text_events_before + sum(execution.text_events for execution in self._executions)

    @property
    def unflushed_bytes(self) -> int:
        """The number of bytes of events that are not yet stored."""
        return sum(execution.unflushed_bytes for execution in self._executions)

    def stop_all(self) -> None:
        """Stop every run, because the worker stops. Hand a run back if it has shown nothing, otherwise let it fail."""
        for execution in self._executions:
            execution.stop(HAND_BACK if execution.tally.retryable else errors.WORKER_SHUTDOWN)

    async def execute(self, claim: Claim, called_again: asyncio.Future[bool] | None = None) -> None:
        """Execute a claimed job until it ends.

        ``called_again`` is given for a job that another worker held before. Its result is set as soon as it is known
        whether the agent is called again, at the latest when the job ends.
        """
        self._log_lines.claimed(claim, self._queue)
        self._metrics.claimed(again=called_again is not None)
        execution = Execution(self._resolve_agent, claim, self._on_tool_end, hide_errors=self._hide_errors)
        self._executions.add(execution)
        self._leases.hold(execution)
        try:
            with job_span(claim, self._queue) as span:
                await self._execute(execution, span, called_again)
        finally:
            _set_called_again(called_again, value=False)
            self._leases.release(execution)
            self._executions.discard(execution)
            self._text_events_before += execution.text_events
            await execution.wait_until_finished()

    async def _execute(
        self, execution: Execution, span: tracing.Span, called_again: asyncio.Future[bool] | None
    ) -> None:
        claim = execution.claim
        late = time.monotonic() - claim.lease_since_s > self._leases.interval_s
        if late and await self._queue.renew([claim.entry_id]):
            log.warning("another worker took the run over before it began here")
            return
        begun = await self._queue.begin(claim, ttl_s=self._limits.log.open_ttl_s)
        if begun is None:
            await self._queue.finish(claim)
            return
        publisher = self._bus.publisher(
            claim.job.run_id, begun.attempt, self._limits.log, execution.abandon, begun.first_batch
        )
        execution.bind(publisher)
        self._log_lines.attempt_begun(claim.job, begun)
        span.set({tracing.ATTEMPT: begun.attempt, tracing.QUEUE_WAIT_S: begun.waited_s})
        stored, outcome = await self._attempt(execution, begun, publisher, called_again)
        record_end(span, stored, execution.stop_reason or outcome)

    async def _attempt(
        self,
        execution: Execution,
        begun: BegunAttempt,
        publisher: RunPublisher,
        called_again: asyncio.Future[bool] | None,
    ) -> tuple[Terminal | None, str]:
        """Execute an attempt. Return its terminal event and its outcome.

        The terminal event is None if it was not stored: another worker then ends the run.
        """
        begun_s = time.monotonic()
        self._metrics.attempt_begun(begun)
        refusal = await self._refusal(execution, begun)
        if begun.cancel_requested:
            terminal: Terminal | None = execution.cancelled_event()
        elif refusal is not None:
            terminal = refusal
        else:
            _set_called_again(called_again, value=True)
            if begun.attempt > 1:
                self._metrics.called_again()
            terminal = await execution.run_agent(self._limits.run_timeout_s)
            self._on_agent_end()
        if terminal is not None:
            outcome = await self._store_terminal_event(publisher, terminal)
        elif execution.stop_reason == HAND_BACK:
            outcome = HANDED_BACK
        else:
            outcome = NOT_STORED if execution.broker_refused else LEASE_LOST
        now_s, cancel_s = time.monotonic(), execution.cancel_requested_at_s
        cancel_seconds = None if cancel_s is None else now_s - cancel_s
        self._metrics.ended(outcome, seconds=now_s - begun_s, cancel_seconds=cancel_seconds)
        self._log_lines.ended(terminal, outcome, seconds=now_s - begun_s)
        publisher.close(BusError("the run has ended, or another worker continues it"))
        if outcome == HANDED_BACK:
            await self._queue.hand_back(execution.claim)
        elif outcome in {LEASE_LOST, NOT_STORED}:
            return None, outcome
        else:
            await self._queue.finish(execution.claim)
        await self._log_lines.answered(self._bus, execution.claim.job.run_id, terminal)
        return terminal, outcome

    def _on_tool_end(self, success: bool) -> None:  # noqa: FBT001 -- a callback
        self._metrics.tool_ended(success=success)

    async def _refusal(self, execution: Execution, begun: BegunAttempt) -> Terminal | None:
        """Return the terminal event of a job whose agent must not be called (again), otherwise None.

        Records the events of earlier attempts in the execution's tally.
        """
        job = execution.claim.job
        if begun.attempt == 1:
            if time.time() > job.start_by:
                return failed_event(errors.QUEUE_TIMEOUT, "the job waited too long for a worker")
            return None
        try:
            for event in await self._bus.history(job.run_id):
                execution.tally.record(event.type, event.data)
        except LogTrimmed:
            execution.tally.record(TEXT, "?")  # a replay log of this size contains text
        tally = execution.tally
        if tally.written_characters or (tally.tool_calls and not self._limits.retry_after_tools):
            return failed_event(
                errors.WORKER_LOST,
                "the worker was lost, and the run cannot be repeated: it had already written text or called tools",
            )
        if begun.attempt - begun.hand_backs > self._limits.max_attempts:
            return failed_event(
                errors.WORKER_LOST, f"the run was given up: {self._limits.max_attempts} workers were lost during it"
            )
        return None

    async def _store_terminal_event(self, publisher: RunPublisher, terminal: Terminal) -> str:
        """Store the terminal event. Return the outcome of the attempt."""
        started_s = time.monotonic()
        try:
            try:
                publisher.put(*terminal)
            except InvalidAgentOutput as exc:  # the answer is too large for one event
                terminal = failed_event(errors.INVALID_AGENT_OUTPUT, f"{exc}; stream it with run.write")
                publisher.put(*terminal)
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await publisher.flush()
        except (AgentStreamError, TimeoutError) as exc:
            log.error("cannot store the last events of the run: %s", exc)  # noqa: TRY400
            if isinstance(exc, TimeoutError):
                self._metrics.terminal_event_not_stored()
            return LEASE_LOST if isinstance(exc, Fenced) else NOT_STORED
        finally:
            publisher.close(BusError("the run has ended"))
        self._metrics.terminal_event_stored(time.monotonic() - started_s)
        event_type, data = terminal
        return str(data["code"]) if event_type == RUN_FAILED else event_type.removeprefix("run_")


def _set_called_again(called_again: asyncio.Future[bool] | None, *, value: bool) -> None:
    if called_again is not None and not called_again.done():
        called_again.set_result(value)
