"""More requests than can be served: the new ones are turned away in words, the accepted ones are served whole."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.faults.clients import AGENT, http_client, request
from tests.helpers import decode, texts
from tests.processes import Processes


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a limit of its own."""
    async with http_client() as client:
        yield client.session


Answer = tuple[int, str | None, bytes]


async def ask(session: aiohttp.ClientSession, url: str, body: object, key: str = "sk-one") -> Answer:
    """Return status, Retry-After and body of a request."""
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        return response.status, response.headers.get("Retry-After"), await response.read()


async def test_overload_sheds_new_work_and_keeps_accepted_work_going(
    processes: Processes, session: aiohttp.ClientSession
) -> None:
    """Of 60 requests at once to a queue of 8 the accepted ones are answered whole, the others refused with a time."""
    settings = {"AGENTSTREAM_MAX_QUEUED": "8"}
    urls = await asyncio.gather(processes.frontend(**settings), processes.frontend(**settings))
    await processes.worker(AGENT, AGENTSTREAM_CONCURRENCY="2")
    body = request(["say", 30], stream=True)
    answers = await asyncio.gather(*(ask(session, urls[number % 2], body) for number in range(60)))
    statuses = Counter(status for status, _, _ in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 8
    streams = [texts(decode(stream)) for status, _, stream in answers if status == 200]
    assert [len(stream) for stream in streams] == [30] * len(streams)
    assert all(stream == streams[0] for stream in streams)
    for status, retry_after, refusal in answers:
        if status == 429:
            assert b'"code": "queue_full"' in refusal
            assert retry_after is not None
            assert 1 <= int(retry_after) <= 60
    assert (await ask(session, urls[0], body))[0] == 200


async def test_a_key_has_its_share_on_all_front_ends_together(
    processes: Processes, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Active runs and requests a minute of one key count over all front ends; another key is not touched."""
    settings = {
        "AGENTSTREAM_API_KEYS": "sk-one,sk-two",
        "AGENTSTREAM_MAX_RUNS_PER_KEY": "2",
        "AGENTSTREAM_MAX_REQUESTS_PER_MINUTE": "6",
    }
    urls = await asyncio.gather(processes.frontend(**settings), processes.frontend(**settings))
    await processes.worker(AGENT)
    gate = tmp_path / "gate"
    waiting = request(["say", 1], ["gate", str(gate)])
    held = [asyncio.create_task(ask(session, url, {**waiting, "background": True, "stream": False})) for url in urls]
    assert [status for status, _, _ in await asyncio.gather(*held)] == [200, 200]
    for url in urls:
        status, retry_after, refusal = await ask(session, url, request(["say", 1]))
        assert (status, retry_after) == (429, "1")
        assert b"2 active runs" in refusal
    assert (await ask(session, urls[0], request(["say", 1]), "sk-two"))[0] == 200
    gate.touch()
    statuses = []
    for number in range(20):
        status, retry_after, refusal = await ask(session, urls[number % 2], request(["say", 1]))
        statuses.append(status)
        if b"requests this minute" in refusal:
            assert retry_after is not None
            assert int(retry_after) <= 60
            break
    else:
        pytest.fail(f"never limited: {statuses}")
    assert statuses[-1] == 429
