"""Checks before a route answers: Redis is connected and answers in time, and this front end is not draining."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from agentstream.errors import BrokerUnavailable, Draining
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
    """Raise BrokerUnavailable if the link to Redis is not connected."""
    if not context.link.connected:
        refusal = context.link.refusal
        message = f"Redis refuses: {refusal}; try again" if refusal else "Redis cannot be reached; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S)


def refuse_if_draining(context: Context) -> None:
    """Raise Draining if this front end is shutting down."""
    if context.draining:
        message = "this front end is shutting down; try again"
        raise Draining(message, retry_after_s=1)
