"""Connections of redis-py clients are closed, also if the task that closes them is cancelled."""

import asyncio

import pytest

from agentstream.store.connection.endpoint import Endpoint, close_client
from agentstream.store.connection.topology import read_topology
from tests.fake_broker import FakeBroker, in_time


async def test_a_client_is_closed_although_its_task_is_cancelled(peer: FakeBroker) -> None:
    """A cancel right after the close has begun leaves no connection open."""
    client = Endpoint(f"{peer.url}?protocol=2").redis()
    await client.execute_command("PING")  # type: ignore[no-untyped-call]
    assert peer.open_connections == 1
    closing = asyncio.create_task(close_client(client))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await peer.until(lambda: not peer.open_connections)


async def test_a_cancelled_question_about_the_topology_waits_for_all_servers(peer: FakeBroker) -> None:
    """Whoever cancels it may end the event loop afterwards, so nothing of it goes on."""
    asked, cleaned_up = asyncio.Event(), asyncio.Event()

    async def ask(*_words: str) -> object:
        asked.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.05)
            cleaned_up.set()

    peer.answer = lambda words, _connection: None if words[0] == b"CLUSTER" else b"+OK\r\n"
    address = ("127.0.0.1", peer.port)
    endpoint = Endpoint(f"redis+cluster://127.0.0.1:{peer.port}")
    reading = asyncio.create_task(read_topology(endpoint, {("127.0.0.1", 1): ask}, [address]))
    async with in_time():
        await asked.wait()
        await peer.until(lambda: peer.count(b"CLUSTER", 1) == 1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert cleaned_up.is_set()
