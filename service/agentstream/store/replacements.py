"""New queue entries for runs that a worker executes, and whose queue entry the broker has lost.

Without an entry, no other worker would continue the run if its worker is lost. The new entry has another id, so:

1. The hash of the run gets an empty entry id: from now on ``begin.lua`` leaves the run to its worker.
2. The job is enqueued again, and its worker holds it. Another worker that the queue delivers it to gives it back.
3. The hash of the run gets the id of the new entry.
"""

import logging
from collections.abc import Callable
from typing import Final

from agentstream.errors import BrokerUnavailable
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S
from agentstream.store.connection.link import Link
from agentstream.store.deadline import reply_within
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)

MAX_ENTRIES: Final = 10_000  # as many runs as a worker may execute at once; 1.5 MB


class Replacements:
    """The entries that replace lost ones. A worker still knows a run by the entry that it has claimed."""

    def __init__(self, link: Link, keys: Keys, queue: str, worker_id: str) -> None:
        """Start without entries."""
        self._link = link
        self._keys = keys
        self._jobs = keys.jobs(queue)
        self._worker_id = worker_id
        self._ids: dict[str, str] = {}  # they stay after the ends of their runs, which may have to be stored again
        self.unfinished: set[str] = set()  # claimed entries whose replacement has begun

    def current(self, claimed_id: str) -> str:
        """Return the id of the entry that has the job now, for the entry that the worker has claimed."""
        return self._ids.get(claimed_id, claimed_id)

    def __contains__(self, claimed_id: str) -> bool:
        """Return whether this worker has replaced the entry, or is about to."""
        return claimed_id in self._ids or claimed_id in self.unfinished

    def is_surplus(self, claimed_id: str, entry_id: str) -> bool:
        """Return whether another entry has replaced the claimed one. While that is open, none is surplus."""
        return claimed_id not in self.unfinished and self.current(claimed_id) != entry_id

    def forget_unfinished(self, holds: Callable[[str], bool]) -> None:
        """Forget the replacements that are not complete, of runs that the worker does not hold any more."""
        self.unfinished = set(filter(holds, self.unfinished))

    async def replace(self, claimed_id: str, job: Job) -> None:
        """Enqueue again the job of a run that this worker executes. A second call completes one that has failed.

        It does nothing if the run has ended, has another worker, or its hash is lost. Raises BrokerUnavailable.
        """
        self.unfinished.add(claimed_id)
        if await self._set_entry(job, ""):
            entry_id = await self._enqueue(claimed_id, job, self._worker_id)
            if await self._set_entry(job, entry_id):
                text = "the broker has lost the job of the run; enqueued it again"
                log.warning(text, extra=log_extra(log_context_of(job)))
        self.unfinished.discard(claimed_id)

    async def hand_over(self, claimed_id: str, job: Job) -> bool:
        """Leave a run to the next worker that gets its job, and enqueue the job again unless its entry exists.

        Returns False if no worker can continue the run: it has ended or has another one, or its hash is lost, or Redis
        is unavailable.
        """
        try:
            if not await self._set_entry(job, "", leaves=True):
                return False
            await self._enqueue(claimed_id, job)
        except BrokerUnavailable as exc:  # nobody else would enqueue it
            log.warning("cannot enqueue the job of the run again: %s", exc, extra=log_extra(log_context_of(job)))
            return False
        return True

    async def _enqueue(self, claimed_id: str, job: Job, holder: str = "") -> str:
        """Enqueue the job again unless its entry exists. Return the id of its entry."""
        known_id = self.current(claimed_id)
        args = (known_id, job.encode(), claimed_id, GROUP, holder)
        pending = self._link.start_script_call("readmit", [self._jobs], *args, once=True)
        added = await reply_within(self._link, pending, COMMAND_TIMEOUT_S)
        if added is None:
            return known_id
        self._ids[claimed_id] = added.decode()
        while len(self._ids) > MAX_ENTRIES:
            del self._ids[next(iter(self._ids))]
        return self._ids[claimed_id]

    async def _set_entry(self, job: Job, entry_id: str, *, leaves: bool = False) -> bool:
        args = (self._worker_id, entry_id, int(leaves))
        pending = self._link.start_script_call("set_entry", [self._keys.run(job.run_id)], *args, once=True)
        return bool(await reply_within(self._link, pending, COMMAND_TIMEOUT_S))
