"""Queue entries that the broker has lost while a worker executes their runs, on fakeredis and real servers."""

from collections.abc import Awaitable, Callable

import pytest

from agentstream.errors import BrokerUnavailable
from agentstream.protocol.keys import GROUP, Keys
from agentstream.store.claims import BegunAttempt, Claim
from agentstream.store.connection.link import Link
from agentstream.store.queue import JobQueue
from agentstream.store.runs import RunStore
from agentstream.store.submission import Backlog, JobSubmitter
from tests.contract.test_queue import claimed, job, reclaimed

Lose = Callable[[Link, Keys, Claim], Awaitable[None]]


@pytest.fixture
async def held(submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue) -> Claim:
    """A job whose run the worker "w1" executes. No worker reads the queue for the first time after it."""
    for each in (queue, other_queue):
        assert await each.claim(short_block=True) == []
    await submitter.submit(job(), ttl_s=60)
    claim = await claimed(queue)
    queue.holds = {claim.entry_id}.__contains__
    assert await begun(queue, claim) is not None
    return claim


async def begun(queue: JobQueue, claim: Claim) -> BegunAttempt | None:
    return await queue.begin(claim, ttl_s=60, resumable=True)


async def lose_claim(link: Link, keys: Keys, claim: Claim) -> None:
    """Make the group forget that it delivered the entry."""
    await link.call("XACK", keys.jobs("q"), GROUP, claim.entry_id)
    await link.call("XGROUP", "SETID", keys.jobs("q"), GROUP, "0")


async def lose_entry(link: Link, keys: Keys, claim: Claim) -> None:
    """Remove the entry from the queue."""
    await link.call("XACK", keys.jobs("q"), GROUP, claim.entry_id)
    await link.call("XDEL", keys.jobs("q"), claim.entry_id)


async def lose_queue(link: Link, keys: Keys, _claim: Claim) -> None:
    """Remove the whole queue."""
    await link.call("DEL", keys.jobs("q"))


async def holders(link: Link, keys: Keys) -> dict[bytes, bytes]:
    """Return which worker holds which entry."""
    return {one[0]: one[1] for one in await link.call("XPENDING", keys.jobs("q"), GROUP, "-", "+", 10)}


