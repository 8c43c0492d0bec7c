"""A client and a run: admitting a new one or attaching to one that exists, streaming or collecting it."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import orjson
from aiohttp import web

from agentstream.errors import BrokerUnavailable, Conflict, Draining, Gone, InvalidRequest, LogTrimmed, RunStuck
from agentstream.frontend.context import Context
from agentstream.frontend.middleware import BROKER_RETRY_AFTER_S
from agentstream.frontend.runs.pump import Collector, StreamPump
from agentstream.frontend.runs.raw_writer import ClientGone, ClientStuck, RawWriter
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.frontend.spans import sending, tell_run
from agentstream.protocol.events import Cursor
from agentstream.protocol.jobs import Job, new_run_id, open_ttl_s
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.bus.feed import RunFeed
from agentstream.store.runs import RunInfo
from agentstream.stream.chat import StreamHead, StreamOptions
from agentstream.stream.views import Fold, View
from agentstream.telemetry import tracing
from agentstream.telemetry.log_context import about, current, scope_of

log = logging.getLogger(__name__)

# Subscribing and enqueueing take about 1 ms; a broker that needs this long is as good as down.
ADMISSION_TIMEOUT_S: Final = 5.0
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


class Source(Protocol):
    """Where a session's run comes from."""

    @property
    def head(self) -> StreamHead:
        """What every chunk repeats."""
        ...

    @property
    def after(self) -> Cursor | None:
        """The position behind which to begin; None for the whole."""
        ...

    @property
    def begun(self) -> bool:
        """Whether the run may exist."""
        ...

    def open(self, feed: RunFeed) -> Awaitable[None]:
        """Begin to deliver, and return what is to be awaited; either raises what the client is told before all else.

        Nothing is delivered before that is awaited: until then the feed may do without its consumer.
        """
        ...

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return how long the run may take."""
        ...


class Admission:
    """A new run: subscribe, then enqueue, so nothing can be missed."""

    __slots__ = ("_context", "_job", "begun", "head")
    after = None

    def __init__(self, context: Context, job: Job) -> None:
        """Prepare; nothing is enqueued yet."""
        self._context = context
        self._job = job
        self.begun = False
        self.head = StreamHead(run_id=job.run_id, created=job.created, model=job.request["model"])

    def open(self, feed: RunFeed) -> Awaitable[None]:
        """Send the job at once if nothing must be known first: a worker is at it while the answer is prepared.

        Raises BrokerUnavailable, LimitReached or QueueFull.
        """
        context = self._context
        require_broker(context)
        self.begun = True
        if _has_limits(context) or not context.link.in_order:
            return self._open_in_steps(feed, self._job)
        subscribed, admitted = feed.open(), _enqueue(context, self._job)
        context.link.flush()
        return self._opened(subscribed, admitted)

    async def _open_in_steps(self, feed: RunFeed, job: Job) -> None:
        async with answering():
            await _check_limits(self._context, job)
            subscribed = feed.open()
            if not self._context.link.in_order:
                await subscribed
            await _enqueue(self._context, job)
            await subscribed

    @staticmethod
    async def _opened(subscribed: Awaitable[None], admitted: Awaitable[None]) -> None:
        async with answering():
            await admitted
            await subscribed

    async def start(self) -> None:
        """Enqueue a run nobody waits for; raises as ``open`` does."""
        require_broker(self._context)
        async with answering():
            await _check_limits(self._context, self._job)
            await _enqueue(self._context, self._job)

    def deadlines(self, feed: RunFeed) -> Deadlines:
        """Return the times of a run that waits in the queue first. Once only: the job is let go."""
        job = self._job
        del self._job  # a stream may be open for long, and hold what it was asked with no longer than it needs
        return _deadlines(self._context, feed, _Resubmission(self._context, job).look)


class _Resubmission:
    """Enqueues a job once more if the broker came back without it; doubled entries run once.

    It keeps the job as its envelope, and is itself kept only until the run has begun.
    """

    __slots__ = ("_context", "_envelope")

    def __init__(self, context: Context, job: Job) -> None:
        self._context = context
        self._envelope = job.encode()

    def look(self) -> None:
        self._context.errands.run(self._look(), "look after a queued run")

    async def _look(self) -> None:
        job = Job.decode(self._envelope)
        if await self._context.runs.describe(job.run_id) is None and time.time() < job.start_by:
            log.warning("the run is unknown to the broker; enqueueing it again", extra=about(scope_of(job)))
            await _enqueue(self._context, job)


def _enqueue(context: Context, job: Job) -> Awaitable[None]:
    """Enqueue a job; see JobSubmitter.submit."""
    if tracing.on():
        return _enqueue_traced(context, job)
    return context.submitter.submit(job, ttl_s=_open_ttl_s(context))


async def _enqueue_traced(context: Context, job: Job) -> None:
    with sending(job, context.submitter.queue_for(job)) as span:
        await context.submitter.submit(job.model_copy(update=span.carrier()), ttl_s=_open_ttl_s(context))


def _open_ttl_s(context: Context) -> int:
    return open_ttl_s(context.settings.queue_timeout_s, context.settings.run_timeout_s)


def _has_limits(context: Context) -> bool:
    return context.settings.max_runs_per_key > 0 or context.settings.max_requests_per_minute > 0


async def _check_limits(context: Context, job: Job) -> None:
    """Raise LimitReached if the job's owner has or has sent too much; shared by all front ends."""
    settings = context.settings
    if _has_limits(context):
        await context.submitter.check_limits(
            job,
            max_runs=settings.max_runs_per_key,
            max_requests_per_minute=settings.max_requests_per_minute,
            ttl_s=_open_ttl_s(context),
        )


