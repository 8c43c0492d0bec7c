"""Commands that a client waits for are sent to the broker without delay."""

import asyncio
from types import SimpleNamespace
from typing import cast

from agentstream.config import load_settings
from agentstream.frontend.context import Context
from agentstream.frontend.runs.new_run import NewRun
from agentstream.protocol.keys import Keys
from agentstream.store.bus.feed import RunFeed
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.queue import JobQueue
from agentstream.store.scripts import SCRIPTS
from agentstream.store.submission import JobSubmitter
from tests.contract.test_queue import claimed, job


async def test_a_job_is_sent_before_anything_is_awaited(link: Link, keys: Keys, written: list[bytes]) -> None:
    """Opening the feed of a new run sends the subscription and the job at once, before the opening is awaited."""
    submitter = JobSubmitter(link, keys, "q", max_queued=3)
    context = cast("Context", SimpleNamespace(link=link, settings=load_settings(), model_router=submitter))
    sent = job()
    feed = RunFeed(link, keys.events(sent.run_id))
    opening = NewRun(context, sent).open(feed)
    at_once = b"".join(written)
    await opening
    feed.close()
    assert await submitter.outstanding() == 1
    if link.keeps_order():  # else the job is sent only after the subscription is confirmed
        parts = (b"SUBSCRIBE", SCRIPTS["create_run"].sha, SCRIPTS["admit"].sha)
        assert [at_once.count(part) for part in parts] == [1, 1, 1]


async def test_begin_is_sent_before_the_turn_ends(
    link: Link, keys: Keys, any_broker_url: str, written: list[bytes]
) -> None:
    """``begin`` sends its command at once, and does not wait for the end of the turn of the loop."""
    await JobSubmitter(link, keys, "q", max_queued=3).submit(job(), ttl_s=60)
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w")
    await queue.open()
    claim = await claimed(queue)
    beginning = asyncio.create_task(queue.begin(claim, ttl_s=60))
    await asyncio.sleep(0)
    sent = b"".join(written)
    begun = await beginning
    await queue.close()
    assert begun is not None
    assert link.script("begin")[1] in sent
