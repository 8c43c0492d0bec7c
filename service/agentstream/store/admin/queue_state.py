"""Counts the workers and the jobs of queues."""

from dataclasses import dataclass

from agentstream.store.admin.client import AdminClient
from agentstream.store.submission import JobSubmitter


@dataclass(frozen=True, slots=True)
class QueueSummary:
    """The number of a queue's workers with a valid heartbeat, and of its jobs that wait or run."""

    workers: int
    outstanding: int


class QueueReader(AdminClient):
    """Counts the workers and the jobs of queues, on whichever server they are."""

    async def queue(self, name: str) -> QueueSummary:
        """Count the live workers and the outstanding jobs of a queue."""
        submitter = JobSubmitter(self._link, self._keys, name, max_queued=0)
        async with self._bounded():
            return QueueSummary(await submitter.workers_alive(), await submitter.outstanding())