class Past:
    """A run that exists: its log from the start, what lies behind ``after`` left out, then live."""

    begun = True

    def __init__(self, context: Context, info: RunInfo, after: Cursor | None = None) -> None:
        """Prepare; nothing is read yet."""
        self._context = context
        self._info = info
        self.after = after
        self.head = head_of(info)

    async def open(self, feed: RunFeed) -> None:
        """Raise Gone if the log is not whole any more, InvalidRequest for a position the run has not reached."""
        try:
            async with answering():
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
        return _deadlines(self._context, feed, None)


def head_of(info: RunInfo) -> StreamHead:
    """Return what every chunk of a run that exists repeats."""
    return StreamHead(run_id=info.run_id, created=info.created, model=info.model)


def _deadlines(context: Context, feed: RunFeed, on_doubt_unstarted: Callable[[], None] | None) -> Deadlines:
    settings = context.settings
    return Deadlines(
        feed,
        asyncio.get_running_loop().time(),
        queue_timeout_s=settings.queue_timeout_s,
        run_timeout_s=settings.run_timeout_s,
        on_doubt_unstarted=on_doubt_unstarted,
    )


def new_job(context: Context, chat: ChatCompletionRequest, owner: str, response: dict[str, Any] | None = None) -> Job:
    """Return the envelope of a new run; raises NotFound if nobody answers for its model."""
    context.submitter.check(chat.model)
    now = time.time()
    job = Job(
        run_id=new_run_id(),
        request=chat.model_dump(mode="json", exclude_unset=True),
        created=int(now),
        start_by=now + context.settings.queue_timeout_s,
        request_id=current().request_id or "",
        include_usage=chat.include_usage,
        limited=context.settings.max_runs_per_key > 0,
        owner=owner,
        response=response,
        **tracing.carrier(),
    )
    tell_run(job)
    return job


async def attach(context: Context, owner: str, key: str, chat: ChatCompletionRequest, job: Job) -> RunInfo | Job:
    """Return the run an idempotency key stands for, or the job to enqueue under it.

    Raises Conflict if the key was used for another request. How the answer is delivered (``stream``) may differ.
    """
    asked = chat.model_dump(mode="json", exclude_unset=True, exclude={"stream", "stream_options"})
    fingerprint = hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
    settings = context.settings
    ttl_s = _open_ttl_s(context) + settings.run_ttl_s
    earlier = await context.runs.remember(owner, key, job, fingerprint, ttl_s=ttl_s)
    if earlier is None:
        return job
    run_id, created, earlier_fingerprint = earlier
    if earlier_fingerprint != fingerprint:
        message = f"Idempotency-Key {key[:40]!r} was used for a different request"
        raise Conflict(message, param="Idempotency-Key")
    info = await context.runs.describe(run_id)
    if info is not None:
        tell_run(info)
        return info
    # Its first front end is between key and queue, or ended there.
    job = job.model_copy(update={"run_id": run_id, "created": created})
    tell_run(job)
    return job


async def stream_run(  # noqa: PLR0913 -- the request, the run, and how to show it
    request: web.Request,
    context: Context,
    source: Source,
    view: View,
    options: StreamOptions,
    *,
    cancel_when_gone: bool,
) -> web.StreamResponse:
    """Stream a run to its end."""
    feed = context.bus.feed(source.head.run_id)
    opening = source.open(feed)
    response = web.StreamResponse(headers=STREAM_HEADERS | _extra_headers(request))
    writer = RawWriter(request, response, write_timeout_s=context.settings.write_timeout_s)
    machine = view.machine(source.head, options, source.after)
    pump = StreamPump(machine, writer, context.outbox, replay_word_delay_ms=context.settings.replay_word_delay_ms)
    feed.deliver_to(pump)
    pump.attach(feed, source.deadlines(feed), context.metrics.clock() if isinstance(source, Admission) else None)
    context.watcher.add(pump)
    try:
        await opening
        del opening  # 0.4 KB of an open stream
        await pump.run()
    except ClientGone as exc:
        log.debug("the client is gone before the end of its stream: %s", exc)
        if isinstance(exc, ClientStuck):
            context.metrics.slow_client_cut()
        writer.abort()
    except BaseException:
        if response.prepared:
            writer.abort()  # never a clean end without the final chunk
        raise
    finally:
        tracing.current().set({tracing.STREAM_WHOLE: pump.ended})
        _leave(context, pump, feed)
        if cancel_when_gone and source.begun and not pump.ended:
            _cancel_abandoned(context, source.head.run_id)
    return response


