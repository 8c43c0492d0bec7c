"""The spans of a front end: one for each API request, and one for each job that it enqueues."""

from typing import Final

from aiohttp import web

from agentstream.frontend.middleware import Handler
from agentstream.protocol.jobs import Job
from agentstream.store.runs import RunInfo
from agentstream.telemetry import tracing
from agentstream.telemetry.log_context import current_log_context

TRACED_PREFIX: Final = "/v1/"  # health checks, scrapes and page files would hide the API requests in a trace list
MAX_CHARS: Final = 256  # of an attribute that the client sends: a header may have 32 KB, and spans wait in memory


def traced(handler: Handler) -> Handler:
    """Return a handler that calls ``handler`` inside a span with the name of its route.

    The span continues the trace in the request's W3C headers. Without a valid ``traceparent`` it starts a new trace.
    Apply this wrapper last: the span then records the status that is sent.
    """

    async def inside_a_span(request: web.Request) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource else ""
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
            request_id = current_log_context().request_id
            span.set({"http.response.status_code": response.status, tracing.REQUEST_ID: request_id})
            if response.status >= 500:  # noqa: PLR2004
                span.fail(str(response.status))
        return response

    return inside_a_span


def enqueue_span(job: Job, queue: str) -> tracing.Span:
    """Return the span of enqueueing a job, as a child of the span of the request that created the job.

    The parent comes from the job, not from the current context: a job may be enqueued again after its request has
    ended.
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
    """Record the run's id and model in the current span.

    If another request created the run, the span also gets a link to the trace of that request.
    """
    span = tracing.current()
    span.set({tracing.RUN_ID: run.run_id, "gen_ai.request.model": _model(run)})
    if isinstance(run, RunInfo) and run.traceparent:
        span.link({"traceparent": run.traceparent})


def _model(run: Job | RunInfo) -> str:
    model: str = run.model if isinstance(run, RunInfo) else run.request["model"]
    return model
