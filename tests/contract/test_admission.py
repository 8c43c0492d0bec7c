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
        in_one = link.group_of(keys.run(sent.run_id)) == link.group_of(keys.jobs("q"))
        parts = (b"SUBSCRIBE", SCRIPTS["create_run"].sha, SCRIPTS["admit"].sha)
        assert [at_once.count(part) for part in parts] == [1, int(not in_one), 1]


async def test_an_admitted_run_has_its_hash_until_its_ttl(link: Link, keys: Keys) -> None:
    """Admission creates the hash of the run with its TTL, and keeps what a hash already has."""
    submitter, sent = JobSubmitter(link, keys, "q", max_queued=3), job()
    run = keys.run(sent.run_id)
    await submitter.submit(sent, ttl_s=60)
    names = ("status", "owner", "model", "created", "include_usage")
    as_created = await link.call("HMGET", run, *names)
    assert as_created == [
        b"queued",
        sent.owner.encode(),
        sent.request["model"].encode(),
        str(sent.created).encode(),
        b"0",
    ]
    assert 0 < await link.call("TTL", run) <= 60
    await link.call("DEL", run)
    await link.call("HSET", run, "status", "running")
    await submitter.submit(sent, ttl_s=60)
    assert await link.call("HMGET", run, *names) == [b"running", *as_created[1:]]
    await link.call("HSET", run, "model", "kept")
    await submitter.submit(sent, ttl_s=60)
    assert await link.call("HGET", run, "model") == b"kept", "a hash with an owner stays as it is"


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
