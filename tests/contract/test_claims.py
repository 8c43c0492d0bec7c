"""Claims of several jobs at once, on fakeredis and real servers."""

import asyncio
import time

import pytest

from agentstream.errors import BrokerUnavailable
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.connection.link import Link
from agentstream.store.queue import Claim, JobQueue
from agentstream.store.scripts import SCRIPTS
from tests.helpers import TIMEOUT_S


def job() -> Job:
    return Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=time.time() + 60)


async def claimed(queue: JobQueue, at_most: int) -> list[Claim]:
    async with asyncio.timeout(TIMEOUT_S):
        while not (claims := await queue.claim(at_most)):
            pass
    return claims


async def test_several_waiting_jobs_are_claimed_together(queue: JobQueue, link: Link, keys: Keys) -> None:
    """One claim takes several waiting jobs in their order, without an entry that is not a job, and leaves the rest."""
    sent = [job() for _ in range(3)]
    for envelope in (sent[0].encode(), "nonsense", sent[1].encode(), sent[2].encode()):
        await link.call("XADD", keys.jobs("q"), "*", "job", envelope)
    claims = await claimed(queue, 3)
    assert [claim.job for claim in claims] == sent[:2]
    assert all(claim.new for claim in claims)
    assert [claim.job for claim in await claimed(queue, 3)] == sent[2:]
    assert await link.call("XLEN", keys.jobs("q")) == 3


async def test_an_entry_that_cannot_be_removed_does_not_hold_up_the_jobs_beside_it(
    queue: JobQueue, link: Link, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker does not answer when an entry that is no job is removed, the jobs of the same claim still begin."""

    async def unanswered(*_: object) -> None:
        message = "Redis did not answer"
        raise BrokerUnavailable(message)

    sent = [job() for _ in range(2)]
    for envelope in (sent[0].encode(), "nonsense", sent[1].encode()):
        await link.call("XADD", keys.jobs("q"), "*", "job", envelope)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "_script", unanswered)
        claims = await claimed(queue, 3)
    assert [claim.job for claim in claims] == sent


@pytest.mark.one_server
async def test_jobs_that_are_claimed_together_begin_in_one_write(
    queue: JobQueue, link: Link, keys: Keys, written: list[bytes]
) -> None:
    """The attempts at jobs of one claim begin with one write, and each of them is counted."""
    for _ in range(3):
        await link.call("XADD", keys.jobs("q"), "*", "job", job().encode())
    claims = await claimed(queue, 16)
    begun = await asyncio.gather(*(queue.begin(claim, ttl_s=60) for claim in claims))
    assert [one and one.attempt for one in begun] == [1, 1, 1]
    assert [data.count(SCRIPTS["begin"].sha) for data in written if SCRIPTS["begin"].sha in data] == [3]
