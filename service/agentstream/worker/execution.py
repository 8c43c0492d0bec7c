"""One call of an agent, on the event loop or in a thread, and its terminal event.

The call ends by itself, or because of its time limit, a cancel, the stop of the worker, or the loss of its lease. If
another worker will continue the run, this call has no terminal event: the next attempt publishes one.
"""

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from agentstream import errors
from agentstream.agents import Agent, AgentResult, Caller, Restored, Run
from agentstream.agents.caller import Headers
from agentstream.agents.failures import describe_failure
from agentstream.agents.shapes import (
    is_async,
    is_resumable,
    name_of,
    takes_inputs,
)
from agentstream.errors import AgentStreamError, BusError, Fenced, InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import RUN_CANCELLED, RUN_COMPLETED, TEXT, TOOL_CALL_END
from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.jobs import Job
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.store.bus.outbox import Fields
from agentstream.store.bus.publisher import RunPublisher
from agentstream.store.deadline import within
from agentstream.store.queue import Claim
from agentstream.stream.transcript import tool_result
from agentstream.telemetry.log_context import AGENT_ERROR, current_log_context
from agentstream.telemetry.masking import mask
from agentstream.worker.agent_call import await_agent, call_in_thread
from agentstream.worker.current_agent import CurrentAgent, set_current_agent
from agentstream.worker.inputs import RunInputs
from agentstream.worker.questions import Questions
from agentstream.worker.spans import agent_span, record_end
from agentstream.worker.takeover import pack
from agentstream.worker.tally import Tally
from agentstream.worker.terminal import Terminal, failed_event, without_details

log = logging.getLogger(__name__)

# Time for a cancelled async agent to clean up, for example to close its request to the model.
CLEANUP_TIMEOUT_S: Final = 5.0
# The same for an agent whose run is handed over: its client waits.
HAND_OVER_CLEANUP_S: Final = 1.0
# Time for a tool to end before its run is handed over. After it the next attempt treats the tool as interrupted.
TOOL_GRACE_S: Final = 3.0

HAND_BACK: Final = "hand_back"
PARK: Final = "park"  # the run waits for people
LEASE_LOST: Final = "lease_lost"

# Returns the agent of a model. Raises ValueError if this worker has none.
AgentResolver = Callable[[str], Agent]


