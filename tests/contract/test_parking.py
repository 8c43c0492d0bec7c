"""The set of parked runs: workers forget no run that waits, or is about to wait."""

import time

import orjson

from agentstream.protocol.events import decode_batch
from agentstream.protocol.interrupts import MAX_TIMEOUT_S, Interrupt
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits
from agentstream.store.connection.link import Link
from agentstream.store.interrupts import InterruptStore
from agentstream.worker.parking import Parking

QUEUE = "q"


async def looked_at(link: Link, keys: Keys, status: str) -> list[bytes]:
    """Let a worker look at a run whose question has expired; return the runs that are due later."""
    run_id, now_s = new_run_id(), int(time.time())
    asked = [Interrupt("question-1", "question", None, None, now_s - 5).as_json()]
    await link.call("HSET", keys.run(run_id), "status", status, "interrupts", orjson.dumps(asked))
    await link.call("ZADD", keys.parked(QUEUE), now_s - 5, run_id)
    await Parking(InterruptStore(link, keys), QUEUE, open_ttl_s=60, closed_ttl_s=60).expire()
    later: list[bytes] = await link.call("ZRANGEBYSCORE", keys.parked(QUEUE), now_s, "+inf")
    assert len(later) == await link.call("ZCARD", keys.parked(QUEUE))
    return later


async def test_a_run_that_is_about_to_be_parked_is_not_forgotten(link: Link, keys: Keys) -> None:
    """If a question expires just before its run is parked, a worker looks at the run again."""
    assert len(await looked_at(link, keys, "running")) == 1


async def test_the_set_of_parked_runs_has_a_ttl(link: Link, keys: Keys) -> None:
    """The set outlives the longest time limit of an interrupt, and is not kept for ever."""
    await InterruptStore(link, keys).remember(QUEUE, new_run_id(), int(time.time()) + 60)
    assert 0 < await link.call("TTL", keys.parked(QUEUE)) - MAX_TIMEOUT_S <= 24 * 3600


async def test_a_run_that_has_ended_is_forgotten(link: Link, keys: Keys) -> None:
    """A run that was cancelled while it waited leaves the set."""
    assert await looked_at(link, keys, "cancelled") == []


async def test_a_run_that_was_parked_again_is_not_forgotten(link: Link, keys: Keys) -> None:
    """A process that forgets a run too late does not remove the time limit of its next question."""
    store, run_id, now_s = InterruptStore(link, keys), new_run_id(), int(time.time())
    await store.remember(QUEUE, run_id, now_s + 100)
    await store.forget(QUEUE, run_id, until=now_s)
    await store.forget(QUEUE, run_id, since=now_s + 10, until=now_s + 10)
    assert await store.expired(QUEUE, now_s + 100) == [run_id]
    await store.forget(QUEUE, run_id, since=now_s + 100, until=now_s + 100)
    assert await store.expired(QUEUE, now_s + 100) == []


async def test_a_parked_run_without_an_open_question_goes_on(link: Link, keys: Keys) -> None:
    """If every question of a parked run has an answer, a worker enqueues the run."""
    run_id, now_s = new_run_id(), int(time.time())
    job = Job(run_id=run_id, request={"model": "m"}, created=now_s, start_by=now_s + 60)
    asked = [Interrupt("question-1", "question", None, None, now_s + 60).as_json()]
    fields = ("status", "requires_action", "interrupts", orjson.dumps(asked), "job", job.encode())
    await link.call("HSET", keys.run(run_id), *fields, "answers", b'{"question-1":{"answer":1}}')
    await link.call("XADD", keys.events(run_id), "1-1", "b", b'{"v":1,"a":1,"s":1,"e":["x"]}')
    await link.call("ZADD", keys.parked(QUEUE), now_s, run_id)
    await Parking(InterruptStore(link, keys), QUEUE, open_ttl_s=60, closed_ttl_s=60).expire()
    assert await link.call("HGET", keys.run(run_id), "status") == b"queued"
    assert await link.call("XLEN", keys.jobs(QUEUE)) == 1
    assert await link.call("ZCARD", keys.parked(QUEUE)) == 0


async def test_a_run_that_is_cancelled_while_it_is_being_parked_ends(link: Link, keys: Keys) -> None:
    """A cancel that comes too late for the worker ends the run in the step that would park it."""
    run_id = new_run_id()
    await link.call("HSET", keys.run(run_id), "status", "running", "cancel", 1, "state", "{}", "interrupts", "[]")
    limits = LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=1 << 20)
    writer = Bus(link, keys).publisher(run_id, 1, limits, on_lost=lambda _: None)
    writer.put_parked({"total_tokens": 3}, b"job", 1, 100)
    await writer.flush()
    [(_, entry)] = await link.call("XRANGE", keys.events(run_id), "-", "+")
    [event] = decode_batch(entry[1]).events()
    assert (event.type, event.data) == ("run_cancelled", {"usage": {"total_tokens": 3}})
    stored = await link.call("HMGET", keys.run(run_id), "status", "state", "job", "interrupts")
    assert stored == [b"cancelled", b"", b"", b""]


async def test_all_runs_that_are_due_are_looked_at(link: Link, keys: Keys) -> None:
    """If the questions of very many runs expire together, the last run does not wait for a later round."""
    due = [item for _ in range(250) for item in (1, new_run_id())]
    await link.call("ZADD", keys.parked(QUEUE), *due)
    await Parking(InterruptStore(link, keys), QUEUE, open_ttl_s=60, closed_ttl_s=60).expire()
    assert await link.call("ZCARD", keys.parked(QUEUE)) == 0
