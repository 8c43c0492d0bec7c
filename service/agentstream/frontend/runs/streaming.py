"""Streaming a run to its client."""

import logging
from typing import Final

from aiohttp import web

from agentstream.frontend.context import Context
from agentstream.frontend.runs.cancelling import cancel_abandoned
from agentstream.frontend.runs.new_run import Admission
from agentstream.frontend.runs.pump import StreamPump
from agentstream.frontend.runs.raw_writer import ClientGone, ClientStuck, RawWriter
from agentstream.frontend.runs.source import Source, leave
from agentstream.stream.chat import StreamOptions
from agentstream.stream.views import View
from agentstream.telemetry import tracing
from agentstream.telemetry.log_context import current

log = logging.getLogger(__name__)

STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


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
        leave(context, pump, feed)
        if cancel_when_gone and source.begun and not pump.ended:
            cancel_abandoned(context, source.head.run_id)
    return response


def _extra_headers(request: web.Request) -> dict[str, str]:
    cors_headers: dict[str, str] = request.get("cors_headers", {})
    return {"X-Request-Id": current().request_id or "", **cors_headers}
