"""Waiting for the end of a run and answering with it as one JSON object."""

from aiohttp import web

from agentstream.frontend.context import Context
from agentstream.frontend.runs.cancelling import cancel_abandoned
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.new_run import Admission
from agentstream.frontend.runs.source import Source, leave
from agentstream.stream.views import View


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
        leave(context, collector, feed)
        if cancel_when_gone and source.begun and not collector.ended:
            cancel_abandoned(context, source.head.run_id)
    collector.raise_failure()
    return web.json_response(collector.fold.body())


async def start_run(admission: Admission, view: View) -> web.Response:
    """Enqueue a run nobody waits for and answer with its id."""
    await admission.start()
    return web.json_response(view.fold(admission.head).body(status="queued"))
