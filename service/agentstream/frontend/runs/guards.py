"""What every route asks before it answers: is the broker there, is this front end draining, how long may Redis take."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from agentstream.errors import BrokerUnavailable, Draining
from agentstream.frontend.context import Context
from agentstream.frontend.middleware import BROKER_RETRY_AFTER_S

# Subscribing and enqueueing take about 1 ms; a broker that needs this long is as good as down.
ADMISSION_TIMEOUT_S: Final = 5.0


@contextlib.asynccontextmanager
async def broker_timeout() -> AsyncIterator[None]:
    """Bound a few commands to the broker; raises BrokerUnavailable if it takes too long."""
    try:
        async with asyncio.timeout(ADMISSION_TIMEOUT_S):
            yield
    except TimeoutError as exc:
        message = f"Redis did not answer within {ADMISSION_TIMEOUT_S:g} s; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S) from exc


def require_broker(context: Context) -> None:
    """Raise BrokerUnavailable at once if the link is down."""
    if not context.link.connected:
        message = "Redis cannot be reached; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S)


def refuse_if_draining(context: Context) -> None:
    """Raise Draining if this front end is about to end."""
    if context.draining:
        message = "this front end is shutting down; try again"
        raise Draining(message, retry_after_s=1)
