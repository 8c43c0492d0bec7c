"""One job: from its claim to its one terminal event.

    claimed -> begun (attempt counted) -> run_started -> the agent's events -> run_completed | run_failed -> removed

An agent's mistakes end its run with ``run_failed`` and never leave this module.
"""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final, cast

from service import errors
from service.agents import Agent, AgentResult, Run
from service.agents.loading import is_async
from service.errors import AgentStreamError, BusError, InvalidAgentOutput
from service.protocol.events import RUN_COMPLETED, RUN_FAILED, RUN_STARTED, TEXT
from service.protocol.jobs import Job
from service.protocol.openai import ChatCompletionRequest, estimate_usage
from service.store.bus import Bus
from service.store.publisher import LogLimits, RunPublisher
from service.store.queue import Claim, JobQueue
from service.transcript import tool_result

log = logging.getLogger(__name__)

# How long the last events may wait for an unreachable broker before the worker gives the run up.
FLUSH_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """Bounds of one run. ``ttl_s`` is how long its traces are kept once it is over."""

    run_timeout_s: float
    ttl_s: int
    log: LogLimits


class Runner:
    """Executes claimed jobs with one agent."""

    def __init__(self, agent: Agent, bus: Bus, queue: JobQueue, limits: RunLimits) -> None:
        """Bind what every run needs."""
        self._agent = agent
        self._is_async = is_async(agent)
        self._bus = bus
        self._queue = queue
        self._limits = limits

    async def execute(self, claim: Claim) -> None:
        """Run a claimed job to its end. Cancelling ends the run as ``worker_shutdown``."""
        job = claim.job
        attempt = await self._queue.begin(claim, ttl_s=self._limits.log.open_ttl_s)
        if attempt == 0:
            log.info("run %s stands in the queue twice; the second entry is dropped", job.run_id)
            await self._queue.drop(claim)
            return
        task = asyncio.current_task()
        publisher = self._bus.publisher(job.run_id, attempt, self._limits.log, on_lost=lambda _: _cancel(task))
        publisher.put(RUN_STARTED, {"worker": self._queue.worker_id})
        execution = _Execution(self._agent, job, publisher, is_async=self._is_async)
        terminal, data = await execution.outcome(self._limits.run_timeout_s)
        try:
            try:
                publisher.put(terminal, data)
            except InvalidAgentOutput as exc:  # an answer too large for one event
                terminal, data = RUN_FAILED, _failure(errors.INVALID_AGENT_OUTPUT, f"{exc}; stream it with run.write")
                publisher.put(terminal, data)
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await publisher.flush()
        except (AgentStreamError, TimeoutError) as exc:
            publisher.close(BusError("the run is over"))
            log.error("run %s: its last events could not be stored: %r", job.run_id, exc)  # noqa: TRY400
        else:
            publisher.close(BusError("the run is over"))
            await self._queue.finish(claim, terminal.removeprefix("run_"), ttl_s=self._limits.ttl_s)
        await execution.thread_end()


