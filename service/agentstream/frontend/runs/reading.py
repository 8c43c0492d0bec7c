"""Reading a run that exists from its log, and answering with it as far as it is."""

import asyncio

from aiohttp import web

from agentstream.errors import RunStuck
from agentstream.frontend.context import Context
from agentstream.frontend.runs.attaching import Past
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.source import head_of, leave
from agentstream.store.runs import RunInfo
from agentstream.stream.views import Fold, View


async def fold_run(context: Context, info: RunInfo, view: View, *, until_ended_s: float | None = None) -> web.Response:
    """Answer with a run as far as it is, or as it is when it has ended; a failed one says so in ``error``.

    Raises RunStuck if it has not ended after ``until_ended_s``.
    """
    fold = view.fold(head_of(info))
    await read_run(context, info, fold, until_ended_s=until_ended_s)
    return web.json_response(fold.body(status=info.status))


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
        leave(context, collector, feed)
