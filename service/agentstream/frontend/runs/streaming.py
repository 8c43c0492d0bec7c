"""Streams a run to its client."""

import logging
from typing import Final

from aiohttp import hdrs, web

from agentstream.frontend.context import Context
from agentstream.frontend.runs.cancelling import cancel_abandoned
from agentstream.frontend.runs.new_run import NewRun
from agentstream.frontend.runs.pump import StreamPump
from agentstream.frontend.runs.raw_writer import ClientDisconnected, ClientStalled, RawWriter, StreamedResponse
from agentstream.frontend.runs.source import RunSource, leave
from agentstream.stream.chat import StreamOptions
from agentstream.stream.views import View
from agentstream.telemetry import tracing
from agentstream.telemetry.log_context import current_log_context

log = logging.getLogger(__name__)

STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


async def stream_run(  # noqa: PLR0913 -- the request, the run, and how to show it
    request: web.Request,
    context: Context,
    source: RunSource,
    view: View,
    options: StreamOptions,
    *,
    cancel_on_disconnect: bool,
) -> web.StreamResponse:
    """Stream a run until its end or until the client disconnects, and return the sent response.

    If the client disconnects first and ``cancel_on_disconnect`` is true, the run is cancelled. Raises the errors of
    ``source.open``.
    """
    headers = STREAM_HEADERS | _extra_headers(request)
    if request.method == hdrs.METH_HEAD:  # its client would read a body as the next answer
        return StreamedResponse(headers=headers)
    feed = context.bus.feed(source.head.run_id)
    opening = source.open(feed)
    response = StreamedResponse(headers=headers)
    writer = RawWriter(request, response, write_timeout_s=context.settings.write_timeout_s)
    machine = view.machine(source.head, options, source.after)
    pump = StreamPump(
        machine, writer, context.flush_scheduler, replay_word_delay_ms=context.settings.replay_word_delay_ms
    )
    feed.deliver_to(pump)
    pump.attach(feed, source.deadlines(feed), context.metrics.latency_timer() if isinstance(source, NewRun) else None)
    context.watcher.add(pump)
    try:
        await opening
        del opening  # saves 0.4 KB for each open stream
        await pump.run()
    except ClientDisconnected as exc:
        log.debug("the client disconnected before the end of its stream: %s", exc)
        if isinstance(exc, ClientStalled):
            context.metrics.slow_client_cut()
        writer.abort()
    except BaseException:
        if response.prepared:
            writer.abort()  # without the final chunk, the body must not look complete
        raise
    finally:
        tracing.current().set({tracing.STREAM_WHOLE: pump.ended})
        leave(context, pump, feed)
        if cancel_on_disconnect and source.may_exist and not pump.ended:
            cancel_abandoned(context, source.head.run_id)
    return response


def _extra_headers(request: web.Request) -> dict[str, str]:
    cors_headers: dict[str, str] = request.get("cors_headers", {})
    return {"X-Request-Id": current_log_context().request_id or "", **cors_headers}
