"""The set of parked runs: workers forget no run that waits, or is about to wait."""

import time

import orjson

from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
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


async def test_a_run_that_has_ended_is_forgotten(link: Link, keys: Keys) -> None:
    """A run that was cancelled while it waited leaves the set."""
    assert await looked_at(link, keys, "cancelled") == []
