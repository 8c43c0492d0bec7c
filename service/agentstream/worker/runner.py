"""One job: from its claim to its one terminal event.

    claimed -> begun (attempt counted, run_started stored) -> the agent's events -> terminal event -> removed

A job whose worker was lost is begun again, but its agent is called again only if nothing of it was shown: no text
is doubled, no tool run twice unasked.
"""

import asyncio
import logging
import time
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
from agentstream.worker.run_log import RunLog
from agentstream.worker.spans import job_span, record_end

log = logging.getLogger(__name__)

# How long the last events may wait for an unreachable broker before the worker gives the run up.
FLUSH_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """Bounds of one run. It is attempted ``max_attempts`` times at most, hand-backs not counted."""

    run_timeout_s: float
    max_attempts: int
    retry_after_tools: bool
    log: LogLimits


class Runner:
    """Executes claimed jobs, each with its model's agent."""

    def __init__(  # noqa: PLR0913, PLR0917 -- the parts
        self,
        resolve_agent: AgentResolver,
        bus: Bus,
        queue: JobQueue,
        leases: Leases,
        limits: RunLimits,
        metrics: QueueMetrics,
        *,
        log_content: bool = False,
    ) -> None:
        """Bind what every run needs; ``log_content`` allows what users and agents wrote in log lines."""
        self._resolve_agent = resolve_agent
        self._bus = bus
        self._queue = queue
        self._leases = leases
        self._limits = limits
        self._metrics = metrics
        self._run_log = RunLog(content=log_content)
        self._executions: set[Execution] = set()
        self._text_events_before = 0  # of runs that have ended

    @property
    def text_events(self) -> int:
        """How many pieces of text the agents have written since this began."""
        return self._text_events_before + sum(execution.text_events for execution in self._executions)

    @property
    def unflushed_bytes(self) -> int:
        """How much waits to be published."""
        return sum(execution.unflushed_bytes for execution in self._executions)

    def stop_all(self) -> None:
        """End every run because the worker stops: handed back if nothing of it was shown, else failed."""
        for execution in self._executions:
            execution.stop(HAND_BACK if execution.tally.retryable else errors.WORKER_SHUTDOWN)

    async def execute(self, claim: Claim, called_again: asyncio.Future[bool] | None = None) -> None:
        """Run a claimed job to its end.

        ``called_again`` is told whether the job is one whose agent is called once more, as soon as that is known.
        """
        self._run_log.claimed(claim, self._queue)
        self._metrics.claimed(again=called_again is not None)
        execution = Execution(self._resolve_agent, claim, self._on_tool_end)
        self._executions.add(execution)
        self._leases.hold(execution)
        try:
            with job_span(claim, self._queue) as span:
                await self._execute(execution, span, called_again)
        finally:
            _set_called_again(called_again, told=False)
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
            log.warning("the run went to another worker before it began here")
            return
        begun = await self._queue.begin(claim, ttl_s=self._limits.log.open_ttl_s)
        if begun is None:
            await self._queue.finish(claim)
            return
        publisher = self._bus.publisher(
            claim.job.run_id, begun.attempt, self._limits.log, execution.abandon, begun.first_batch
        )
        execution.bind(publisher)
        self._run_log.attempt_begun(claim.job, begun)
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
        """Return the terminal event if it is stored (another worker may say it, or none), and how the attempt ended."""
        begun_s = time.monotonic()
        self._metrics.attempt_begun(begun)
        refusal = await self._refusal(execution, begun)
        if begun.cancel_requested:
            terminal: Terminal | None = execution.cancelled_event()
        elif refusal is not None:
            terminal = refusal
        else:
            _set_called_again(called_again, told=True)
            if begun.attempt > 1:
                self._metrics.called_again()
            terminal = await execution.run_agent(self._limits.run_timeout_s)
        if terminal is not None:
            outcome = await self._store_terminal_event(publisher, terminal)
        elif execution.stop_reason == HAND_BACK:
            outcome = HANDED_BACK
        else:
            outcome = NOT_STORED if execution.broker_refused else LEASE_LOST
        now_s, heard_s = time.monotonic(), execution.cancel_requested_at_s
        cancel_seconds = None if heard_s is None else now_s - heard_s
        self._metrics.ended(outcome, seconds=now_s - begun_s, cancel_seconds=cancel_seconds)
        self._run_log.ended(terminal, outcome, seconds=now_s - begun_s)
        publisher.close(BusError("the run is over, or goes to another worker"))
        if outcome == HANDED_BACK:
            await self._queue.hand_back(execution.claim)
        elif outcome in {LEASE_LOST, NOT_STORED}:
            return None, outcome
        else:
            await self._queue.finish(execution.claim)
        await self._run_log.answered(self._bus, execution.claim.job.run_id, terminal)
        return terminal, outcome

    def _on_tool_end(self, success: bool) -> None:  # noqa: FBT001 -- a callback
        self._metrics.tool_ended(success=success)

    async def _refusal(self, execution: Execution, begun: BegunAttempt) -> Terminal | None:
        """Return the terminal event of a job whose agent must not be called (again), else None.

        What earlier attempts have shown goes into the execution's tally.
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
            execution.tally.record(TEXT, "?")  # a log that large holds more than its first events
        tally = execution.tally
        if tally.written_characters or (tally.tool_calls and not self._limits.retry_after_tools):
            return failed_event(
                errors.WORKER_LOST, "the worker that ran it was lost, and what it had done cannot be repeated"
            )
        if begun.attempt - begun.hand_backs > self._limits.max_attempts:
            return failed_event(errors.WORKER_LOST, f"{self._limits.max_attempts} workers that ran it were lost")
        return None

    async def _store_terminal_event(self, publisher: RunPublisher, terminal: Terminal) -> str:
        """Store the terminal event, and return how the run has ended."""
        put_s = time.monotonic()
        try:
            try:
                publisher.put(*terminal)
            except InvalidAgentOutput as exc:  # an answer too large for one event
                terminal = failed_event(errors.INVALID_AGENT_OUTPUT, f"{exc}; stream it with run.write")
                publisher.put(*terminal)
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await publisher.flush()
        except (AgentStreamError, TimeoutError) as exc:
            log.error("the last events of the run could not be stored: %s", exc)  # noqa: TRY400
            if isinstance(exc, TimeoutError):
                self._metrics.terminal_event_not_stored()
            return LEASE_LOST if isinstance(exc, Fenced) else NOT_STORED
        finally:
            publisher.close(BusError("the run is over"))
        self._metrics.terminal_event_stored(time.monotonic() - put_s)
        event_type, data = terminal
        return str(data["code"]) if event_type == RUN_FAILED else event_type.removeprefix("run_")


def _set_called_again(called_again: asyncio.Future[bool] | None, *, told: bool) -> None:
    if called_again is not None and not called_again.done():
        called_again.set_result(told)