async def test_a_lost_entry_is_replaced_and_comes_back_to_its_worker(
    submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """A worker that gets the new entry gives it to the worker of the run, which keeps it and removes it at the end."""
    assert (await queue.renew([held.entry_id])).lost == []
    await lose_entry(link, keys, held)
    assert (await queue.renew([held.entry_id])).lost == [held.entry_id]
    await queue.enqueue_again(held)
    new_id = queue.entry_of(held)
    assert new_id != held.entry_id
    assert await link.call("HGET", keys.run(held.job.run_id), "entry") == new_id.encode()
    again = await claimed(other_queue)
    assert (again.entry_id, again.job) == (new_id, held.job)
    assert await begun(other_queue, again) is None
    assert await holders(link, keys) == {new_id.encode(): b"w1"}
    assert await queue.renew([held.entry_id]) == ([], [])
    await queue.finish(held)
    assert await submitter.outstanding() == 0


async def test_a_new_entry_is_known_to_its_own_worker(queue: JobQueue, link: Link, keys: Keys, held: Claim) -> None:
    """The worker of the run gets the new entry under the id that it knows, also after a reconnect, so it is ignored."""
    await lose_entry(link, keys, held)
    await queue.enqueue_again(held)
    assert (await claimed(queue)).entry_id == held.entry_id
    queue._pending_after = "0"
    assert await queue.claim(short_block=True) == []


@pytest.mark.parametrize("lose", [lose_entry, lose_queue])
async def test_the_run_of_a_lost_worker_continues(
    queue: JobQueue,
    other_queue: JobQueue,
    link: Link,
    keys: Keys,
    held: Claim,
    lose: Lose,
) -> None:
    """If the worker of the run is lost later, another one takes the new entry over and begins the next attempt."""
    await lose(link, keys, held)
    await queue.enqueue_again(held)
    await claimed(queue)
    taken = await reclaimed(other_queue, 0.05)
    attempt = await begun(other_queue, taken)
    assert attempt is not None
    assert attempt.attempt == 2
    assert (await queue.renew([held.entry_id])).others == [held.entry_id]


async def test_the_run_is_left_to_its_worker_while_its_entry_is_replaced(
    queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """A worker that gets the new entry before the run has it gives it back, too, and the next renewal completes it."""
    await lose_entry(link, keys, held)
    replacements = queue._replacements
    replacements.unfinished.add(held.entry_id)
    assert await replacements._set_entry(held.job, "")
    new_id = await replacements._enqueue(held.entry_id, held.job, "w1")
    assert await holders(link, keys) == {new_id.encode(): b"w1"}
    assert await begun(other_queue, await claimed(other_queue)) is None
    assert await holders(link, keys) == {new_id.encode(): b"w1"}
    assert (await queue.renew([held.entry_id])).lost == [held.entry_id]
    await queue.enqueue_again(held)
    assert queue.entry_of(held) == new_id
    assert await link.call("HGET", keys.run(held.job.run_id), "entry") == new_id.encode()
    assert await queue.renew([held.entry_id]) == ([], [])


async def test_an_entry_without_a_mark_begins_nothing_while_an_entry_is_replaced(
    submitter: JobSubmitter, queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """A worker that gets another entry of a run that it executes itself begins no second attempt."""
    await lose_entry(link, keys, held)
    assert await queue._replacements._set_entry(held.job, "")
    await link.call_script("readmit", [keys.jobs("q")], "", held.job.encode())
    assert await begun(queue, await claimed(queue)) is None
    await queue.enqueue_again(held)
    assert await queue.renew([held.entry_id]) == ([], [])
    taken = await reclaimed(queue, 0.05)
    assert await begun(queue, taken) is None
    assert await submitter.outstanding() == 1


async def test_a_job_that_was_enqueued_twice_is_removed_once(
    submitter: JobSubmitter, queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """If a reply was lost and the job is there twice, its worker keeps one entry and removes the other."""
    await lose_entry(link, keys, held)
    args = (held.entry_id, held.job.encode(), held.entry_id, GROUP, "w1")
    await link.call_script("readmit", [keys.jobs("q")], *args)
    await queue.enqueue_again(held)
    assert await submitter.outstanding() == 2
    assert [(await claimed(queue)).entry_id for _ in range(2)] == [held.entry_id] * 2
    assert await submitter.outstanding() == 1
    assert await holders(link, keys) == {queue.entry_of(held).encode(): b"w1"}


@pytest.mark.parametrize("lose", [lose_entry, lose_claim, lose_queue])
async def test_a_run_is_handed_over_although_the_broker_lost_its_job(
    queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys, held: Claim, lose: Lose
) -> None:
    """A worker that stops hands over a run whose entry or claim is lost; the next attempt begins at once."""
    await lose(link, keys, held)
    assert await queue.hand_back(held)
    attempt = await begun(other_queue, await claimed(other_queue))
    assert attempt is not None
    assert (attempt.attempt, attempt.hand_backs) == (2, 1)


async def test_a_hand_over_after_a_loss_may_be_sent_twice(
    queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """The second of two equal scripts changes nothing and answers the same."""
    await lose_entry(link, keys, held)
    for _ in range(2):
        assert await queue._replacements._set_entry(held.job, "", leaves=True)
    assert await queue._replacements.hand_over(held.entry_id, held.job)
    attempt = await begun(other_queue, await claimed(other_queue))
    assert attempt is not None
    assert attempt.hand_backs == 1
    assert not await queue._replacements.hand_over(held.entry_id, held.job)


async def test_a_run_that_has_ended_or_has_another_worker_gets_no_entry(
    submitter: JobSubmitter, queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """A worker enqueues no job again if its run has ended, if another worker has it, or if its hash is lost."""
    await lose_entry(link, keys, held)
    run = keys.run(held.job.run_id)
    for field, value in (("worker", "w2"), ("status", "completed")):
        before = await link.call("HGET", run, field)
        await link.call("HSET", run, field, value)
        await queue.enqueue_again(held)
        assert await submitter.outstanding() == 0
        assert await link.call("HGET", run, field) == value.encode()
        await link.call("HSET", run, field, before)
    await link.call("DEL", run)
    await queue.enqueue_again(held)
    assert not await queue.hand_back(held)
    assert await submitter.outstanding() == 0
    assert await RunStore(link, keys).get_info(held.job.run_id) is None
    assert await other_queue.claim(short_block=True) == []


async def test_a_new_entry_is_kept_while_its_replacement_is_open(
    submitter: JobSubmitter, queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """If a second entry is delivered before its worker knows its id, the worker does not take it for a surplus one."""
    await lose_entry(link, keys, held)
    await queue.enqueue_again(held)
    await lose_queue(link, keys, held)
    queue._replacements.unfinished.add(held.entry_id)
    args = (queue.entry_of(held), held.job.encode(), held.entry_id, GROUP, "w1")
    await link.call_script("readmit", [keys.jobs("q")], *args)
    assert (await claimed(queue)).entry_id == held.entry_id
    assert await submitter.outstanding() == 1


async def test_a_job_that_another_worker_enqueued_again_is_not_dropped(
    queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """A worker that still knows the first entry of a run, but has lost the run, gives the job to the run's worker."""
    taken = await reclaimed(other_queue, 0.05)
    other_queue.holds = {taken.entry_id}.__contains__
    assert await begun(other_queue, taken) is not None
    await lose_entry(link, keys, held)
    await other_queue.enqueue_again(taken)
    again = await claimed(queue)
    assert again.entry_id == other_queue.entry_of(taken)
    assert await begun(queue, again) is None
    assert await holders(link, keys) == {again.entry_id.encode(): b"w2"}


async def test_a_replaced_job_is_handed_over_at_once(
    queue: JobQueue, other_queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """A worker that stops leaves a new entry that nobody has read yet to the worker that reads it first."""
    await lose_entry(link, keys, held)
    await queue.enqueue_again(held)
    assert await queue.hand_back(held)
    attempt = await begun(other_queue, await claimed(other_queue))
    assert attempt is not None
    assert (attempt.attempt, attempt.hand_backs) == (2, 1)


async def test_a_run_whose_job_cannot_be_enqueued_again_is_not_handed_over(
    queue: JobQueue, link: Link, keys: Keys, held: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Redis refuses a step, the worker learns that nobody will continue the run, so it ends the run itself."""

    async def refuse(*_args: object, **_options: object) -> bool:
        message = "OOM command not allowed"
        raise BrokerUnavailable(message)

    await lose_entry(link, keys, held)
    for step in ("_enqueue", "_set_entry"):
        monkeypatch.setattr(queue._replacements, step, refuse)
        assert not await queue.hand_back(held)


async def test_a_replaced_job_does_not_count_as_waiting(
    submitter: JobSubmitter, queue: JobQueue, link: Link, keys: Keys, held: Claim
) -> None:
    """The backlog has no waiting job if a worker holds the only entry that the group has not delivered."""
    await lose_entry(link, keys, held)
    await queue.enqueue_again(held)
    assert await submitter.backlog() == Backlog(1, 0, 0.0)


async def test_few_ids_of_entries_are_kept(
    queue: JobQueue, link: Link, keys: Keys, held: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker keeps the ids of a limited number of new entries, also after the ends of their runs."""
    monkeypatch.setattr("agentstream.store.replacements.MAX_ENTRIES", 1)
    await lose_entry(link, keys, held)
    await queue.enqueue_again(held)
    queue.holds = set[str]().__contains__
    await queue.renew([])
    assert queue.entry_of(held) != held.entry_id
    await queue._replacements._enqueue("1-1", job())
    assert queue.entry_of(held) == held.entry_id
