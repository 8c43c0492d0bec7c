"""More requests than the service can handle: new ones get a clear refusal, accepted ones are answered completely."""

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
    """Yield a client session without a limit of connections."""
    async with http_client() as client:
        yield client.session


Answer = tuple[int, str | None, bytes]


async def ask(session: aiohttp.ClientSession, url: str, body: object, key: str = "sk-one") -> Answer:
    """Send a request, and return the status, Retry-After and the body of the answer."""
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        return response.status, response.headers.get("Retry-After"), await response.read()


async def test_overload_refuses_new_runs_and_completes_accepted_ones(
    processes: Processes, session: aiohttp.ClientSession
) -> None:
    """Of 60 requests to a queue of 8, the accepted ones complete, and the others get 429 with Retry-After."""
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


async def test_the_limits_of_a_key_apply_to_all_front_ends_together(
    processes: Processes, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The active runs and the requests a minute of a key count over all front ends, and other keys are not affected."""
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
