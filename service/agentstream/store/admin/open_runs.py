"""Lists the open runs of a deployment, with two read-only scripts: those in a queue, and those that wait for people.

It needs no permission beyond those of front ends (deploy/redis-users.acl), and does not scan the keyspace.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoPermissionError

from agentstream.store.admin.client import AdminClient, map_redis_errors
from agentstream.store.interrupts import open_interrupts
from agentstream.store.scripts import SCRIPTS

MAX_LISTED_RUNS: Final = 1000  # default limit for each queue; equals the default of MAX_QUEUED

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
    that ended a moment ago. It is unknown if the run has no hash, because the broker lost data. ``events`` counts the
    events of the latest attempt; a streamed token is one event. The worker stores ``agent`` and ``tokens`` when it
    renews its lease. They are empty and 0 until the first renewal. ``checkpoint`` is the position of the last
    checkpoint, for example ``1-17``, and ``checkpoint_age_s`` its age; both are None if there is none. ``asks`` has the
    kinds of the open interrupts. ``answer_by`` is the Unix time (s) at which the first of them expires, or None.
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


@dataclass(frozen=True, slots=True)
class QueueListing:
    """Runs of a queue: the oldest ones, then those that wait for people, beginning with the most urgent.

    ``outstanding`` is the number of all jobs of the queue. ``parked`` is the number of all runs that wait for people.
    They are not among the jobs.
    """

    queue: str
    outstanding: int
    parked: int
    runs: list[OpenRun]


class OpenRunReader(AdminClient):
    """Lists open runs."""

    async def open_runs(self, queues: Sequence[str], *, limit: int = MAX_LISTED_RUNS) -> list[QueueListing]:
        """Return the oldest runs of each queue, and the runs that wait for people: at most ``limit`` of each.

        It takes two round trips for all queues.
        """
        with map_redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name in ("open_runs", "last_entry"):
                    pipeline.script_load(SCRIPTS[name].source)
                for queue in queues:
                    pipeline.evalsha(SCRIPTS["open_runs"].sha.decode(), 1, self._keys.jobs(queue), limit)
                    pipeline.zrange(self._keys.parked(queue), 0, limit - 1)
                    pipeline.zcard(self._keys.parked(queue))
                replies = (await pipeline.execute(raise_on_error=False))[2:]
            opened, parked_ids, parked = map(_raise_errors, replies[::3]), replies[1::3], replies[2::3]
            found = list(zip(queues, opened, map(_if_permitted, parked_ids), map(_if_permitted, parked), strict=True))
            async with self._redis.pipeline(transaction=False) as pipeline:
                for _, (_, _, run_ids), parked_ids, _ in found:
                    for run_id in map(bytes.decode, [*run_ids, *(parked_ids or [])]):
                        pipeline.hmget(self._keys.run(run_id), (*_FIELDS, "interrupts", "answers"))
                        pipeline.evalsha(SCRIPTS["last_entry"].sha.decode(), 1, self._keys.events(run_id))
                details = iter(await pipeline.execute())
        return [
            _listing(queue, int(now_s), outstanding, run_ids, parked_ids or [], parked or 0, details)
            for queue, (now_s, outstanding, run_ids), parked_ids, parked in found
        ]


def _raise_errors(reply: Any) -> Any:  # noqa: ANN401 -- a Redis reply
    if isinstance(reply, Exception):
        raise reply
    return reply


def _if_permitted(reply: Any) -> Any:  # noqa: ANN401 -- a Redis reply
    """Return a reply; None if this Redis user has no right to it, as users of older versions."""
    return None if isinstance(reply, NoPermissionError) else _raise_errors(reply)


def _listing(  # noqa: PLR0913, PLR0917 -- the replies
    queue: str,
    now_s: int,
    outstanding: int,
    run_ids: Sequence[bytes],
    parked_ids: Sequence[bytes],
    parked: int,
    details: Iterator[Any],
) -> QueueListing:
    runs = [_open_run(run_id.decode(), queue, now_s, next(details), next(details)) for run_id in run_ids]
    known = {run.run_id for run in runs}
    waiting = [_open_run(run_id.decode(), queue, now_s, next(details), next(details)) for run_id in parked_ids]
    # A run that has just been answered, cancelled or asked again is in the set for a moment more.
    shown = [run for run in waiting if run.state == _PARKED and run.run_id not in known]
    return QueueListing(queue, outstanding, parked - len(waiting) + len(shown), runs + shown)


def _open_run(run_id: str, queue: str, now_s: int, fields: list[bytes | None], last_entry: bytes | None) -> OpenRun:
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
