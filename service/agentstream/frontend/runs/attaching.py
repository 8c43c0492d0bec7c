"""Attaching to a run that exists: by its id, or by an idempotency key."""

import hashlib

import orjson

from agentstream.errors import Conflict, Gone, InvalidRequest, LogTrimmed
from agentstream.frontend.context import Context
from agentstream.frontend.runs.guards import broker_timeout
from agentstream.frontend.runs.new_run import run_open_ttl_s
from agentstream.frontend.runs.source import deadlines_of, head_of
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.frontend.spans import set_run_attributes
from agentstream.protocol.events import Cursor
from agentstream.protocol.jobs import Job
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.bus.feed import RunFeed
from agentstream.store.runs import RunInfo


class ExistingRun:
    """A run that exists: its log from the start, what lies behind ``after`` left out, then live."""

    may_exist = True

    def __init__(self, context: Context, info: RunInfo, after: Cursor | None = None) -> None:
        """Prepare; nothing is read yet."""
        self._context = context
        self._info = info
        self.after = after
        self.head = head_of(info)

    async def open(self, feed: RunFeed) -> None:
        """Raise Gone if the log is not whole any more, InvalidRequest for a position the run has not reached."""
        try:
            async with broker_timeout():
                whole = await feed.open_from_log()
        except LogTrimmed as exc:
            message = f"the stream of {self._info.run_id} cannot be resumed: {exc}"
            raise Gone(message) from exc
        if self._info.ended and feed.position == (0, 0):
            message = f"the stream of {self._info.run_id} is no longer kept"
            raise Gone(message)
        if whole and self.after is not None and (self.after.attempt, self.after.seq) > feed.position:
            message = f"the run has not reached {self.after} yet"
            raise InvalidRequest(message, param="starting_after")

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return the time a run of unknown age may take at most."""
        return deadlines_of(self._context, feed, None)


async def resolve_idempotency_key(
    context: Context, owner: str, key: str, chat: ChatCompletionRequest, job: Job
) -> RunInfo | Job:
    """Return the run an idempotency key stands for, or the job to enqueue under it.

    Raises Conflict if the key was used for another request. How the answer is delivered (``stream``) may differ.
    """
    asked = chat.model_dump(mode="json", exclude_unset=True, exclude={"stream", "stream_options"})
    fingerprint = hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
    settings = context.settings
    ttl_s = run_open_ttl_s(context) + settings.run_ttl_s
    earlier = await context.runs.register_idempotency_key(owner, key, job, fingerprint, ttl_s=ttl_s)
    if earlier is None:
        return job
    run_id, created, earlier_fingerprint = earlier
    if earlier_fingerprint != fingerprint:
        message = f"Idempotency-Key {key[:40]!r} was used for a different request"
        raise Conflict(message, param="Idempotency-Key")
    info = await context.runs.get_info(run_id)
    if info is not None:
        set_run_attributes(info)
        return info
    # Its first front end is between key and queue, or ended there.
    job = job.model_copy(update={"run_id": run_id, "created": created})
    set_run_attributes(job)
    return job
