"""The interrupts of runs in the store: their questions, and the answers so far.

A run that waits has the status ``requires_action``. Its hash holds the interrupts, the answers and its job, so that any
front end can enqueue it again. No queue entry, slot, connection or task belongs to it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentstream.errors import BusError
from agentstream.protocol.events import RUN_RESUMED, encode_event
from agentstream.protocol.interrupts import MAX_TIMEOUT_S, Interrupt
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import Keys
from agentstream.store.connection.link import Link

FIELDS: Final = ("status", "interrupts", "answers", "job", "parked_at")
# Begins a message on the control channel of a worker: a run that waits in the worker has got an answer.
ANSWERED: Final = "answered:"
# TTL of the set of parked runs, from the last one that was added: a queue may lose all its workers for ever.
PARKED_TTL_S: Final = MAX_TIMEOUT_S + 24 * 3600
TIMED_OUT: Final[dict[str, Any]] = {"timed_out": True}


@dataclass(frozen=True, slots=True)
class Waiting:
    """The interrupts of a run, open and answered, in the order of asking.

    ``answers`` holds for each answered id either ``{"answer": ...}`` or TIMED_OUT. ``job`` is None unless the run is
    parked. ``parked_at`` is the Unix time (s) at which the run was parked last; 0 if never. ``stored`` is what the
    script compares, so that two answers cannot overwrite each other.
    """

    run_id: str
    status: str
    interrupts: Mapping[str, Interrupt]
    answers: Mapping[str, dict[str, Any]]
    job: Job | None
    parked_at: float
    stored: tuple[bytes, bytes]

    @property
    def open(self) -> list[Interrupt]:
        """The interrupts without an answer."""
        return [asked for asked in self.interrupts.values() if asked.id not in self.answers]


def open_interrupts(interrupts: bytes | None, answers: bytes | None) -> list[Interrupt]:
    """Return the interrupts in two fields of a run's hash that are not answered."""
    answered = orjson.loads(answers or b"{}")
    return [Interrupt.from_json(data) for data in orjson.loads(interrupts or b"[]") if data["id"] not in answered]


def waiting_of(run_id: str, fields: list[bytes | None]) -> Waiting | None:
    """Return the interrupts in the FIELDS of a run's hash; None if the run has none.

    A run that has ended has only its answers, so that a client may send them again.
    """
    status, interrupts, answers, job, parked_at = fields
    if status is None or not (interrupts or answers):
        return None
    return Waiting(
        run_id,
        status.decode(),
        {data["id"]: Interrupt.from_json(data) for data in orjson.loads(interrupts or b"[]")},
        orjson.loads(answers or b"{}"),
        Job.decode(job) if job else None,
        float(parked_at or 0),
        (interrupts or b"", answers or b""),
    )


class InterruptStore:
    """Reads the interrupts of runs, and stores their answers."""

    def __init__(self, link: Link, keys: Keys) -> None:
        """Store the link and the keys."""
        self._link = link
        self._keys = keys

    async def read(self, run_id: str) -> Waiting | None:
        """Return the interrupts of a run; None if it never asked, or does not exist."""
        return waiting_of(run_id, await self._link.call("HMGET", self._keys.run(run_id), *FIELDS))

    async def answer(self, waiting: Waiting, answers: Mapping[str, dict[str, Any]], *, ttl_s: int) -> str:
        """Store answers to open interrupts of a run that was read as ``waiting``.

        ``answers`` are in the form of ``Waiting.answers``. ``ttl_s`` is the TTL of the keys of an open run. Returns
        ``requires_action`` or ``running`` (the run waits in its worker) if they are stored, PARKING if the worker has
        not parked the run yet, and CHANGED if the run must be read again. After the last answer of a parked run its
        status is ``queued``; the caller then enqueues its job. Raises BusError if the run has lost its replay log.
        """
        every = {**waiting.answers, **answers}
        resumed = encode_event(RUN_RESUMED, {"answered": [name for name in every if name not in waiting.answers]})
        complete = set(every) >= set(waiting.interrupts)
        reply = await self._link.call_script(
            "answer",
            [self._keys.run(waiting.run_id), self._keys.events(waiting.run_id)],
            *waiting.stored,
            orjson.dumps(every),
            int(complete),
            resumed,
            ttl_s,
            self._keys.control(""),
            ANSWERED + waiting.run_id,
        )
        outcome: str = reply.decode()
        if outcome == "LOST":
            message = f"the replay log of {waiting.run_id} is gone"
            raise BusError(message)
        return outcome

    async def enqueue(self, queue: str, job: Job, *, ttl_s: int) -> None:
        """Put the job of a parked run into its queue again, also if the queue is full.

        The run counts as active again, even if its owner then has more active runs than it may start: an answer must
        not be lost. ``ttl_s`` is the TTL of the keys of an open run. If the job is put there twice, ``begin.lua``
        begins an attempt for one of the two entries only.
        """
        if job.limited:
            active = self._keys.active_runs(job.owner)
            await self._link.call("ZADD", active, int(time.time()) + ttl_s, job.run_id)
            await self._link.call("EXPIRE", active, ttl_s)
        await self._link.call("XADD", self._keys.jobs(queue), "*", "job", job.encode())

    async def remember(self, queue: str, run_id: str, expires_at: int) -> None:
        """Let the workers of the queue look at a parked run when its first interrupt expires (Unix time, s)."""
        parked = self._keys.parked(queue)
        await self._link.call("ZADD", parked, expires_at, run_id)
        await self._link.call("EXPIRE", parked, PARKED_TTL_S)

    async def expired(self, queue: str, now_s: int, *, limit: int = 100) -> list[str]:
        """Return the parked runs with an interrupt that has expired by ``now_s``. Several workers may get the same."""
        due = await self._link.call("ZRANGEBYSCORE", self._keys.parked(queue), "-inf", now_s, "LIMIT", 0, limit)
        return [name.decode() for name in due]

    async def forget(self, queue: str, run_id: str, *, since: int = 0, until: int | None = None) -> None:
        """Undo ``remember``, because the run no longer waits.

        Nothing happens if its time is not from ``since`` to ``until``: then the run was parked again meanwhile. Without
        ``until`` the time does not matter, because the run has ended.
        """
        parked = self._keys.parked(queue)
        if until is None:
            await self._link.call("ZREM", parked, run_id)
        else:
            await self._link.call_script("forget", [parked], run_id, since, until)
