"""Lists the open runs of a deployment, with two read-only scripts: those in a queue, and those that wait for people.

It needs no permission beyond those of front ends (deploy/redis-users.acl), and does not scan the keyspace.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from agentstream.errors import BusError
from agentstream.store.admin.client import NO_PERMISSION, AdminClient
from agentstream.store.interrupts import open_interrupts

MAX_LISTED_RUNS: Final = 1000  # default limit for each queue; equals the default of MAX_QUEUED
PARTITION_TIMEOUT_S: Final = 2.0  # for the runs whose server of a cluster is down; the others are listed
UNREACHABLE: Final = "unreachable"

_FIELDS: Final = (
    "status",
    "model",
    "created",
    "attempt",
    "worker",
    "cancel",
    "agent",
    "tokens",
    "checkpoint",
    "checkpoint_at",
)
_PARKED: Final = "requires_action"


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that a queue holds, or that waits for people.

    ``state`` is queued, running, cancelling, requires_action (the run waits for people), or the final status of a run
    that ended a moment ago. It is unknown if the run has no hash, because the broker lost data, and unreachable if the
    cluster has no server for the run now; then nothing else is known. ``events`` counts the events of the latest
    attempt; a streamed token is one event. The worker stores ``agent`` and ``tokens`` when it renews its lease. They
    are empty and 0 until the first renewal. ``checkpoint`` is the position of the last checkpoint, for example
    ``1-17``, and ``checkpoint_age_s`` its age; both are None if there is none. ``asks`` has the kinds of the open
    interrupts. ``answer_by`` is the Unix time (s) at which the first of them expires, or None.
    """

    run_id: str
    queue: str
    state: str
    model: str
    age_s: int
    attempt: int
    worker: str
    events: int
    agent: str = ""
    tokens: int = 0
    checkpoint: str | None = None
    checkpoint_age_s: int | None = None
    asks: tuple[str, ...] = ()
    answer_by: int | None = None


_Details = tuple[list[bytes | None], bytes | None]  # the fields of a run's hash, and the id of its last event


class _Head(NamedTuple):
    """The runs of a queue, and those that wait for people, without their details."""

    now_s: int
    outstanding: int
    run_ids: list[str]
    parked_ids: list[str]
    parked: int
    parked_unreachable: bool


@dataclass(frozen=True, slots=True)
class QueueListing:
    """Runs of a queue: the oldest ones, then those that wait for people, beginning with the most urgent.

    ``outstanding`` is the number of all jobs of the queue. ``parked`` is the number of all runs that wait for people.
    They are not among the jobs. ``parked_unreachable`` says that the cluster has no server for the list of parked runs
    now; then they are missing.
    """

    queue: str
    outstanding: int
    parked: int
    runs: list[OpenRun]
    parked_unreachable: bool = False


