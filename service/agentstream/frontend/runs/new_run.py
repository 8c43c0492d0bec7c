"""Creates a new run: its job, the check of its limits, and the enqueueing."""

import logging
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from agentstream.frontend.context import Context
from agentstream.frontend.runs.guards import broker_timeout, require_broker
from agentstream.frontend.runs.source import deadlines_of
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.frontend.spans import enqueue_span, set_run_attributes
from agentstream.protocol.jobs import Job, new_run_id, open_ttl_s
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.bus.feed import RunFeed
from agentstream.stream.chat import StreamHead
from agentstream.telemetry import tracing
from agentstream.telemetry.log_context import current_log_context, log_context_of, log_extra

log = logging.getLogger(__name__)


class NewRun:
    """A new run as a source. ``open`` subscribes before it enqueues the job, so no event can be missed."""

    __slots__ = ("_context", "_job", "head", "may_exist")
    after = None

    def __init__(self, context: Context, job: Job) -> None:
        """Bind the job. Nothing is enqueued before ``open`` or ``start``."""
        self._context = context
        self._job = job
        self.may_exist = False
        self.head = StreamHead(run_id=job.run_id, created=job.created, model=job.request["model"])

    def open(self, feed: RunFeed) -> Awaitable[None]:
        """Subscribe and enqueue the job; await the result to know that both succeeded.

        If the owner has no limits to check, and one server has the run and its queue, both commands are sent
        before this returns. A worker then begins the job while the front end prepares the answer.

        Raises BrokerUnavailable, LimitReached or QueueFull, here or when the result is awaited.
        """
        context = self._context
        require_broker(context)
        self.may_exist = True
        in_order = context.model_router.keeps_order(self._job)
        if _has_limits(context) or not in_order:
            return self._open_in_steps(feed, self._job, in_order=in_order)
        subscribed, admitted = feed.open(), _enqueue(context, self._job)
        context.link.flush()
        return self._opened(subscribed, admitted)

    async def _open_in_steps(self, feed: RunFeed, job: Job, *, in_order: bool) -> None:
        async with broker_timeout(self._context):
            await _check_limits(self._context, job)
            subscribed = feed.open()
            if not in_order:
                await subscribed
            await _enqueue(self._context, job)
            await subscribed

    async def _opened(self, subscribed: Awaitable[None], admitted: Awaitable[None]) -> None:
        async with broker_timeout(self._context):
            await admitted
            await subscribed

    async def start(self) -> None:
        """Enqueue a background run without subscribing; raises the same errors as ``open``."""
        require_broker(self._context)
        async with broker_timeout(self._context):
            await _check_limits(self._context, self._job)
            await _enqueue(self._context, self._job)

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return the deadlines of a run that first waits in the queue. Call this only once: it releases the job."""
        job = self._job
        del self._job  # saves memory: a stream may stay open for hours, and the job holds the whole request
        return deadlines_of(self._context, feed, _Resubmission(self._context, job).resubmit_if_lost)


class _Resubmission:
    """Enqueues a job again if the broker has restarted without it. If the job is queued twice, it runs once.

    This object holds the job in its encoded form. The deadlines drop it when the run begins.
    """

    __slots__ = ("_context", "_envelope")

    def __init__(self, context: Context, job: Job) -> None:
        self._context = context
        self._envelope = job.encode()

    def resubmit_if_lost(self) -> None:
        self._context.background_tasks.start(self._resubmit_if_lost(), "check that a queued run is not lost")

    async def _resubmit_if_lost(self) -> None:
        job = Job.decode(self._envelope)
        if await self._context.runs.get_info(job.run_id) is None and time.time() < job.start_by:
            log.warning("the broker has lost the queued run; enqueueing it again", extra=log_extra(log_context_of(job)))
            await _enqueue(self._context, job)


def _enqueue(context: Context, job: Job) -> Awaitable[None]:
    """Enqueue a job, inside a span if tracing is on; raises the errors of ``ModelRouter.submit``."""
    if tracing.enabled():
        return _enqueue_traced(context, job)
    return context.model_router.submit(job, ttl_s=run_open_ttl_s(context))


async def _enqueue_traced(context: Context, job: Job) -> None:
    with enqueue_span(job, context.model_router.queue_of_job(job)) as span:
        await context.model_router.submit(job.model_copy(update=span.carrier()), ttl_s=run_open_ttl_s(context))


def run_open_ttl_s(context: Context) -> int:
    """Return the TTL of an open run's keys in Redis, in seconds."""
    return open_ttl_s(context.settings.queue_timeout_s, context.settings.run_timeout_s)


def _has_limits(context: Context) -> bool:
    return context.settings.max_runs_per_key > 0 or context.settings.max_requests_per_minute > 0


async def _check_limits(context: Context, job: Job) -> None:
    """Raise LimitReached if the job's owner has too many open runs, or has sent too many requests in this minute.

    All front ends count together.
    """
    settings = context.settings
    if _has_limits(context):
        await context.model_router.check_limits(
            job,
            max_runs=settings.max_runs_per_key,
            max_requests_per_minute=settings.max_requests_per_minute,
            ttl_s=run_open_ttl_s(context),
        )


def new_job(  # noqa: PLR0913 -- the parts of a job
    context: Context,
    chat: ChatCompletionRequest,
    owner: str,
    response: dict[str, Any] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    answer_keys: tuple[str, ...] = (),
) -> Job:
    """Return the job of a new run; raises NotFound if no agent is configured for its model.

    ``headers`` are the headers of the request that the agent may see. ``answer_keys`` are the hashes of other API keys
    that may answer the interrupts of the run.
    """
    context.model_router.check(chat.model)
    now = time.time()
    job = Job(
        run_id=new_run_id(),
        request=chat.model_dump(mode="json", exclude_unset=True),
        created=int(now),
        start_by=now + context.settings.queue_timeout_s,
        request_id=current_log_context().request_id or "",
        include_usage=chat.include_usage,
        limited=context.settings.max_runs_per_key > 0,
        owner=owner,
        headers=dict(headers or {}),
        answer_keys=answer_keys,
        response=response,
        **tracing.carrier(),
    )
    set_run_attributes(job)
    return job
