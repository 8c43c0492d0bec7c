"""The execution of one job, from its claim to its terminal event.

    claimed -> begun (attempt counted, run_started stored) -> events of the agent -> terminal event -> removed

If the worker of a job is lost, another worker begins a new attempt. An agent that is resumable continues from its last
checkpoint. Any other agent is called only if clients have seen no text of the run and no tool ran, so that no text
appears twice and no tool runs twice. The setting ``retry_after_tools`` allows a new call after tools.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentstream import errors
from agentstream.errors import (
    AgentStreamError,
    BrokerUnavailable,
    BusError,
    Fenced,
    InvalidAgentOutput,
    NotResumable,
    RunCancelled,
)
from agentstream.protocol.events import RUN_FAILED, RUN_HANDED_OVER, TEXT
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import Holder, LogLimits, RunPublisher
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S
from agentstream.store.inputs import InputStore
from agentstream.store.queue import BegunAttempt, Claim, JobQueue
from agentstream.store.run_fields import fields_of
from agentstream.telemetry import tracing
from agentstream.worker.ended_runs import EndedRuns
from agentstream.worker.execution import HAND_BACK, LEASE_LOST, PARK, AgentResolver, Execution
from agentstream.worker.leases import Leases
from agentstream.worker.metrics import HANDED_BACK, NOT_STORED, QueueMetrics
from agentstream.worker.parking import PARKED, Parking
from agentstream.worker.run_log_lines import RunLogLines
from agentstream.worker.spans import job_span, record_end
from agentstream.worker.takeover import Takeover, read_takeover
from agentstream.worker.terminal import Terminal, failed_event

log = logging.getLogger(__name__)

# Time for the last events of a run to be stored while Redis is unavailable. After it the worker gives the run up.
FLUSH_TIMEOUT_S: Final = 60.0
HAND_OVER_FLUSH_S: Final = 2.0  # the same at a hand-over; what is not stored then was shown to nobody
# A run is given up after this many attempts, even if each of them made progress. Hand-overs do not count.
MAX_ATTEMPTS_WITH_PROGRESS: Final = 100
# From this many lost workers without progress on, a run may be the cause. Such runs are taken over one at a time. An
# agent that is not resumable is called again only without progress, so its first lost worker counts.
SUSPICIOUS_STALLS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The limits of one run. ``max_attempts`` does not count attempts that were handed back."""

    run_timeout_s: float
    max_attempts: int
    retry_after_tools: bool
    log: LogLimits
    interrupt_timeout_s: float = 24 * 3600


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
        parking: Parking,
        inputs: InputStore,
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
        self._parking = parking
        self._inputs = inputs
        self._log_lines = RunLogLines(content=log_content)
        self._hide_errors = hide_errors
        self._on_agent_end = on_agent_end
        parking.on_timeouts = metrics.not_answered
        self._executions: set[Execution] = set()
        self.ended_runs = EndedRuns(queue)
        self._handing_over = False
        self._text_events_before = 0  # written in runs that have ended

    @property
    def text_events(self) -> int:
        """The number of pieces of text that the agents have written since this worker began."""
        return self._text_events_before + sum(execution.text_events for execution in self._executions)

    @property
    def unflushed_bytes(self) -> int:
        """The number of bytes of events that are not yet stored."""
        return sum(execution.unflushed_bytes for execution in self._executions)

    def hand_over_all(self) -> None:
        """Hand every run over whose agent can continue on another worker, because this worker stops."""
        self._handing_over = True
        for execution in self._executions:
            execution.hand_over()

    def stop_all(self) -> None:
        """Stop every run, because the worker stops. Hand each run back that another worker may continue or repeat."""
        for execution in self._executions:
            execution.stop(HAND_BACK if execution.may_hand_back else errors.WORKER_SHUTDOWN)

    async def execute(self, claim: Claim, suspicious: asyncio.Future[bool] | None = None) -> None:
        """Execute a claimed job until it ends.

        ``suspicious`` is given for a job that another worker held before. Its result is set as soon as it is known
        whether the agent is called and may have killed its workers before, at the latest when the job ends.
        """
        self._log_lines.claimed(claim, self._queue)
        self._metrics.claimed(again=suspicious is not None)
        execution = Execution(
            self._resolve_agent,
            claim,
            self._on_tool_end,
            on_checkpoint=self._metrics.checkpoint_made,
            hide_errors=self._hide_errors,
        )
        execution.questions.on_asked = self._metrics.asked
        execution.questions.on_timeouts = self._metrics.not_answered
        execution.questions.timeout_s = self._limits.interrupt_timeout_s
        self._executions.add(execution)
        self._leases.hold(execution)
        if self._handing_over:
            execution.hand_over()
        try:
            with job_span(claim, self._queue) as span:
                await self._execute(execution, span, suspicious)
        finally:
            _set_suspicious(suspicious, value=False)
            self._leases.release(execution)
            self._executions.discard(execution)
            self._text_events_before += execution.text_events
            await execution.wait_until_finished()
            execution.release()

    async def _execute(self, execution: Execution, span: tracing.Span, suspicious: asyncio.Future[bool] | None) -> None:
        claim = execution.claim
        if (wait_s := claim.not_before_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)  # another worker may store meanwhile that it executes the run
        late = time.monotonic() - claim.lease_since_s > self._leases.interval_s
        if late and await self._queue.renew([claim.entry_id]):
            log.warning("another worker took the run over before it began here")
            return
        resumable = execution.resumable
        begun = await self._queue.begin(
            claim,
            ttl_s=self._limits.log.open_ttl_s,
            resumable=resumable,
            takes_inputs=execution.takes_inputs,
        )
        if begun is None:
            return
        holder = Holder(self._queue.worker_id, self._queue.name, claim.entry_id, partial(fields_of, claim.job))
        publisher = self._bus.publisher(
            claim.job.run_id, begun.attempt, self._limits.log, execution.abandon, begun.first_batch, holder
        )
        execution.bind(publisher)
        self._log_lines.attempt_begun(claim.job, begun)
        span.set({tracing.ATTEMPT: begun.attempt, tracing.QUEUE_WAIT_S: begun.waited_s})
        stored, outcome = await self._attempt(execution, begun, publisher, suspicious)
        record_end(span, stored, execution.stop_reason or outcome)

    async def _attempt(
        self,
        execution: Execution,
        begun: BegunAttempt,
        publisher: RunPublisher,
        suspicious: asyncio.Future[bool] | None,
    ) -> tuple[Terminal | None, str]:
        """Execute an attempt. Return its terminal event and its outcome.

        The terminal event is None if it was not stored: another worker then ends the run.
        """
        begun_s = time.monotonic()
        self._metrics.attempt_begun(begun)
        takeover, refusal = await self._examine(execution, begun)
        if begun.cancel_requested:
            terminal: Terminal | None = execution.cancelled_event()
        elif refusal is not None:
            terminal = refusal
        else:
            stalls = takeover.stalls if takeover else 0
            _set_suspicious(suspicious, value=stalls >= (SUSPICIOUS_STALLS if execution.resumable else 1))
            restored = takeover.restored if takeover and execution.resumable else None
            if takeover is not None and not takeover.parked:  # no worker held a parked run
                self._metrics.called_again()
                self._metrics.taken_over(resumes=restored is not None, pause_s=begun.silent_s)
                self._log_lines.taken_over(resumes=restored is not None, pause_s=begun.silent_s)
            terminal = await execution.run_agent(self._limits.run_timeout_s, restored)
            self._on_agent_end()
        outcome = ""
        if terminal is None:
            terminal, outcome = await self._leave(execution, begun, publisher)
        if terminal is not None:
            if execution.takes_inputs:
                terminal[1]["unapplied_inputs"] = None  # publish.lua puts the ids here, if there are any
            outcome = await self._store_terminal_event(publisher, terminal)
        now_s, cancel_s = time.monotonic(), execution.cancel_requested_at_s
        cancel_seconds = None if cancel_s is None else now_s - cancel_s
        self._metrics.ended(outcome, seconds=now_s - begun_s, cancel_seconds=cancel_seconds)
        self._log_lines.ended(terminal, outcome, seconds=now_s - begun_s)
        publisher.close(BusError("the run has ended, or another worker continues it"))
        if outcome in {LEASE_LOST, NOT_STORED}:
            return None, outcome
        if outcome != HANDED_BACK:
            self.ended_runs.add(execution.claim, publisher)  # first: a failover may come before the job is finished
            if not publisher.job_removed or execution.claim.job.limited:
                await self._queue.finish(execution.claim, again=publisher.job_removed)
        await self._log_lines.answered(self._bus, execution.claim.job.run_id, terminal)
        return terminal, outcome

    async def deliver(self, run_id: str) -> None:
        """Give the answers and messages for a run to its agent, if the agent takes them in this worker.

        Raises BrokerUnavailable if they cannot be read.
        """
        for execution in tuple(self._executions):
            if execution.claim.job.run_id == run_id:
                try:
                    async with asyncio.timeout(COMMAND_TIMEOUT_S):
                        await self._deliver(execution, run_id)
                except TimeoutError as exc:
                    message = f"Redis did not answer within {COMMAND_TIMEOUT_S:g} s"
                    raise BrokerUnavailable(message) from exc
                except (BusError, RunCancelled) as exc:  # the run may have ended meanwhile
                    message = f"the answers and messages for {run_id} cannot be delivered: {exc}"
                    raise BrokerUnavailable(message) from exc

    async def _deliver(self, execution: Execution, run_id: str) -> None:
        if execution.waits and (waiting := await self._parking.read(run_id)) is not None:
            execution.questions.deliver(waiting.answers)
        if execution.takes_inputs:
            execution.inputs.receive(await self._inputs.read(run_id))

    def _on_tool_end(self, success: bool) -> None:  # noqa: FBT001 -- a callback
        self._metrics.tool_ended(success=success)

    async def _examine(self, execution: Execution, begun: BegunAttempt) -> tuple[Takeover | None, Terminal | None]:
        """Return what earlier attempts left, and the terminal event of a job whose agent must not be called (again).

        Records the events of earlier attempts in the execution's tally.
        """
        job, tally = execution.claim.job, execution.tally
        if begun.attempt == 1:
            if time.time() > job.start_by:
                return None, failed_event(errors.QUEUE_TIMEOUT, "the job waited too long for a worker")
            return None, None
        try:
            takeover = await read_takeover(self._bus, job.run_id, begun.attempt, tally)
        except NotResumable as exc:
            if execution.resumable:
                return None, failed_event(errors.WORKER_LOST, f"the worker was lost, and no other can continue: {exc}")
            tally.record(TEXT, "?")  # a replay log of this size contains text
            takeover = None
        tally.running_tools = 0
        if (waiting := await self._parking.read(job.run_id)) is not None:
            execution.questions.restore(waiting)
        if execution.takes_inputs and takeover is not None:
            execution.inputs.restore(takeover.events, await self._inputs.read(job.run_id))
        if not execution.resumable and (
            tally.written_characters or (tally.tool_calls and not self._limits.retry_after_tools)
        ):
            return None, failed_event(
                errors.WORKER_LOST,
                "the worker was lost, and the run cannot be repeated: it had already written text or called tools",
            )
        counted = begun.attempt - begun.hand_backs
        lost = takeover.stalls if takeover and execution.resumable else counted - 1
        if counted > MAX_ATTEMPTS_WITH_PROGRESS:
            lost = counted - 1
        elif lost < self._limits.max_attempts:
            return takeover, None
        return None, failed_event(errors.WORKER_LOST, f"the run was given up: {lost} workers were lost during it")

    async def _leave(
        self, execution: Execution, begun: BegunAttempt, publisher: RunPublisher
    ) -> tuple[Terminal | None, str]:
        """Leave a run that another attempt continues. Return the outcome, or a terminal event if none can."""
        if execution.stop_reason == HAND_BACK:
            outcome = await self._hand_over(publisher, execution.claim)
            if outcome == errors.WORKER_SHUTDOWN:
                message = "the worker was stopped, and Redis has lost the job of the run"
                return failed_event(outcome, message), outcome
            return None, outcome
        if execution.stop_reason == PARK:
            parked = await self._parking.park(publisher, execution.claim, begun, execution.usage, execution.questions)
            return None, PARKED if parked else LEASE_LOST
        return None, NOT_STORED if execution.broker_refused else LEASE_LOST

    async def _hand_over(self, publisher: RunPublisher, claim: Claim) -> str:
        """Hand the run to the other workers, after all its events. Return the outcome of the attempt.

        The outcome is WORKER_SHUTDOWN if no other worker can take the run.
        """
        try:
            publisher.put(RUN_HANDED_OVER, {})
            async with asyncio.timeout(HAND_OVER_FLUSH_S):
                await publisher.flush()
        except Fenced:
            return LEASE_LOST
        except (AgentStreamError, TimeoutError) as exc:
            log.warning("the last events before the hand-over are not stored: %s", str(exc) or "Redis does not answer")
            publisher.close(BusError("another worker continues the run"))  # what is left must not come later
        return HANDED_BACK if await self._queue.hand_back(claim) else errors.WORKER_SHUTDOWN

    async def _store_terminal_event(self, publisher: RunPublisher, terminal: Terminal) -> str:
        """Store the terminal event. Return the outcome of the attempt."""
        started_s = time.monotonic()
        timer = asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, _give_up, publisher)
        try:
            try:
                publisher.put(*terminal)
            except InvalidAgentOutput as exc:  # the answer is too large for one event
                terminal = failed_event(errors.INVALID_AGENT_OUTPUT, f"{exc}; stream it with run.write")
                publisher.put(*terminal)
            await publisher.flush()
        except AgentStreamError as exc:
            log.error("cannot store the last events of the run: %s", exc)  # noqa: TRY400
            if isinstance(exc, BrokerUnavailable):
                self._metrics.terminal_event_not_stored()
            return LEASE_LOST if isinstance(exc, Fenced) else NOT_STORED
        finally:
            timer.cancel()
            publisher.close(BusError("the run has ended"))
        self._metrics.terminal_event_stored(time.monotonic() - started_s)
        event_type, data = terminal
        return str(data["code"]) if event_type == RUN_FAILED else event_type.removeprefix("run_")


def _give_up(publisher: RunPublisher) -> None:
    publisher.close(BrokerUnavailable(f"Redis did not answer within {FLUSH_TIMEOUT_S:g} s"))


def _set_suspicious(suspicious: asyncio.Future[bool] | None, *, value: bool) -> None:
    if suspicious is not None and not suspicious.done():
        suspicious.set_result(value)
