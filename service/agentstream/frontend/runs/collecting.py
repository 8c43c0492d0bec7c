"""Answers with a run as one JSON object: after its end, or at once for a background run."""

from aiohttp import web

from agentstream.frontend.context import Context
from agentstream.frontend.runs.cancelling import cancel_abandoned
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.new_run import NewRun
from agentstream.frontend.runs.source import RunSource, leave
from agentstream.stream.views import View


async def wait_for_run(context: Context, source: RunSource, view: View, *, cancel_on_disconnect: bool) -> web.Response:
    """Wait until a run has ended or waits for people, and answer with its completion.

    Raises RunFailed if the run fails or the front end gives up on it, and the errors of ``source.open``. If the client
    disconnects first and ``cancel_on_disconnect`` is true, the run is cancelled.
    """
    feed = context.bus.feed(source.head.run_id)
    opening = source.open(feed)
    collector = Collector(view.fold(source.head), feed)
    feed.deliver_to(collector)
    collector.attach(source.deadlines(feed), context.metrics.latency_timer() if isinstance(source, NewRun) else None)
    context.watcher.add(collector)
    try:
        await opening
        del opening
        await collector.wait_ended()
    finally:
        leave(context, collector, feed)
        if cancel_on_disconnect and source.may_exist and not collector.ended:
            cancel_abandoned(context, source.head.run_id)
    collector.raise_if_failed()
    return web.json_response(collector.fold.body(interrupt_text=context.settings.interrupt_text))


async def start_run(new_run: NewRun, view: View) -> web.Response:
    """Enqueue a background run and answer at once with its id and the status "queued"."""
    await new_run.start()
    return web.json_response(view.fold(new_run.head).body(status="queued"))
