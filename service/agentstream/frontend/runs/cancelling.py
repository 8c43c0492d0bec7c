"""Cancels a run: because a client asks for it, or because the run's client has disconnected."""

import contextlib
import time
from functools import partial

from aiohttp import web

from agentstream.errors import NotFound
from agentstream.frontend.context import Context
from agentstream.frontend.runs.guards import BrokerTimeout
from agentstream.frontend.runs.reading import snapshot_run
from agentstream.store.runs import RunInfo
from agentstream.stream.views import View


async def cancel_run(context: Context, info: RunInfo, view: View) -> web.Response:
    """Cancel a run, and answer with it after it has ended.

    Raises RunNotEnded if that takes longer than ``cancel_timeout_s``, BrokerUnavailable, and the errors of
    ``read_run``.
    """
    requested_s = time.monotonic()
    cancel = partial(context.runs.cancel, info.run_id, ttl_s=context.settings.run_ttl_s)
    async with BrokerTimeout(context):
        await cancel()
        context.recovery.remember(cancel)
        if not info.ended:  # it may have been parked
            # If its model is no longer in the settings, the workers forget the run later.
            with contextlib.suppress(NotFound):
                await context.interrupts.forget(context.model_router.queue_of_model(info.model), info.run_id)
    if not info.ended:
        context.metrics.cancel_requested("request")
    response = await snapshot_run(context, info, view, end_timeout_s=cancel_timeout_s(context.settings.lease_s))
    if not info.ended:
        context.metrics.cancel_took(time.monotonic() - requested_s)
    return response


def cancel_abandoned(context: Context, run_id: str) -> None:
    """Cancel, in the background, a run whose client has disconnected.

    Do nothing while the front end drains: then the front end closes the connections, and the client may resume the run
    on another front end.
    """
    if not context.draining:
        context.metrics.cancel_requested("abandoned")
        cancel = partial(context.runs.cancel, run_id, ttl_s=context.settings.run_ttl_s)
        context.background_tasks.start(cancel(), f"cancel {run_id}")
        context.recovery.remember(cancel)


def cancel_timeout_s(lease_s: float) -> float:
    """Return how long a cancel may take, in seconds.

    The worker may be lost: its lease expires after ``lease_s``, and a reclaim follows within ``lease_s / 3``. An async
    agent has 5 s to clean up. The other 5 s are reserve.
    """
    return lease_s * 4 / 3 + 10
