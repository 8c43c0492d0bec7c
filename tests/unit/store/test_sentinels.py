"""Asking sentinels for the primary, with fake sentinels."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import pytest

from agentstream.protocol.broker_url import Address
from agentstream.store.connection import endpoint as endpoint_module
from agentstream.store.connection import sentinels
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.sentinels import find_primary, until_primary_changes
from tests.fake_broker import OK, Command, FakeBroker, fake_broker, in_time
from tests.helpers import TIMEOUT_S

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


def named(primary: Address) -> bytes:
    """Return the reply of a sentinel that names this primary."""
    host, port = primary
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%d\r\n" % (len(host), host.encode(), len(str(port)), port)


class Sentinels:
    """Three fake sentinels. Each names the primary in ``primaries``, or does not answer if that is None."""

    def __init__(self, fakes: list[FakeBroker], *primaries: Address | None) -> None:
        """Let the fakes answer."""
        self.primaries = list(primaries)
        self.fakes = fakes
        places = ",".join(f"127.0.0.1:{fake.port}" for fake in fakes)
        self.endpoint = Endpoint(f"redis+sentinel://{places}/agentstream")
        for number, fake in enumerate(fakes):
            fake.answer = partial(self._answer, number)

    def _answer(self, number: int, words: Command, _connection: int) -> bytes | None:
        primary = self.primaries[number]
        if words[0] != b"SENTINEL":
            return OK
        return None if primary is None else named(primary)


@pytest.fixture
async def fakes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[FakeBroker]]:
    """Run three fake sentinels. A wait for a silent one takes longer than the test may."""
    monkeypatch.setattr(endpoint_module, "SENTINEL_TIMEOUT_S", 10 * TIMEOUT_S)
    monkeypatch.setattr(sentinels, "SENTINEL_INTERVAL_S", 0.01)
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(fake_broker()) for _ in range(3)]


async def test_a_silent_sentinel_is_not_waited_for_if_the_others_agree(fakes: list[FakeBroker]) -> None:
    """Two of three sentinels that agree are enough to connect, and to leave a replaced primary."""
    asked = Sentinels(fakes, OLD, OLD, None)
    async with in_time():
        assert await find_primary(asked.endpoint) == OLD
        changed = asyncio.create_task(until_primary_changes(asked.endpoint, OLD))
        await fakes[0].until(lambda: fakes[0].count(b"SENTINEL", 2) > 2)
        assert not changed.done()
        asked.primaries[:2] = NEW, NEW
        await changed


async def test_slow_sentinels_that_agree_are_enough(fakes: list[FakeBroker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three sentinels that agree are enough, however long each of them takes."""
    monkeypatch.setattr(sentinels, "LATE_ANSWER_S", 0.01)
    asked = Sentinels(fakes, None, None, None)
    async with in_time():
        finding = asyncio.create_task(find_primary(asked.endpoint))
        for fake in fakes[:2]:
            await fake.until(lambda fake=fake: fake.count(b"SENTINEL", 1) == 1)  # type: ignore[misc]
            await asyncio.sleep(0.05)
            assert not finding.done()
            fake.send(named(OLD))
        assert await finding == OLD


async def test_a_late_sentinel_decides_if_the_others_disagree(
    fakes: list[FakeBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a majority the late answer is waited for."""
    monkeypatch.setattr(sentinels, "LATE_ANSWER_S", 0.01)
    asked = Sentinels(fakes, OLD, NEW, None)
    async with in_time():
        finding = asyncio.create_task(find_primary(asked.endpoint))
        await fakes[2].until(lambda: fakes[2].count(b"SENTINEL", 1) == 1)
        await asyncio.sleep(0.1)
        assert not finding.done()
        fakes[2].send(named(NEW))
        assert await finding == NEW