class _Execution:
    """One agent call, on the loop or in a thread, and what came of it."""

    def __init__(self, agent: Agent, job: Job, publisher: RunPublisher, *, is_async: bool) -> None:
        self._agent = agent
        self._job = job
        self._publisher = publisher
        self._is_async = is_async
        self._thread_done: asyncio.Future[Any] | None = None
        self._written_characters = 0

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Be the run's sink: publish, and count the text."""
        self._publisher.put(event_type, data)
        if event_type == TEXT:
            self._written_characters += len(data)

    async def room(self) -> None:
        """Be the run's sink: wait for room."""
        await self._publisher.room()

    async def outcome(self, run_timeout_s: float) -> tuple[str, dict[str, Any]]:
        """Call the agent and return the terminal event that follows; never raises for an agent's fault."""
        if time.time() > self._job.start_by:
            return RUN_FAILED, _failure(errors.QUEUE_TIMEOUT, "the job waited too long for a worker")
        try:
            request = ChatCompletionRequest.model_validate(self._job.request)
        except ValueError as exc:  # a newer front end's request
            return RUN_FAILED, _failure(errors.INVALID_REQUEST, f"this worker cannot read the request: {exc}")
        run = Run(self._job.run_id, request, self)
        limit = asyncio.timeout(run_timeout_s)
        try:
            async with limit:
                result = await self._call(run)
            return RUN_COMPLETED, self._completion(request, result)
        except asyncio.CancelledError:
            return RUN_FAILED, _cancellation(asyncio.current_task())
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it is the run's outcome
            if limit.expired() and isinstance(exc, TimeoutError):
                return RUN_FAILED, _failure(errors.RUN_TIMEOUT, f"the run took longer than {run_timeout_s:g} s")
            return RUN_FAILED, self._agent_failure(exc)
        finally:
            run.cancel()  # whatever still runs (a thread, a stray task) may publish nothing more

    def _agent_failure(self, exc: Exception) -> dict[str, Any]:
        message = str(exc) or type(exc).__name__
        if isinstance(exc, InvalidAgentOutput):
            log.warning("run %s: %s", self._job.run_id, message)
            return _failure(errors.INVALID_AGENT_OUTPUT, message)
        log.error("run %s: the agent failed", self._job.run_id, exc_info=exc)
        return _failure(errors.failure_code(message), message)

    async def thread_end(self) -> None:
        """Return when the agent's thread has ended; a thread cannot be killed, so its slot stays taken."""
        if self._thread_done is not None and not self._thread_done.done():
            log.warning("run %s is over, but its agent's thread is not; waiting for it", self._job.run_id)
            await asyncio.wait([self._thread_done])

    async def _call(self, run: Run) -> object:
        if self._is_async:
            return await _guarded(self._agent, run)
        self._thread_done = done = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # seen, even if late
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run,
            args=(_call_in_thread, self._agent, run, done),
            name=f"agent {run.id}",
            daemon=True,  # a blocked agent must not keep a stopped worker alive
        )
        thread.start()
        return await asyncio.shield(done)

    def _completion(self, request: ChatCompletionRequest, result: object) -> dict[str, Any]:
        if not isinstance(result, AgentResult):
            message = f"the agent returned {type(result).__name__}, expected AgentResult"
            raise InvalidAgentOutput(message)
        result.check()
        streamed = self._written_characters > 0
        characters = self._written_characters if streamed else len(result.content)
        usage = result.usage() or estimate_usage(request.messages, characters)
        return {
            "content": None if streamed else result.content,
            "tool_results": [
                tool_result(
                    tool.tool_name, success=bool(tool.success), output=tool.content, latency_s=tool.latency_seconds
                )
                for tool in result.tool_results
            ],
            "finish_reason": result.finish_reason,
            "usage": usage.model_dump(),
        }


async def _guarded(agent: Agent, run: Run) -> object:
    """Await the agent; its SystemExit would otherwise end the worker."""
    try:
        return await cast("Awaitable[AgentResult]", agent(run))
    except (SystemExit, KeyboardInterrupt) as exc:
        message = f"the agent raised {type(exc).__name__}"
        raise errors.AgentError(message) from exc


def _call_in_thread(agent: Agent, run: Run, done: asyncio.Future[object]) -> None:
    """Call the agent and hand its result or exception to the loop, if there still is one."""
    result: object = None
    error: BaseException | None = None
    try:
        result = agent(run)
    except StopIteration as exc:  # a future cannot carry it
        error = RuntimeError(f"the agent raised StopIteration: {exc.value!r}")
    except (SystemExit, KeyboardInterrupt) as exc:
        error = errors.AgentError(f"the agent raised {type(exc).__name__}")
    except BaseException as exc:  # noqa: BLE001 -- whatever it is, it is the run's outcome
        error = exc

    def settle() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    try:
        done.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:
        log.warning("run %s: its agent's thread ended after the worker had stopped", run.id)


def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()


def _cancellation(task: asyncio.Task[Any] | None) -> dict[str, Any]:
    """Tell the worker's own cancel, which this undoes so that the terminal event can be sent, from the agent's."""
    if task is None or not task.cancelling():
        return _failure(errors.AGENT_ERROR, "the agent cancelled itself")
    task.uncancel()
    return _failure(errors.WORKER_SHUTDOWN, "the worker was stopped before the run ended")


def _failure(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message[: errors.MAX_MESSAGE_CHARACTERS]}
