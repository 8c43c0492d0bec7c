"""What the contract tests share: a queue, its submitter, and two workers that read it."""

from collections.abc import AsyncIterator

import pytest

from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.queue import JobQueue
from agentstream.store.submission import JobSubmitter


@pytest.fixture
async def queue(any_broker_url: str, link: Link, keys: Keys) -> AsyncIterator[JobQueue]:
    """The queue "q", read by the worker "w1"."""
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w1")
    await queue.open()
    yield queue
    await queue.close()


@pytest.fixture
async def other_queue(any_broker_url: str, link: Link, keys: Keys) -> AsyncIterator[JobQueue]:
    """The same queue, read by the worker "w2"."""
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w2")
    await queue.open()
    yield queue
    await queue.close()


@pytest.fixture
def submitter(link: Link, keys: Keys) -> JobSubmitter:
    """The front end's side of the queue "q"."""
    return JobSubmitter(link, keys, "q", max_queued=3)
