"""A listing of open runs fails with one error, and leaves no task or error that nobody awaits."""

import asyncio
import gc

import pytest

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.keys import Keys
from agentstream.store.admin import client
from agentstream.store.admin.open_runs import OpenRunReader
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.scripts import SCRIPTS
from tests.fake_broker import Command, FakeBroker, answer_normally

REFUSED = b"-NOPERM this user has no permissions\r\n"
TWO_RUNS = b"*3\r\n:1\r\n:2\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"


async def listing_fails(peer: FakeBroker, error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    async with OpenRunReader(Endpoint(peer.url), Keys()) as reader:
        before = asyncio.all_tasks()
        with pytest.raises(error):
            await reader.open_runs(["default"])
        await asyncio.sleep(0)  # cancelled tasks end
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - before == set()
    gc.collect()  # asyncio logs an error that nobody has retrieved when its future is collected
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_refused_details_raise_one_error(peer: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """If Redis refuses the details of several runs, the listing raises one error, and asyncio logs no other."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"HMGET":
            return REFUSED
        if words[0] in {b"ZRANGE", b"ZCARD"}:
            return b"*0\r\n" if words[0] == b"ZRANGE" else b":0\r\n"
        return TWO_RUNS if SCRIPTS["open_runs"].sha in words else answer_normally(words, connection)

    peer.answer = answer
    await listing_fails(peer, BusError, caplog)


async def test_a_timeout_leaves_no_task(
    peer: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If Redis does not answer in time, the listing ends with all commands that it has started."""
    monkeypatch.setattr(client, "COMMAND_TIMEOUT_S", 0.2)

    def answer(words: Command, connection: int) -> bytes | None:
        silent = words[0] in {b"ZRANGE", b"ZCARD"} or SCRIPTS["open_runs"].sha in words
        return None if silent else answer_normally(words, connection)

    peer.answer = answer
    await listing_fails(peer, BrokerUnavailable, caplog)
