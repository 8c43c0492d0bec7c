"""Checks before a route answers: Redis is connected and answers in time, and there are not too many connections."""

import asyncio
from types import TracebackType
from typing import Any, Final, cast

from aiohttp import web

from agentstream.errors import BrokerUnavailable, TooManyConnections
from agentstream.frontend.connection import is_over_limit
from agentstream.frontend.context import Context
from agentstream.frontend.middleware import BROKER_RETRY_AFTER_S

# Subscribing and enqueueing take about 1 ms. If the broker needs this long, treat it as unavailable.
ADMISSION_TIMEOUT_S: Final = 5.0
# The same, if another server takes over from a lost one. With the usual settings this takes 6 to 7 s.
FAILOVER_TIMEOUT_S: Final = 10.0


class BrokerTimeout:
    """Limits the commands in an ``async with`` block to ADMISSION_TIMEOUT_S, or to FAILOVER_TIMEOUT_S.

    Raises BrokerUnavailable if they take longer, with the broker's own words if it refuses them.

    A context manager around asyncio.timeout does the same, but costs 15 us more for each run (Python 3.11).
    """

    __slots__ = ("_cancelling", "_context", "_expired", "_task", "_timeout_s", "_timer")

    _task: asyncio.Task[Any]
    _timer: asyncio.TimerHandle

    def __init__(self, context: Context) -> None:
        """Bind the context."""
        self._context = context
        self._timeout_s = _patience_s(context)
        self._expired = False

    async def __aenter__(self) -> None:
        """Start the timer."""
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the timer. Raises BrokerUnavailable if the time is over, unless another cancel has also come."""
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            message = f"{self._context.link.unanswered(self._timeout_s)}; try again"
            raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S) from exc


def require_broker(context: Context) -> None:
    """Raise BrokerUnavailable if Redis refuses the connection, or has been away for longer than a request waits.

    A failover or a restart takes less time. During one the request waits, as ``BrokerTimeout`` allows.
    """
    link, refusal = context.link, context.link.refusal
    refused = refusal and not (link.connected or link.fails_over)
    if refused or link.down_s > _patience_s(context):
        message = f"Redis refuses: {refusal}; try again" if refusal else "Redis cannot be reached; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S)


def _patience_s(context: Context) -> float:
    return FAILOVER_TIMEOUT_S if context.link.fails_over else ADMISSION_TIMEOUT_S


def refuse_over_limit(request: web.Request) -> None:
    """Raise TooManyConnections if the connection of this request is one too many."""
    if is_over_limit(request):
        message = "this front end has as many connections as its limit of open files allows; try again"
        raise TooManyConnections(message, retry_after_s=1)
