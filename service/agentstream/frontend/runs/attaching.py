"""Attaches to an existing run, by its id or by an idempotency key."""

import hashlib
from functools import partial

import orjson

from agentstream.errors import Conflict, Gone, InvalidRequest, LogTrimmed
from agentstream.frontend.context import Context
from agentstream.frontend.runs.guards import BrokerTimeout
from agentstream.frontend.runs.source import deadlines_of, head_of, run_open_ttl_s
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.frontend.spans import set_run_attributes
from agentstream.protocol.events import Cursor
from agentstream.protocol.jobs import Job
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.bus.feed import RunFeed
from agentstream.store.runs import RunInfo


class ExistingRun:
    """An existing run as a source: its replay log from the start, then its live events.

    The stream machine needs all events, so the feed delivers all of them. The stream machine then omits the frames up
    to and including the cursor ``after``.
    """

    may_exist = True

    def __init__(self, context: Context, info: RunInfo, after: Cursor | None = None) -> None:
        """Bind the run. Nothing is read before ``open``."""
        self._context = context
        self._info = info
        self.after = after
        self.head = head_of(info)

    async def open(self, feed: RunFeed) -> None:
        """Subscribe, and deliver the replay log.

        Raises Gone if the log is no longer complete, InvalidRequest if the run has not reached the cursor ``after``,
        and BrokerUnavailable.
        """
        try:
            async with BrokerTimeout(self._context):
                caught_up = await feed.open_from_log()
        except LogTrimmed as exc:
            message = f"the stream of {self._info.run_id} cannot be resumed: {exc}"
            raise Gone(message) from exc
        if self._info.ended and feed.position == (0, 0):
            message = f"the stream of {self._info.run_id} cannot be resumed: its events are no longer stored"
            raise Gone(message)
        if caught_up and self.after is not None and (self.after.attempt, self.after.seq) > feed.position:
            message = f"the run has not reached the cursor {self.after}; send the id of the last event you received"
            raise InvalidRequest(message, param="starting_after")

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return the deadlines of a run of unknown age."""
        return deadlines_of(self._context, feed, None)


async def last_event(context: Context, info: RunInfo) -> Cursor | None:
    """Return the position of the last event in the replay log of a run; None if the log has none."""
    async with BrokerTimeout(context):
        return await context.bus.last_event(info.run_id)


async def resolve_idempotency_key(
    context: Context, owner: str, key: str, chat: ChatCompletionRequest, job: Job
) -> RunInfo | Job:
    """Return the existing run of an idempotency key, or the job to enqueue under this key.

    Raises Conflict if the key was used for a different request. The fields ``stream`` and ``stream_options`` are not
    compared: they only change how the answer is sent.
    """
    compared_fields = chat.model_dump(mode="json", exclude_unset=True, exclude={"stream", "stream_options"})
    fingerprint = hashlib.sha256(orjson.dumps(compared_fields, option=orjson.OPT_SORT_KEYS)).hexdigest()
    settings = context.settings
    ttl_s = run_open_ttl_s(context) + settings.run_ttl_s
    named = job.model_copy(update={"request": {}, "response": None, "headers": {}})  # it is kept for a while
    register = partial(context.runs.register_idempotency_key, owner, key, named, fingerprint, ttl_s=ttl_s)
    earlier = await register()
    if earlier is None:
        context.recovery.remember(register)
        return job
    run_id, created, earlier_fingerprint = earlier
    if earlier_fingerprint != fingerprint:
        message = f"Idempotency-Key {key[:40]!r} was used for a different request; use a new key"
        raise Conflict(message, param="Idempotency-Key")
    info = await context.runs.get_info(run_id)
    if info is not None:
        set_run_attributes(info)
        return info
    # The key is registered, but the run is not: the first front end has not enqueued the job yet, or it never did, or
    # the run has expired. Enqueue the job under the same run id. If both front ends enqueue it, it runs once.
    job = job.model_copy(update={"run_id": run_id, "created": created})
    set_run_attributes(job)
    return job
