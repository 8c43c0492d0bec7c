"""New queue entries for runs that a worker executes, and whose queue entry the broker has lost.

Without an entry, no other worker would continue the run if its worker is lost. The new entry has another id, so:

1. The hash of the run gets an empty entry id: from now on ``begin.lua`` leaves the run to its worker.
2. The job is enqueued again, and its worker holds it. Another worker that the queue delivers it to gives it back.
3. The hash of the run gets the id of the new entry.
"""

import logging
from collections.abc import Callable

from agentstream.errors import BrokerUnavailable
from agentstream.protocol.jobs import Job
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S
from agentstream.store.connection.link import Link
from agentstream.store.deadline import reply_within
from agentstream.telemetry.log_context import log_context_of, log_extra

log = logging.getLogger(__name__)


class Replacements:
    """The entries that replace lost ones. A worker still knows a run by the entry that it has claimed."""

    def __init__(self, link: Link, keys: Keys, queue: str, worker_id: str) -> None:
        """Start without entries."""
        self._link = link
        self._keys = keys
        self._jobs = keys.jobs(queue)
        self._worker_id = worker_id
        self._ids: dict[str, str] = {}
        self.unfinished: set[str] = set()  # claimed entries whose replacement has begun

    def current(self, claimed_id: str) -> str:
        """Return the id of the entry that has the job now, for the entry that the worker has claimed."""
        return self._ids.get(claimed_id, claimed_id)

    def learn(self, claimed_id: str, entry_id: str) -> bool:
        """Note which entry replaces a claimed one, unless one is known. Return whether it is ``entry_id``."""
        return self._ids.setdefault(claimed_id, entry_id) == entry_id

    def keep_only(self, holds: Callable[[str], bool]) -> None:
        """Forget the entries for claimed ones that the worker does not hold any more."""
        self._ids = {claimed_id: entry_id for claimed_id, entry_id in self._ids.items() if holds(claimed_id)}
        self.unfinished = set(filter(holds, self.unfinished))

    async def replace(self, claimed_id: str, job: Job) -> None:
        """Enqueue the job of a run again that this worker executes. A second call completes one that has failed.

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
        """Enqueue the job of a run again for the next worker that gets it. Raises BrokerUnavailable.

        Returns False if no worker can continue the run: it has ended or has another one, or its hash is lost, or Redis
        refuses the job.
        """
        if not await self._set_entry(job, "", leaves=True):
            return False
        try:
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
        return self._ids[claimed_id]

    async def _set_entry(self, job: Job, entry_id: str, *, leaves: bool = False) -> bool:
        args = (self._worker_id, entry_id, int(leaves))
        pending = self._link.start_script_call("set_entry", [self._keys.run(job.run_id)], *args, once=True)
        return bool(await reply_within(self._link, pending, COMMAND_TIMEOUT_S))
