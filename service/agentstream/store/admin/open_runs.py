"""Lists the open runs of a deployment, with two read-only scripts.

It needs no permission beyond those of front ends (deploy/redis-users.acl), and does not scan the keyspace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentstream.store.admin.client import AdminClient, map_redis_errors
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


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that a queue holds.

    ``state`` is queued, running, cancelling, or the final status of a run that ended a moment ago. It is unknown if
    the run has no hash, because the broker lost data. ``events`` counts the events of the latest attempt; a streamed
    token is one event. The worker stores ``agent`` and ``tokens`` when it renews its lease. They are empty and 0 until
    the first renewal. ``checkpoint`` is the position of the last checkpoint, for example ``1-17``, and
    ``checkpoint_age_s`` its age; both are None if there is none.
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


@dataclass(frozen=True, slots=True)
class QueueListing:
    """The oldest runs of a queue, and the number of all its outstanding jobs."""

    queue: str
    outstanding: int
    runs: list[OpenRun]


class OpenRunReader(AdminClient):
    """Lists open runs."""

    async def open_runs(self, queues: Sequence[str], *, limit: int = MAX_LISTED_RUNS) -> list[QueueListing]:
        """Return the oldest runs of each queue, at most ``limit``, in two round trips for all queues."""
        with map_redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name in ("open_runs", "last_entry"):
                    pipeline.script_load(SCRIPTS[name].source)
                for queue in queues:
                    pipeline.evalsha(SCRIPTS["open_runs"].sha.decode(), 1, self._keys.jobs(queue), limit)
                replies = (await pipeline.execute())[2:]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for _, _, run_ids in replies:
                    for run_id in map(bytes.decode, run_ids):
                        pipeline.hmget(self._keys.run(run_id), _FIELDS)
                        pipeline.evalsha(SCRIPTS["last_entry"].sha.decode(), 1, self._keys.events(run_id))
                details = iter(await pipeline.execute())
        return [
            QueueListing(
                queue,
                outstanding,
                [_open_run(run_id.decode(), queue, int(now_s), next(details), next(details)) for run_id in run_ids],
            )
            for queue, (now_s, outstanding, run_ids) in zip(queues, replies, strict=True)
        ]


def _open_run(run_id: str, queue: str, now_s: int, fields: list[bytes | None], last_entry: bytes | None) -> OpenRun:
    status, model, created, attempt, worker, cancel, agent, tokens, checkpoint, checkpoint_at = (
        value.decode(errors="replace") if value else "" for value in fields
    )
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
    )
