"""Bounded waits for the state of other processes."""

import asyncio
from collections.abc import Awaitable, Callable

import redis.exceptions

from tests.helpers import TIME_SCALE

# The longest wait. A failover takes 2 to 6 s on an idle machine, and sentinels wait 10 s before another attempt.
WAIT_S = 50 * TIME_SCALE
_POLL_S = 0.03


async def until(holds: Callable[[], Awaitable[bool]], what: str, timeout_s: float = WAIT_S) -> None:
    """Return when ``holds`` is true. A server that does not answer counts as false.

    Raises AssertionError that names ``what`` and the last error.
    """
    problem: Exception | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    if await holds():
                        return
                    problem = None
                except (redis.exceptions.RedisError, OSError) as exc:
                    problem = exc
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        message = f"not within {timeout_s:g} s: {what}" + (f"; the last error: {problem!r}" if problem else "")
        raise AssertionError(message) from problem
