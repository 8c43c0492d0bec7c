"""How a worker with several queues joins them, on fakeredis and real servers."""

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

import pytest

from agentstream.errors import BrokerUnavailable
from agentstream.processes.stopping import done_before
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.new_link import new_link
from agentstream.store.queue import JobQueue
from agentstream.worker.agent_set import AgentSet
from agentstream.worker.serve import _join, _subscribe
from tests.helpers import TIMEOUT_S


class Refused:
    """A queue that Redis refuses when ``refuse`` is set."""

    def __init__(self) -> None:
        """Wait for the refusal."""
        self.asked = asyncio.Event()
        self.refuse = asyncio.Event()

    async def open(self, _timeout_s: float) -> None:
        """Wait, then fail."""
        self.asked.set()
        await self.refuse.wait()
        message = "refused"
        raise BrokerUnavailable(message)


@pytest.mark.parametrize("by_stop", [True, False], ids=["stop", "refusal"])
async def test_a_worker_that_does_not_join_leaves_nothing_behind(
    any_broker_url: str, keys: Keys, by_stop: bool
) -> None:
    """If a worker stops, or is refused, before all its queues are open, it leaves the opened ones again."""
    endpoint, stop, refused = Endpoint(any_broker_url), asyncio.Event(), Refused()
    link = new_link(endpoint, keys, name="test")
    queue = JobQueue(endpoint, link, keys, "q", worker_id="w1")
    queues = cast("Iterable[JobQueue]", [queue, refused])
    joining = asyncio.create_task(done_before(stop, _join(link, AgentSet(), {}, queues, TIMEOUT_S)))
    end: Callable[[], None] = stop.set if by_stop else refused.refuse.set
    async with asyncio.timeout(TIMEOUT_S):
        await refused.asked.wait()
        assert await link.call("ZSCORE", keys.workers("q"), "w1")
        end()
        if by_stop:
            assert not await joining
        else:
            with pytest.raises(BrokerUnavailable, match="refused"):
                await joining
        assert await link.call("ZSCORE", keys.workers("q"), "w1") is None
        await link.close()
    assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({"link", "topology", "ping the broker"})


async def test_a_subscription_that_is_not_confirmed_ends_the_start(any_broker_url: str, keys: Keys) -> None:
    """A worker does not wait for ever for the confirmation of its channels."""
    link = new_link(Endpoint(any_broker_url), keys, name="test")  # it is not opened, so nothing confirms them
    with pytest.raises(BrokerUnavailable, match="did not answer"):
        await _subscribe(link, {keys.control("w1"): lambda _message: None}, 0.05)
    await link.close()
