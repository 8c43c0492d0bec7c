"""New queue entries for runs that a worker executes, and whose queue entry the broker has lost.

Without an entry, no other worker would continue the run if its worker is lost. The new entry has another id, so:

1. The hash of the run gets an empty entry id: from now on ``begin.lua`` leaves the run to its worker.
2. The job is enqueued again. The worker that gets it gives it to the worker of the run.
3. The hash of the run gets the id of the new entry.
"""

import logging
from collections.abc import Callable

from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S
from agentstream.store.connection.link import Link
from agentstream.store.deadline import reply_within
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)


class Replacements:
    """The entries that replace lost ones. The worker still knows a run by the entry that it claimed."""

    def __init__(self, link: Link, keys: Keys, queue: str, worker_id: str) -> None:
        """Start without entries."""
        self._link = link
        self._keys = keys
        self._jobs = keys.jobs(queue)
        self._worker_id = worker_id
        self._ids: dict[str, str] = {}

    def current(self, claimed_id: str) -> str:
        """Return the id of the entry that has the job now, for the entry that the worker claimed."""
        return self._ids.get(claimed_id, claimed_id)

    def keep_only(self, holds: Callable[[str], bool]) -> None:
        """Forget the entries for claimed ones that the worker does not hold any more."""
        self._ids = {claimed_id: entry_id for claimed_id, entry_id in self._ids.items() if holds(claimed_id)}

    async def replace(self, claimed_id: str, job: Job) -> None:
        """Enqueue the job of a run again that this worker executes. Raises BrokerUnavailable; then repeat it."""
        if not await self.detach(claimed_id, job):
            return
        entry_id = await self.enqueue(claimed_id, job)
        await self._set_entry(job, "", entry_id, self._worker_id)
        log.warning("the broker has lost the job of the run; enqueued it again", extra=log_extra(log_context_of(job)))

    async def detach(self, claimed_id: str, job: Job, *, leaves: bool = False) -> bool:
        """Take the lost entry off the run; return False if the run has another entry or worker, or its hash is lost.

        If this worker ``leaves`` the run, the next worker that gets the job begins an attempt.
        """
        return await self._set_entry(job, self.current(claimed_id), "", "" if leaves else self._worker_id)

    async def enqueue(self, claimed_id: str, job: Job) -> str:
        """Enqueue the job again unless its entry exists. Return the id of its entry."""
        known_id = self.current(claimed_id)
        pending = self._link.start_script_call("readmit", [self._jobs], known_id, job.encode(), claimed_id, once=True)
        added = await reply_within(self._link, pending, COMMAND_TIMEOUT_S)
        if added is None:
            return known_id
        self._ids[claimed_id] = added.decode()
        return self._ids[claimed_id]

    async def _set_entry(self, job: Job, known_id: str, entry_id: str, worker_id: str) -> bool:
        args = (self._worker_id, known_id, entry_id, worker_id)
        pending = self._link.start_script_call("set_entry", [self._keys.run(job.run_id)], *args, once=True)
        return bool(await reply_within(self._link, pending, COMMAND_TIMEOUT_S))
