"""The time limit of the commands that a request waits for."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentstream.errors import BrokerUnavailable
from agentstream.frontend.context import Context
from agentstream.frontend.runs import guards
from agentstream.frontend.runs.guards import BrokerTimeout

LINK = SimpleNamespace(fails_over=False, unanswered=lambda timeout_s: f"no answer within {timeout_s:g} s")
CONTEXT = cast("Context", SimpleNamespace(link=LINK))


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit commands to 0.01 s."""
    monkeypatch.setattr(guards, "ADMISSION_TIMEOUT_S", 0.01)


def never() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def test_a_block_that_takes_too_long_raises_broker_unavailable() -> None:
    """A command is cancelled at the limit, and the error has the words of the link and the time to wait."""
    command = never()
    with pytest.raises(BrokerUnavailable, match=r"no answer within 0\.01 s; try again") as caught:
        async with BrokerTimeout(CONTEXT):
            await command
    assert command.cancelled()
    assert caught.value.retry_after_s is not None
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_block_that_ends_in_time_leaves_no_timer() -> None:
    """After the block nothing is cancelled any more, and errors of the block pass."""
    with pytest.raises(KeyError):
        async with BrokerTimeout(CONTEXT):
            raise KeyError
    limit = BrokerTimeout(CONTEXT)
    async with limit:
        assert not limit._timer.cancelled()
    assert limit._timer.cancelled()


@pytest.mark.parametrize("limit_first", [True, False], ids=["after the limit", "before the limit"])
async def test_the_cancellation_of_the_request_stays_a_cancellation(*, limit_first: bool) -> None:
    """If the request is cancelled, the block raises CancelledError, also if the limit is reached in the same turn."""
    entered, limit = asyncio.Event(), BrokerTimeout(CONTEXT)

    async def request() -> None:
        async with limit:
            entered.set()
            await never()

    task = asyncio.create_task(request())
    await entered.wait()
    if limit_first:
        limit._expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
