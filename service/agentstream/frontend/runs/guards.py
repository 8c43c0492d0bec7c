"""Checks before a route answers: Redis is connected and answers in time, and there are not too many connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from agentstream.errors import BrokerUnavailable, TooManyConnections
from agentstream.frontend.connection import is_over_limit
from agentstream.frontend.context import Context
from agentstream.frontend.middleware import BROKER_RETRY_AFTER_S

# Subscribing and enqueueing take about 1 ms. If the broker needs this long, treat it as unavailable.
ADMISSION_TIMEOUT_S: Final = 5.0


@contextlib.asynccontextmanager
async def broker_timeout(context: Context) -> AsyncIterator[None]:
    """Limit the commands in the block to ADMISSION_TIMEOUT_S.

    Raises BrokerUnavailable if they take longer, with the broker's own words if it refuses them.
    """
    try:
        async with asyncio.timeout(ADMISSION_TIMEOUT_S):
            yield
    except TimeoutError as exc:
        message = f"{context.link.unanswered(ADMISSION_TIMEOUT_S)}; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S) from exc


def require_broker(context: Context) -> None:
    """Raise BrokerUnavailable if the link to Redis has not been connected for ADMISSION_TIMEOUT_S.

    Shorter times are those of a failover or a restart. Then the request waits, as ``broker_timeout`` allows.
    """
    if context.link.down_s > ADMISSION_TIMEOUT_S or (context.link.refusal and not context.link.connected):
        refusal = context.link.refusal
        message = f"Redis refuses: {refusal}; try again" if refusal else "Redis cannot be reached; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S)


def refuse_over_limit(request: web.Request) -> None:
    """Raise TooManyConnections if the connection of this request is one too many."""
    if is_over_limit(request):
        message = "this front end has as many connections as its limit of open files allows; try again"
        raise TooManyConnections(message, retry_after_s=1)