class Execution:
    """The execution of a claimed job on this worker."""

    def __init__(
        self,
        resolve_agent: AgentResolver,
        claim: Claim,
        on_tool_end: Callable[[bool], None],
        *,
        on_checkpoint: Callable[[], None] = lambda: None,
        hide_errors: bool = False,
    ) -> None:
        """Take the job and the function that returns its agent. Call ``bind`` before ``run_agent``.

        ``on_tool_end`` is called at the end of each tool call, from any thread. Its argument is whether the call
        succeeded. ``on_checkpoint`` is called for each checkpoint, from any thread. With ``hide_errors`` the terminal
        event of a failed agent has a neutral message.
        """
        self.claim = claim
        self.tally = Tally()
        agent = _agent_of(resolve_agent, claim.job)
        self.resumable = is_resumable(agent)
        self.takes_inputs = takes_inputs(agent)
        self._resolve_agent = resolve_agent
        self._on_tool_end = on_tool_end
        self._on_checkpoint = on_checkpoint
        self._hide_errors = hide_errors
        self.agent_name = ""  # empty until the agent is called
        self._publisher: RunPublisher | None = None
        self._non_text_events = 0  # published so far
        self.broker_refused = False  # whether the attempt was lost because the broker refused its events
        self.cancel_requested_at_s: float | None = None  # monotonic time
        self._loop = asyncio.get_running_loop()
        self._stop_reason: str | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()  # done when the agent has ended, or must end
        self.questions = Questions(self._put_with_fields, self._park if self.resumable else None)
        self.inputs = RunInputs(self._put_with_fields)
        self._handing_over = False
        self._lost = False
        self._restored: Restored | None = None
        self._warned = False  # that an agent which cannot continue makes checkpoints
        self.result: AgentResult | None = None  # of an agent that has returned a valid one
        self.failure: BaseException | None = None  # of an agent that failed
        self.usage = Usage()  # so far, of an agent that was stopped
        self._unfinished: list[asyncio.Future[Any]] = []  # may still be running when the run has ended

    def bind(self, publisher: RunPublisher) -> None:
        """Set the publisher of the run's events."""
        self._publisher = publisher
        publisher.takes_inputs = self.takes_inputs
        self.tally.count_streamed(lambda: publisher.text_characters)

    # -- stopping the run ---------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether the attempt has begun. Before that, the hash of the run names an earlier worker."""
        return self._publisher is not None

    @property
    def may_hand_back(self) -> bool:
        """Whether another worker may continue the run, or repeat it because it has shown nothing."""
        return self.resumable or self.tally.retryable

    @property
    def stop_reason(self) -> str | None:
        """The reason why the run was stopped, or None. The loss of the lease counts, whatever came before it."""
        return LEASE_LOST if self._lost else self._stop_reason

    def stop(self, reason: str) -> None:
        """Stop the run. ``reason`` is the code of a failure, HAND_BACK or LEASE_LOST. The first reason counts."""
        if self._stop_reason is None:
            self._stop_reason = reason
            self._end_wait()

    def _end_wait(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _on_agent_end(self, agent: asyncio.Task[object]) -> None:
        if not agent.cancelled():
            agent.exception()  # asyncio must not warn
        self._end_wait()

    def hand_over(self) -> None:
        """Let another worker continue the run, if its agent can: at once, or when the tools that run now have ended."""
        if not self.resumable or self._handing_over:
            return
        self._handing_over = True
        if self.tally.running_tools > 0:
            self._loop.call_later(TOOL_GRACE_S, self.stop, HAND_BACK)
        else:
            self.stop(HAND_BACK)

    def cancel(self) -> None:
        """End the run as cancelled."""
        if self.cancel_requested_at_s is None:
            self.cancel_requested_at_s = time.monotonic()
        self.stop(errors.CANCELLED)

    def abandon(self, cause: AgentStreamError | None = None) -> None:
        """Stop the run without a terminal event.

        Another worker owns the run, or, if ``cause`` is not Fenced, the broker refuses its events.
        """
        self.broker_refused |= not (cause is None or isinstance(cause, Fenced))
        self._lost = True
        self.stop(LEASE_LOST)
        if self._publisher is not None:
            self._publisher.close(BusError("the lease of the run was lost"))

    # -- the sink of the run ------------------------------------------------------------------------

    def put(self, event_type: str, data: Any) -> None:  # noqa: ANN401 -- JSON
        """Publish an event. May be called from any thread."""
        if self._publisher is None:
            message = "the run has not begun"
            raise BusError(message)
        if event_type is TEXT:
            self._publisher.put_text(data)
            return
        self._publisher.put(event_type, data)
        self.tally.record(event_type, data)
        self._non_text_events += 1
        if event_type == TOOL_CALL_END:
            self._on_tool_end(bool(data.get("success", True)))
            if self.tally.running_tools <= 0:
                if self._handing_over:
                    self._loop.call_soon_threadsafe(self.stop, HAND_BACK)
                elif self.questions.waits:
                    self._loop.call_soon_threadsafe(self.questions.park_if_idle)

    @property
    def waits(self) -> bool:
        """Whether the agent waits for people in this worker."""
        return self.questions.waits

    def put_checkpoint(self, state: bytes) -> bool:
        """Publish a checkpoint. May be called from any thread, which then waits until it is stored."""
        if self._publisher is None:
            message = "the run has not begun"
            raise BusError(message)
        if not (self.resumable or self._warned):
            self._warned = True
            log.warning(
                "agent %s makes checkpoints, but is not resumable, so no other worker continues its runs; "
                "set `resumable = True` on it",
                self.agent_name,
            )
        self._non_text_events += 1
        self._on_checkpoint()
        return self._publisher.put_checkpoint(pack(state, self.tally))

    def ask(self, asked: Interrupt) -> "Future[Any]":
        """Ask people a question; return the future answer. May be called from any thread."""
        self.tally.interrupts += 1
        return self.questions.ask(asked)

    def take_inputs(self) -> list[dict[str, Any]]:
        """Return the messages that the agent has not got yet. May be called from any thread."""
        return self.inputs.take() if self.takes_inputs else []

    def _put_with_fields(self, event_type: str, data: dict[str, Any], fields: Fields) -> None:
        if self._publisher is None:
            message = "the run has not begun"
            raise BusError(message)
        self._non_text_events += 1
        self._publisher.put(event_type, data, fields)

    def _park(self) -> None:
        """Park the run, because its agent waits for people. If a tool runs, do nothing: its end calls this again."""
        if self.tally.running_tools <= 0:
            self.stop(PARK)

    @property
    def text_events(self) -> int:
        """The number of pieces of text published so far. Other events do not count."""
        if self._publisher is None:
            return 0
        return max(0, self._publisher.events_put - self._non_text_events - 1 - self._publisher.ended)

    @property
    def unflushed_bytes(self) -> int:
        """The number of bytes that are not yet stored."""
        return 0 if self._publisher is None else self._publisher.unflushed_bytes

    async def wait_for_room(self) -> None:
        """Wait until the publisher has room for more events."""
        if self._publisher is not None:
            await self._publisher.wait_for_room()

    # -- running the agent --------------------------------------------------------------------------

    async def run_agent(self, run_timeout_s: float, restored: Restored | None = None) -> Terminal | None:
        """Call the agent. Return the terminal event, or None if the next attempt will publish one.

        ``restored`` is what earlier attempts left, for an agent that continues them. An error of the agent becomes a
        ``run_failed`` event and is never raised.
        """
        self._restored = restored
        try:
            request = ChatCompletionRequest.model_validate(self.claim.job.request)
            called = self._resolve_agent(request.model)
        except ValueError as exc:  # the front end is newer, or its settings name other agents
            return failed_event(errors.INVALID_REQUEST, f"this worker cannot serve the request: {exc}")
        self.agent_name = name_of(called)
        with agent_span(self.agent_name, self.claim.job.run_id, request.model) as span:
            terminal = await self._run_agent(called, request, run_timeout_s)
            record_end(span, terminal, self.stop_reason)
        if self._hide_errors and self.failure is not None and terminal is not None:
            return without_details(terminal, self.claim.job)
        return terminal

    async def _run_agent(self, called: Agent, request: ChatCompletionRequest, run_timeout_s: float) -> Terminal | None:
        put_text = None if self._publisher is None else self._publisher.put_text  # runs for each token
        run = Run(self.claim.job.run_id, request, self, caller_of(self.claim.job), put_text)
        run.restore(self._restored, self.tally.client_calls, self.tally.interrupts if self.resumable else 0)
        agent = self._loop.create_task(self._call(called, run), name=f"agent {self.agent_name} {run.id}")
        agent.add_done_callback(self._on_agent_end)
        self._unfinished.append(agent)
        try:
            with contextlib.suppress(TimeoutError):
                await within(self._over, run_timeout_s)
        finally:
            # A thread or task of the agent that still runs cannot publish any more.
            run.cancel(continued=self.stop_reason in {HAND_BACK, LEASE_LOST, PARK})
            self.questions.close()
            ended_itself = agent.done()
            agent.cancel()
        if ended_itself and self.stop_reason != LEASE_LOST:
            return self._terminal_of(agent, request)
        continued = self.stop_reason in {HAND_BACK, PARK}
        await asyncio.wait({agent}, timeout=HAND_OVER_CLEANUP_S if continued else CLEANUP_TIMEOUT_S)
        self.usage = self.tally.usage(request.messages)
        if self.stop_reason is None:
            return failed_event(errors.RUN_TIMEOUT, f"the run took longer than {run_timeout_s:g} s")
        if self.stop_reason == errors.CANCELLED:
            return self.cancelled_event(request)
        if self.stop_reason == errors.WORKER_SHUTDOWN:
            return failed_event(errors.WORKER_SHUTDOWN, "the worker was stopped before the run ended")
        return None

    def cancelled_event(self, request: ChatCompletionRequest | None = None) -> Terminal:
        """Return the terminal event of a cancelled run, with its usage so far, or no usage if the agent never ran."""
        return RUN_CANCELLED, {"usage": self.tally.usage(request.messages if request else []).model_dump()}

    async def wait_until_finished(self) -> None:
        """Wait until everything that the agent started has ended. A thread cannot be killed, so it keeps its slot.

        After a hand-over nothing is waited for: the process ends.
        """
        left = [future for future in self._unfinished if not future.done()]
        if left and self.stop_reason != HAND_BACK:
            log.warning("the run has ended, but its agent still runs; its slot stays taken until the agent returns")
            await asyncio.wait(left)

    def release(self) -> None:
        """Drop the references that form cycles with this execution. Call it when the run is over.

        Otherwise the request and the answer stay in memory until Python's garbage collector finds the cycles, and its
        search takes time from the other runs.
        """
        self.questions.publish = self.inputs.publish = _refuse
        self.questions.park = None
        if self.failure is not None:
            # Its frames refer to this execution. A plain assignment fails for an exception that is a frozen dataclass.
            BaseException.with_traceback(self.failure, None)
        self._unfinished.clear()

    async def _call(self, agent: Agent, run: Run) -> object:
        set_current_agent(CurrentAgent(self.agent_name, current_log_context()))
        if is_async(agent):
            return await await_agent(agent(run), run)
        done = self._loop.create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # asyncio must not warn
        self._unfinished.append(done)
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run,
            args=(call_in_thread, agent, run, done),
            name=f"agent {run.id}",
            daemon=True,  # a blocked agent must not keep a stopped worker process alive
        )
        thread.start()
        return await await_agent(await asyncio.shield(done), run)

    def _terminal_of(self, agent: asyncio.Task[object], request: ChatCompletionRequest) -> Terminal:
        if agent.cancelled():
            return failed_event(errors.AGENT_ERROR, "the agent cancelled itself")
        try:
            return RUN_COMPLETED, self._completion(request, agent.result())
        except InvalidAgentOutput as exc:
            self.failure = exc
            log.warning("the agent broke its contract: %s", exc, exc_info=exc, extra=self._log_extra())
            return failed_event(errors.INVALID_AGENT_OUTPUT, str(exc))
        except BaseException as exc:  # the agent's own classes may derive from BaseException
            self.failure = exc
            log.exception("the agent failed", extra=self._log_extra())
            return self._failure(*describe_failure(exc))

    def _failure(self, code: str, message: str, status: int | None = None) -> Terminal:
        """Return the terminal event of an error of the agent. It has its own code if the agent never continued."""
        if code == errors.AGENT_ERROR and self._restored is not None and not self._put_anything:
            return failed_event(errors.RESUME_FAILED, f"the agent could not continue the run: {message}")
        return failed_event(code, message, status)

    @property
    def _put_anything(self) -> bool:
        """Whether the agent has sent anything in this attempt. The first event is run_started."""
        return self._publisher is not None and self._publisher.events_put > 1

    def _log_extra(self) -> dict[str, Any]:
        return {**AGENT_ERROR, "agent": self.agent_name}

    def _completion(self, request: ChatCompletionRequest, result: object) -> dict[str, Any]:
        if not isinstance(result, AgentResult):
            message = f"the agent returned {type(result).__name__}, expected AgentResult"
            raise InvalidAgentOutput(message)
        result.check()
        self.result = result
        streamed = self.tally.text_characters > 0
        usage = result.usage() or self.tally.estimate(request.messages, 0 if streamed else len(result.content))
        # An agent may forget this reason. Clients look at it before they look for calls.
        calls = self.tally.client_calls > 0 and result.finish_reason == "stop"
        return {
            "content": None if streamed else mask(result.content),
            "tool_results": [
                tool_result(
                    tool.tool_name,
                    success=bool(tool.success),
                    output=mask(tool.text()),
                    latency_s=tool.latency_seconds,
                )
                for tool in result.tool_results
            ],
            "finish_reason": "tool_calls" if calls else result.finish_reason,
            "usage": usage.model_dump(),
        }


def _refuse(*_: object) -> None:
    message = "the run is over"
    raise RunCancelled(message)


def _agent_of(resolve_agent: AgentResolver, job: Job) -> Agent | None:
    try:
        return resolve_agent(job.request["model"])
    except (ValueError, KeyError):  # ``run_agent`` reports it
        return None


def caller_of(job: Job) -> Caller:
    """Return the sender of the request that created a job."""
    return Caller(key_hash=job.owner, request_id=job.request_id, headers=Headers(job.headers))
