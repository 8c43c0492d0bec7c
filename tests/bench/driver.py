"""Publishes to many runs at once, like many workers: it claims and begins jobs and writes tokens on command.

It uses the store as a worker does, but runs no agents. Its own cost is not measured.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import uvloop

from agentstream.protocol.events import encode_batch, encode_event
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits, RunPublisher
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.server_link import ServerLink
from agentstream.store.queue import Claim, JobQueue
from tests.bench.loadgen import IDLE_S
from tests.bench.machine import reply
from tests.bench.tokens import WORD, Load, stamp, write_all

CLAIMED_AT_ONCE = 100
LIMITS = LogLimits(open_ttl_s=600, closed_ttl_s=60, max_bytes=4 << 20)


class Driver:
    """Runs many attempts at once."""

    def __init__(self, url: str, queue: str) -> None:
        """Prepare without connecting."""
        endpoint, keys = Endpoint(url), Keys()
        self._link = ServerLink(endpoint, name="bench-driver")
        self._bus = Bus(self._link, keys)
        self._queue = JobQueue(endpoint, self._link, keys, queue, worker_id="bench-driver")
        self._keys = keys
        self._publishers: list[RunPublisher] = []
        self._channels: list[str] = []

    async def open(self) -> None:
        """Connect."""
        self._link.open()
        await self._link.wait_ready(10)
        await self._queue.open()

    async def claim(self, count: int) -> None:
        """Claim and begin ``count`` more jobs."""
        for start in range(0, count, CLAIMED_AT_ONCE):
            claims = [await self._claim() for _ in range(min(CLAIMED_AT_ONCE, count - start))]
            await asyncio.gather(*map(self._begin, claims))

    async def _claim(self) -> Claim:
        while not (claims := await self._queue.claim()):
            pass
        return claims[0]

    async def _begin(self, claim: Claim) -> None:
        begun = await self._queue.begin(claim, ttl_s=600)
        assert begun is not None
        publisher = self._bus.publisher(claim.job.run_id, begun.attempt, LIMITS, print, begun.first_batch)
        self._publishers.append(publisher)
        self._channels.append(self._keys.events(claim.job.run_id))
        await self._queue.finish(claim)

    async def write(self, load: Load) -> None:
        """Write a load.

        Without ``per_s``, each round is stored before the next begins, so that bursts do not merge into one batch.
        """
        publishers = self._publishers

        def write(stream: int, _: int) -> None:
            for _ in range(load.burst):
                publishers[stream].put("text", stamp() if load.stamped else WORD)

        rounds = 1 if load.per_s is None else load.rounds
        for _ in range(load.rounds // rounds):
            await write_all(load.model_copy(update={"rounds": rounds}), len(publishers), write)
            for publisher in publishers:
                await publisher.flush()

    async def publish(self, load: Load) -> None:
        """Send as many messages as ``write``, but with PUBLISH only: the minimum work of the broker.

        Front ends ignore these messages, because their seq is old.
        """
        payload = encode_batch(1, 1, [encode_event("text", WORD)] * load.burst)
        for _ in range(load.rounds):
            await asyncio.gather(*(self._link.call("PUBLISH", channel, payload) for channel in self._channels))

    async def ping(self, count: int) -> list[float]:
        """Return the round-trip times of PING on an idle machine, in us."""
        took_us = []
        for _ in range(count):
            began_s = time.perf_counter()
            await self._link.call("PING")
            took_us.append((time.perf_counter() - began_s) * 1e6)
            await asyncio.sleep(IDLE_S)
        return took_us

    async def do(self, command: str, values: dict[str, Any]) -> dict[str, Any]:
        """Execute a command and return its answer."""
        began_s, busy_s = time.monotonic(), time.process_time()
        if command == "claim":
            await self.claim(**values)
        elif command == "write":
            await self.write(Load(**values))
        elif command == "publish":
            await self.publish(Load(**values))
        else:
            return {"took_us": await self.ping(**values)}
        return {"took_s": time.monotonic() - began_s, "cpu_s": time.process_time() - busy_s}


async def main() -> None:
    """Execute commands until the input ends."""
    driver = Driver(os.environ["REDIS_URL"], os.environ["AGENTSTREAM_QUEUE"])
    await driver.open()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    reply(ready=True)
    while line := await reader.readline():
        values = json.loads(line)
        reply(**await driver.do(values.pop("do"), values))


if __name__ == "__main__":
    uvloop.run(main())
