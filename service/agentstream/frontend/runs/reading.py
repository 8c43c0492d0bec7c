"""Reads an existing run from its replay log, and answers with its current state."""

import asyncio
from typing import Any

from aiohttp import web

from agentstream.errors import RunNotEnded
from agentstream.frontend.context import Context
from agentstream.frontend.runs.attaching import ExistingRun
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.guards import BrokerTimeout
from agentstream.frontend.runs.source import head_of, leave
from agentstream.store.runs import RunInfo
from agentstream.stream.views import Fold, View


async def snapshot_run(
    context: Context, info: RunInfo, view: View, *, end_timeout_s: float | None = None
) -> web.Response:
    """Answer with the current state of a run or, with ``end_timeout_s``, with its state after its end.

    A failed run is not raised: the answer has the field ``error``. Raises RunNotEnded if the run has not ended within
    ``end_timeout_s`` seconds, and the errors of ``read_run``.
    """
    fold = view.fold(head_of(info))
    await read_run(context, info, fold, end_timeout_s=end_timeout_s)
    body = fold.body(status=info.status)
    if not fold.finished and body["object"] == "chat.completion":
        body |= await _open_interrupts(context, info)
    return web.json_response(body)


async def _open_interrupts(context: Context, info: RunInfo) -> dict[str, Any]:
    """Return the interrupts of an open run that are not answered, whether it is parked or waits in its worker."""
    async with BrokerTimeout(context):
        waiting = await context.interrupts.read(info.run_id)
    if waiting is None or not (asked := waiting.open):
        return {}
    return {"interrupts": [each.as_json() for each in asked]}


async def read_run(context: Context, info: RunInfo, fold: Fold, *, end_timeout_s: float | None = None) -> None:
    """Fold the replay log of a run into ``fold`` and, with ``end_timeout_s``, its live events up to its end.

    Raises RunFailed if the run cannot be read, RunNotEnded if it has not ended within ``end_timeout_s`` seconds, and
    the errors of ``ExistingRun.open``.
    """
    collector = Collector(fold)
    feed = context.bus.feed(info.run_id)
    feed.deliver_to(collector)
    try:
        await ExistingRun(context, info).open(feed)
        collector.raise_if_given_up()
        if end_timeout_s is not None:
            async with asyncio.timeout(end_timeout_s):
                await collector.wait_ended()
    except TimeoutError as exc:
        message = (
            f"the cancel of {info.run_id} is stored, but the run has not ended within {end_timeout_s:g} s; "
            "check its status later"
        )
        raise RunNotEnded(message) from exc
    finally:
        leave(context, collector, feed)
