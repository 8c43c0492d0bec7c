"""What the contract tests share: a queue that a worker reads."""

from collections.abc import AsyncIterator

import pytest

from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.queue import JobQueue


@pytest.fixture
async def queue(any_broker_url: str, link: Link, keys: Keys) -> AsyncIterator[JobQueue]:
    """The queue "q", read by the worker "w1"."""
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w1")
    await queue.open()
    yield queue
    await queue.close()
