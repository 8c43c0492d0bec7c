"""Cancelling a run: because its client asks, or because its client is gone."""

import time

from aiohttp import web

from agentstream.frontend.context import Context
from agentstream.frontend.runs.guards import broker_timeout
from agentstream.frontend.runs.reading import snapshot_run
from agentstream.store.runs import RunInfo
from agentstream.stream.views import View


async def cancel_run(context: Context, info: RunInfo, view: View) -> web.Response:
    """End a run, and answer with it when it has really ended; raises RunNotEnded if that takes too long."""
    asked_s = time.monotonic()
    async with broker_timeout():
        await context.runs.cancel(info.run_id, ttl_s=context.settings.run_ttl_s)
    if not info.ended:
        context.metrics.cancel_requested("request")
    response = await snapshot_run(context, info, view, end_timeout_s=cancel_timeout_s(context.settings.lease_s))
    if not info.ended:
        context.metrics.cancel_took(time.monotonic() - asked_s)
    return response


def cancel_abandoned(context: Context, run_id: str) -> None:
    """Cancel the run of a client that went away; not when we cut it ourselves, as it may come back elsewhere."""
    if not context.draining:
        context.metrics.cancel_requested("abandoned")
        context.background_tasks.start(
            context.runs.cancel(run_id, ttl_s=context.settings.run_ttl_s), f"cancel {run_id}"
        )


def cancel_timeout_s(lease_s: float) -> float:
    """Return how long a cancel may take: a lost worker's lease and its reclaim, an agent's clean-up, and air."""
    return lease_s * 4 / 3 + 10