class OpenRunReader(AdminClient):
    """Lists open runs."""

    async def open_runs(self, queues: Sequence[str], *, limit: int = MAX_LISTED_RUNS) -> list[QueueListing]:
        """Return the oldest runs of each queue, and the runs that wait for people: at most ``limit`` of each.

        It takes two round trips for all queues.
        """
        async with self._bounded():
            heads = await asyncio.gather(*(self._head(queue, limit) for queue in queues))
        details = await self._details({run_id for head in heads for run_id in (*head.run_ids, *head.parked_ids)})
        return [_listing(queue, head, details) for queue, head in zip(queues, heads, strict=True)]

    async def _head(self, queue: str, limit: int) -> _Head:
        """Return the ids of a queue's runs."""
        parked = asyncio.create_task(self._parked(queue, limit), name=f"parked runs of {queue}")
        opened = self._link.start_script_call("open_runs", [self._keys.jobs(queue)], limit)
        try:
            now_s, outstanding, run_ids = await opened
            done, _ = await asyncio.wait({parked}, timeout=PARTITION_TIMEOUT_S)
            parked_ids, count = parked.result() if done else (None, None)
        finally:
            parked.cancel()
        listed, waiting = ([run_id.decode() for run_id in ids] for ids in (run_ids, parked_ids or []))
        return _Head(int(now_s), outstanding, listed, waiting, count or 0, not done)

    async def _parked(self, queue: str, limit: int) -> tuple[list[bytes] | None, int | None]:
        """Return the ids of the runs that wait for people, and their number; None for what this user may not read."""
        key = self._keys.parked(queue)
        run_ids, count = await asyncio.gather(
            _if_permitted(self._link.start_call("ZRANGE", key, 0, limit - 1)),
            _if_permitted(self._link.start_call("ZCARD", key)),
        )
        return run_ids, count

    async def _details(self, run_ids: Iterable[str]) -> dict[str, _Details]:
        """Return the hash's fields and the last entry of each run whose server answers."""
        async with self._bounded():
            reading = {
                run_id: asyncio.create_task(self._details_of(run_id), name=f"details of {run_id}") for run_id in run_ids
            }
            if not reading:
                return {}
            done, missing = await asyncio.wait(reading.values(), timeout=PARTITION_TIMEOUT_S)
            for each in missing:
                each.cancel()
            failures = [failure for each in done if (failure := each.exception()) is not None]
            if failures:  # all have been retrieved, because asyncio logs those that nobody retrieves
                raise failures[0]
            return {run_id: each.result() for run_id, each in reading.items() if each in done}

    async def _details_of(self, run_id: str) -> _Details:
        return await asyncio.gather(
            self._link.start_call("HMGET", self._keys.run(run_id), *_FIELDS, "interrupts", "answers"),
            self._link.start_script_call("last_entry", [self._keys.events(run_id)]),
        )


async def _if_permitted(reading: Awaitable[Any]) -> Any:  # noqa: ANN401 -- a Redis reply
    """Return a reply; None if this Redis user has no right to it, as users of older versions."""
    try:
        return await reading
    except BusError as exc:
        if str(exc).startswith(NO_PERMISSION):
            return None
        raise


def _listing(queue: str, head: _Head, details: Mapping[str, _Details]) -> QueueListing:
    def opened(run_ids: Sequence[str]) -> list[OpenRun]:
        return [_open_run(run_id, queue, head.now_s, details.get(run_id)) for run_id in run_ids]

    runs, waiting = opened(head.run_ids), opened(head.parked_ids)
    known = {run.run_id for run in runs}
    # A run that has just been answered, cancelled or asked again is in the set for a moment more.
    shown = [run for run in waiting if run.state in {_PARKED, UNREACHABLE} and run.run_id not in known]
    return QueueListing(
        queue, head.outstanding, head.parked - len(waiting) + len(shown), runs + shown, head.parked_unreachable
    )


def _open_run(run_id: str, queue: str, now_s: int, details: _Details | None) -> OpenRun:
    if details is None:
        return OpenRun(run_id, queue, UNREACHABLE, model="", age_s=0, attempt=0, worker="", events=0)
    fields, last_entry = details
    status, model, created, attempt, worker, cancel, agent, tokens, checkpoint, checkpoint_at = (
        value.decode(errors="replace") if value else "" for value in fields[: len(_FIELDS)]
    )
    asked = open_interrupts(*fields[len(_FIELDS) :]) if status in {_PARKED, "running"} else []
    if cancel and status == "running":
        status = "cancelling"
    return OpenRun(
        run_id=run_id,
        queue=queue,
        state=status or "unknown",
        model=model,
        age_s=max(0, now_s - int(created)) if created else 0,
        attempt=int(attempt or 0),
        worker=worker,
        events=int((last_entry or b"0-0").partition(b"-")[2]),
        agent=agent,
        tokens=int(tokens or 0),
        checkpoint=checkpoint or None,
        checkpoint_age_s=max(0, now_s - int(checkpoint_at)) if checkpoint_at else None,
        asks=tuple(each.kind for each in asked),
        answer_by=min((each.expires_at for each in asked), default=None),
    )
