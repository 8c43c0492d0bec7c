"""The time limit for a reply."""

import asyncio

import pytest

from agentstream.store.deadline import within
from tests.helpers import TIMEOUT_S


async def test_a_result_in_time_is_returned() -> None:
    """A future that is done in time gives its result, and its error."""
    loop = asyncio.get_running_loop()
    good, bad = loop.create_future(), loop.create_future()
    loop.call_soon(good.set_result, 1)
    loop.call_soon(bad.set_exception, ValueError("refused"))
    assert await within(good, TIMEOUT_S) == 1
    with pytest.raises(ValueError, match="refused"):
        await within(bad, TIMEOUT_S)


async def test_a_late_future_is_cancelled() -> None:
    """After the limit the future is cancelled, and the caller gets a TimeoutError."""
    future = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await within(future, 0)
    assert future.cancelled()


async def test_a_cancelled_caller_stays_cancelled() -> None:
    """A cancel of the caller is no timeout, also if the limit is reached in the same turn of the event loop."""
    loop = asyncio.get_running_loop()
    for limit_first in (False, True):
        future = loop.create_future()
        task = asyncio.create_task(within(future, TIMEOUT_S))
        await asyncio.sleep(0)
        if limit_first:
            future.cancel("the time limit is over")
        task.cancel()
        await asyncio.wait({task}, timeout=TIMEOUT_S)
        assert task.cancelled()
        assert future.cancelled()


async def test_a_cancelled_caller_that_cleans_up_has_a_time_limit() -> None:
    """A task that waits again after its cancel gets a TimeoutError when the limit is reached."""

    async def cleaning_up() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with pytest.raises(TimeoutError):
                await within(asyncio.get_running_loop().create_future(), 0)
        return "cleaned up"

    task = asyncio.create_task(cleaning_up())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(TIMEOUT_S):
        assert await task == "cleaned up"
