"""Streams of numbered words that stay open during a fault, and new requests that are sent meanwhile."""

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aiohttp

from tests.brokers.waiting import until
from tests.faults.chaos_agents import Plan
from tests.faults.checking_client import CheckingClient, StreamRecord
from tests.helpers import TIME_SCALE

PAUSE_MS: Final = 100  # between two words of a stream
NEW_REQUEST_EVERY_S: Final = 0.2
WORDS_OF_NEW_REQUEST: Final = 3
ENDLESS: Final = 10**6  # until the agent says how many words it has written

_TOTAL: Final = re.compile(r"of (\d+) ")


@dataclass
class NumberedStream(StreamRecord):
    """The stream of the agent in endless_agent.py."""

    began_s: float = field(default_factory=time.monotonic)
    wait_s: float = 0.0  # from the first try of the request to the first word
    pause_s: float = 0.0  # the longest time between two words

    def _content(self, content: str, *, failed: bool) -> None:
        if match := _TOTAL.fullmatch(content):
            self.plan = replace(self.plan, words=int(match[1]))
            return
        before_s, words = self.progress_s, self.words
        StreamRecord._content(self, content, failed=failed)
        if words:
            self.pause_s = max(self.pause_s, self.progress_s - before_s)
        elif self.words:
            self.wait_s = self.progress_s - self.began_s


class OpenStreams:
    """Streams that are open until ``finish``, and new requests all the time."""

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str], folder: Path, name: str) -> None:
        """Prepare. The agents stop when the file ``name`` is in ``folder``, which they know."""
        self._session = session
        self._urls = urls
        self._folder = folder
        self._name = name
        self._long: dict[asyncio.Task[StreamRecord], NumberedStream] = {}
        self._new: dict[asyncio.Task[StreamRecord], NumberedStream] = {}
        self._asking: asyncio.Task[None] | None = None
        self.refused: Counter[int] = Counter()

    @property
    def long(self) -> list[NumberedStream]:
        """The streams that are open during the whole fault."""
        return list(self._long.values())

    @property
    def new(self) -> list[NumberedStream]:
        """The streams that were requested during the fault."""
        return list(self._new.values())

    @property
    def unfinished(self) -> int:
        """The number of streams that have not ended."""
        return sum(not task.done() for task in (*self._long, *self._new))

    async def start(self, count: int) -> None:
        """Open this many streams, wait until all have some words, and begin with the new requests."""
        for number in range(count):
            self._follow(self._long, Plan(words=ENDLESS, pause_ms=PAUSE_MS, key=self._name), number)

        async def all_flow() -> bool:
            return all(stream.words > 2 for stream in self.long)

        await until(all_flow, f"all {count} streams flow", 60 * TIME_SCALE)
        for stream in self.long:
            stream.pause_s = 0.0
        self._asking = asyncio.create_task(self._ask(), name="new requests")

    async def finish(self, settle_s: float) -> None:
        """Let the agents stop, and wait until all streams have ended, for this time at most."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking
        (self._folder / self._name).touch()
        await asyncio.wait((*self._long, *self._new), timeout=settle_s)

    async def close(self) -> None:
        """Give up the streams that have not ended."""
        tasks = (*self._long, *self._new)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def flow_on(self, timeout_s: float) -> int:
        """Wait until every open stream has received another word. Return how many have not within the time."""
        before = {id(stream): stream.words for stream in self.long}

        async def all_flow() -> bool:
            return all(stream.done or stream.words > before[id(stream)] for stream in self.long)

        with contextlib.suppress(AssertionError):
            await until(all_flow, "all streams flow again", timeout_s)
        return sum(not stream.done and stream.words == before[id(stream)] for stream in self.long)

    async def _ask(self) -> None:
        number = 0
        while True:
            self._follow(self._new, Plan(words=WORDS_OF_NEW_REQUEST, pause_ms=PAUSE_MS), number)
            number += 1
            await asyncio.sleep(NEW_REQUEST_EVERY_S * TIME_SCALE)

    def _follow(self, group: dict[asyncio.Task[StreamRecord], NumberedStream], plan: Plan, number: int) -> None:
        stream = NumberedStream(plan)
        client = CheckingClient(self._session, self._urls, first=number)
        client.rejected, client.obeys_retry_after = self.refused, True
        group[asyncio.create_task(client.follow(stream), name="client")] = stream
