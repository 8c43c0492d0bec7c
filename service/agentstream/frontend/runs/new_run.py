"""Creates a new run: its job, the check of its limits, and the enqueueing."""

import time
from collections.abc import Awaitable, Mapping
from typing import Any

from agentstream.errors import BrokerUnavailable
from agentstream.frontend.context import Context
from agentstream.frontend.runs.cancelling import cancel_abandoned
from agentstream.frontend.runs.guards import BrokerTimeout, require_broker
from agentstream.frontend.runs.source import deadlines_of, run_open_ttl_s
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.frontend.spans import enqueue_span, set_run_attributes
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.bus.feed import RunFeed
from agentstream.store.submission import Admission
from agentstream.stream.chat import StreamHead
from agentstream.telemetry import tracing
from agentstream.telemetry.log_context import current_log_context


class NewRun:
    """A new run as a source. ``open`` subscribes before it enqueues the job, so no event can be missed."""

    __slots__ = ("_admission", "_cancel_unconfirmed", "_context", "_job", "head", "may_exist")
    after = None

    def __init__(self, context: Context, job: Job, *, repeatable: bool = False) -> None:
        """Bind the job. Nothing is enqueued before ``open`` or ``start``.

        ``repeatable`` says that the client can repeat the request and gets the same run.
        """
        self._context = context
        self._job = job
        self._admission = Admission()
        self._cancel_unconfirmed = not repeatable
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
            return self._open_in_steps(feed, self._job, self._admission, in_order=in_order)
        subscribed, admitted = feed.open(), _enqueue(context, self._job, self._admission)
        context.link.flush()
        return self._opened(subscribed, admitted)

    async def _open_in_steps(self, feed: RunFeed, job: Job, admission: Admission, *, in_order: bool) -> None:
        async with BrokerTimeout(self._context):
            await _check_limits(self._context, job)
            subscribed = feed.open()
            if not in_order:
                await subscribed
            await _enqueue(self._context, job, admission)
            await subscribed

    async def _opened(self, subscribed: Awaitable[None], admitted: Awaitable[None]) -> None:
        async with BrokerTimeout(self._context):
            await admitted
            await subscribed

    async def start(self) -> None:
        """Enqueue a background run without subscribing; raises the same errors as ``open``."""
        context, admission = self._context, self._admission
        require_broker(context)
        try:
            async with BrokerTimeout(context):
                await _check_limits(context, self._job)
                await _enqueue(context, self._job, admission)
        except BrokerUnavailable:
            if self._cancel_unconfirmed and admission.envelope:
                cancel_abandoned(context, self.head.run_id)
            raise
        context.recovery.remember(admission.enqueue_again_if_lost, len(admission.envelope))

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return the deadlines of a run that first waits in the queue. Call this only once: it releases the job."""
        context, admission = self._context, self._admission
        # Saves memory: a stream may stay open for hours, and both hold the whole request. The deadlines drop the
        # admission when the run begins.
        del self._job, self._admission
        context.recovery.watch(admission)

        def check() -> None:
            context.background_tasks.start(admission.enqueue_again_if_lost(), "check that a queued run is not lost")

        return deadlines_of(context, feed, check)


def _enqueue(context: Context, job: Job, admission: Admission) -> Awaitable[None]:
    """Enqueue a job, inside a span if tracing is on; raises the errors of ``ModelRouter.submit``."""
    if tracing.enabled():
        return _enqueue_traced(context, job, admission)
    return context.model_router.submit(job, ttl_s=run_open_ttl_s(context), admission=admission)


async def _enqueue_traced(context: Context, job: Job, admission: Admission) -> None:
    with enqueue_span(job, context.model_router.queue_of_job(job)) as span:
        traced = job.model_copy(update=span.carrier())
        await context.model_router.submit(traced, ttl_s=run_open_ttl_s(context), admission=admission)


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
