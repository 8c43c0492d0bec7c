"""The spans of a front end: one for each request of the API, and inside it one for putting a job into its queue."""

from typing import Final

from aiohttp import web

from agentstream.frontend.middleware import Handler
from agentstream.protocol.jobs import Job
from agentstream.store.runs import RunInfo
from agentstream.telemetry import tracing
from agentstream.telemetry.log_context import current_log_context

TRACED_PREFIX: Final = "/v1/"  # health, metrics and the page would drown what matters
MAX_CHARS: Final = 256  # of what a caller chooses; a header may have 8 KB, and spans wait in memory


def traced(handler: Handler, route: str) -> Handler:
    """Return a handler inside a span, which goes on a trace that the caller sent by W3C's headers.

    It is around everything else, so that it sees the status that is sent; a wrong ``traceparent`` begins a new trace.
    """

    async def inside_a_span(request: web.Request) -> web.StreamResponse:
        sent_host = request.headers.get("Host", "")[:MAX_CHARS]
        host, _, port = sent_host.rpartition(":")
        has_port = port.isdecimal() and len(port) <= len("65535")
        attributes = {
            "http.request.method": request.method,
            "http.route": route,
            "url.path": request.path[:MAX_CHARS],
            "url.scheme": request.scheme,
            "server.address": host if has_port else sent_host,
            "server.port": int(port) if has_port else None,
            "user_agent.original": request.headers.get("User-Agent", "")[:MAX_CHARS] or None,
        }
        with tracing.span(f"{request.method} {route}", "server", attributes, parent=request.headers) as span:
            response = await handler(request)
            told = {"http.response.status_code": response.status, tracing.REQUEST_ID: current_log_context().request_id}
            span.set(told)
            if response.status >= 500:  # noqa: PLR2004
                span.fail(str(response.status))
        return response

    return inside_a_span


def enqueue_span(job: Job, queue: str) -> tracing.Span:
    """Return the span of enqueueing a job, a child of the request that it came with.

    Also when it is enqueued again, long after: then nothing of the request is current any more.
    """
    if not tracing.enabled():
        return tracing.span("send")
    attributes = {
        "messaging.system": "redis",
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.destination.name": queue,
        tracing.RUN_ID: job.run_id,
    }
    return tracing.span(f"send {queue}", "producer", attributes, parent=job.trace)


def set_run_attributes(run: Job | RunInfo) -> None:
    """Tell of a request which run it is about; one that was created by another request is linked to that trace."""
    span = tracing.current()
    span.set({tracing.RUN_ID: run.run_id, "gen_ai.request.model": _model(run)})
    if isinstance(run, RunInfo) and run.traceparent:
        span.link({"traceparent": run.traceparent})


def _model(run: Job | RunInfo) -> str:
    model: str = run.model if isinstance(run, RunInfo) else run.request["model"]
    return model