async def complete_run(context: Context, source: Source, view: View, *, cancel_when_gone: bool) -> web.Response:
    """Wait for a run's end and answer with its completion; raises RunFailed."""
    feed = context.bus.feed(source.head.run_id)
    opening = source.open(feed)
    collector = Collector(view.fold(source.head))
    feed.deliver_to(collector)
    collector.attach(source.deadlines(feed), context.metrics.clock() if isinstance(source, Admission) else None)
    context.watcher.add(collector)
    try:
        await opening
        del opening
        await collector.until_ended()
    finally:
        _leave(context, collector, feed)
        if cancel_when_gone and source.begun and not collector.ended:
            _cancel_abandoned(context, source.head.run_id)
    collector.raise_failure()
    return web.json_response(collector.fold.body())


async def start_run(admission: Admission, view: View) -> web.Response:
    """Enqueue a run nobody waits for and answer with its id."""
    await admission.start()
    return web.json_response(view.fold(admission.head).body(status="queued"))


async def fold_run(context: Context, info: RunInfo, view: View, *, until_ended_s: float | None = None) -> web.Response:
    """Answer with a run as far as it is, or as it is when it has ended; a failed one says so in ``error``.

    Raises RunStuck if it has not ended after ``until_ended_s``.
    """
    fold = view.fold(head_of(info))
    await read_run(context, info, fold, until_ended_s=until_ended_s)
    return web.json_response(fold.body(status=info.status))


async def cancel_run(context: Context, info: RunInfo, view: View) -> web.Response:
    """End a run, and answer with it when it has really ended; raises RunStuck if that takes too long."""
    asked_s = time.monotonic()
    async with answering():
        await context.runs.cancel(info.run_id, ttl_s=context.settings.run_ttl_s)
    if not info.ended:
        context.metrics.cancel_asked("request")
    response = await fold_run(context, info, view, until_ended_s=cancel_bound_s(context.settings.lease_s))
    if not info.ended:
        context.metrics.cancel_took(time.monotonic() - asked_s)
    return response


async def read_run(context: Context, info: RunInfo, fold: Fold, *, until_ended_s: float | None = None) -> None:
    """Fold a run's log; raises as ``Past.open``, RunFailed if it cannot be read, and RunStuck."""
    collector = Collector(fold)
    feed = context.bus.feed(info.run_id)
    feed.deliver_to(collector)
    try:
        await Past(context, info).open(feed)
        collector.raise_given_up()
        if until_ended_s is not None:
            async with asyncio.timeout(until_ended_s):
                await collector.until_ended()
    except TimeoutError as exc:
        message = f"the cancel of {info.run_id} is stored, but the run has not ended within {until_ended_s:g} s"
        raise RunStuck(message) from exc
    finally:
        _leave(context, collector, feed)


@contextlib.asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Bound a few commands to the broker; raises BrokerUnavailable if it takes too long."""
    try:
        async with asyncio.timeout(ADMISSION_TIMEOUT_S):
            yield
    except TimeoutError as exc:
        message = f"Redis did not answer within {ADMISSION_TIMEOUT_S:g} s; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S) from exc


def require_broker(context: Context) -> None:
    """Raise BrokerUnavailable at once if the link is down."""
    if not context.link.connected:
        message = "Redis cannot be reached; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S)


def refuse_if_draining(context: Context) -> None:
    """Raise Draining if this front end is about to end."""
    if context.draining:
        message = "this front end is shutting down; try again"
        raise Draining(message, retry_after_s=1)


def cancel_bound_s(lease_s: float) -> float:
    """Return how long a cancel may take: a lost worker's lease and its reclaim, an agent's clean-up, and air."""
    return lease_s * 4 / 3 + 10


def _cancel_abandoned(context: Context, run_id: str) -> None:
    """Cancel the run of a client that went away; not when we cut it ourselves, as it may come back elsewhere."""
    if not context.draining:
        context.metrics.cancel_asked("abandoned")
        context.errands.run(context.runs.cancel(run_id, ttl_s=context.settings.run_ttl_s), f"cancel {run_id}")


def _leave(context: Context, run: StreamPump | Collector, feed: RunFeed) -> None:
    feed.close()
    context.watcher.remove(run)
    context.metrics.left(run)


def _extra_headers(request: web.Request) -> dict[str, str]:
    cors_headers: dict[str, str] = request.get("cors_headers", {})
    return {"X-Request-Id": current().request_id or "", **cors_headers}
