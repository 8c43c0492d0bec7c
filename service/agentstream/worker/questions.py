"""The questions that the agent of one attempt asks with ``run.interrupt``, and their answers.

The run of a resumable agent is parked while the agent waits. A later attempt asks the same question again and
gets the answer. An agent that is not resumable waits in its worker.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

import orjson

from agentstream.errors import InterruptTimeout, InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import INTERRUPT, RUN_RESUMED
from agentstream.protocol.interrupts import MAX_INTERRUPTS, Interrupt
from agentstream.store.bus.outbox import Fields
from agentstream.store.interrupts import TIMED_OUT, Waiting

# Several questions that an agent asks at the same time are parked together.
GATHER_S: Final = 0.02
# The open questions of a run are stored together, and repeated in its final chunk.
MAX_OPEN_BYTES: Final = 1 << 20

Publish = Callable[[str, dict[str, Any], Fields], None]


class Questions:
    """The open and answered questions of one attempt. ``ask`` may be called from any thread, the rest on the loop."""

    def __init__(self, publish: Publish, park: Callable[[], None] | None) -> None:
        """``publish`` stores an event with fields of the run's hash. ``park`` parks the run. None: wait here."""
        self.publish = publish
        self.park = park
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self.on_asked: Callable[[], None] = _do_nothing  # called for each new question, in any thread
        self.on_timeouts: Callable[[int], None] = _do_nothing  # called with a number of questions that expired here
        self.timeout_s: float = 24 * 3600  # of a question without a time limit
        self._answers: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, Interrupt] = {}  # by this attempt or an earlier one, without an answer
        self._waiting: dict[str, Future[Any]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of questions that wait here; each keeps the run in memory
        self._expired: set[str] = set()  # their time is over; an answer may be stored, but not read yet
        self._closed = False

    def restore(self, waiting: Waiting) -> None:
        """Continue with the questions of earlier attempts, and with their answers."""
        self._answers = dict(waiting.answers)
        self._asked = {asked.id: asked for asked in waiting.open}

    @property
    def waits(self) -> bool:
        """Whether the agent waits for an answer now."""
        return bool(self._waiting)

    @property
    def last_expiry(self) -> int:
        """When the last open question expires; Unix time, s."""
        return max((asked.expires_at for asked in self._asked.values()), default=int(time.time()))

    @property
    def first_expiry(self) -> int:
        """When the first open question expires; Unix time, s."""
        return min((asked.expires_at for asked in self._asked.values()), default=int(time.time()))

    def ask(self, asked: Interrupt) -> Future[Any]:
        """Return the future answer to a question. A question that was asked before keeps its time limit.

        Raises InvalidAgentOutput if the run has asked too many questions, or if too many bytes of them are open.
        """
        future: Future[Any] = Future()
        with self._lock:
            waiting = self._waiting.get(asked.id)
            if waiting is not None and not waiting.done():
                return waiting  # the agent asks the same twice at the same time
            if (answer := self._answers.get(asked.id)) is not None:
                _resolve(future, asked.id, answer)
                return future
            if len(self._answers) + len(self._asked) >= MAX_INTERRUPTS:
                message = f"run.interrupt: the run has asked {MAX_INTERRUPTS} questions, which is the limit"
                raise InvalidAgentOutput(message)
            if not asked.expires_at:
                asked = asked._replace(expires_at=math.ceil(time.time() + self.timeout_s))
            new = asked.id not in self._asked
            open_ones = self._asked if not new else {**self._asked, asked.id: asked}
            every = orjson.dumps([each.as_json() for each in open_ones.values()])
            if new and len(every) > MAX_OPEN_BYTES:
                message = f"run.interrupt: the open questions have {len(every)} bytes; the limit is {MAX_OPEN_BYTES}"
                raise InvalidAgentOutput(message)
            self._asked.setdefault(asked.id, asked)
            if self._closed:
                _end(future)
            else:
                self._waiting[asked.id] = future  # before the event: the answer may come at once
        if new:
            fields = ("interrupts", every, "waits", int(self.park is None))
            try:
                self.publish(INTERRUPT, asked.as_json(), fields)
                self.on_asked()
            except BaseException:
                self._waiting.pop(asked.id, None)
                self._asked.pop(asked.id, None)
                raise
        self._loop.call_soon_threadsafe(self._wait_for, asked.id)
        return future

    def _wait_for(self, interrupt_id: str) -> None:
        if self.park is not None:
            self._loop.call_later(GATHER_S, self.park_if_idle)
        elif interrupt_id in self._waiting and interrupt_id not in self._timers:
            left_s = max(0.0, self._asked[interrupt_id].expires_at - time.time())
            timer = self._loop.call_later(left_s, self._expired.add, interrupt_id)
            self._timers[interrupt_id] = timer

    def park_if_idle(self) -> None:
        """Park the run if its agent waits for an answer. The execution does nothing while tools run."""
        if self.park is not None and self._waiting and not self._closed:
            self.park()

    def deliver(self, answers: Mapping[str, dict[str, Any]]) -> None:
        """Give the agent the answers that have arrived while it waits here. ``answers`` are all that are stored.

        A question that has expired by now without a stored answer times out. The worker calls this several times a
        lease while the agent waits.
        """
        answers = {**dict.fromkeys(self._expired, TIMED_OUT), **answers}
        new = [name for name in answers if name in self._waiting]
        if not new:
            return
        self.publish(RUN_RESUMED, {"answered": new}, ())
        self.on_timeouts(sum(answers[name] == TIMED_OUT for name in new))
        for name in new:
            with self._lock:
                self._answers[name] = answers[name]
                self._asked.pop(name, None)
                future = self._waiting.pop(name)
            self._expired.discard(name)
            if (timer := self._timers.pop(name, None)) is not None:
                timer.cancel()
            _resolve(future, name, answers[name])

    def close(self) -> None:
        """End the waiting of threads: this attempt is over."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
        for future in waiting:
            _end(future)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def _do_nothing(_number: int = 0) -> None:
    """Do nothing."""


def _resolve(future: Future[Any], interrupt_id: str, answer: Mapping[str, Any]) -> None:
    if future.done():
        return
    if "answer" in answer:
        future.set_result(answer["answer"])
    else:
        future.set_exception(InterruptTimeout(f"nobody has answered the interrupt {interrupt_id!r} in time"))


def _end(future: Future[Any]) -> None:
    if not future.done():
        future.set_exception(RunCancelled("this attempt is over: the run waits for an answer, or has ended"))
