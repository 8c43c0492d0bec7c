"""A request that is sent twice with one Idempotency-Key runs its agent once, whatever happens in between."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentstream.errors import QueueFull
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.server_link import ServerLink
from agentstream.store.runs import RunStore
from agentstream.store.submission import JobSubmitter
from tests.faults.clients import AGENT, Client, Step, frames, http_client, request, run_id_of
from tests.helpers import TIMEOUT_S, decode, texts
from tests.processes import Processes

SAID = "0 \u00fc\u2028\n1 \u00fc\u2028\n"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client without an API key."""
    async with http_client() as opened:
        yield opened


@pytest.fixture
def key() -> str:
    """Return an Idempotency-Key that no other test uses, because all tests share one broker."""
    return secrets.token_hex(8)


def counted(folder: Path, *steps: Step, **fields: Any) -> dict[str, Any]:
    """Return a request whose agent adds a line to ``folder / "runs"`` each time it is called."""
    return request(["count", str(folder / "runs")], *steps, **fields)


def runs_in(folder: Path) -> int:
    """Return how often the agent was called."""
    return len((folder / "runs").read_text().splitlines())


async def test_a_repeat_attaches_during_the_run_and_replays_after_it(
    processes: Processes, client: Client, tmp_path: Path, key: str
) -> None:
    """A repeated request on another front end, streamed or not, gets the bytes of the first one from the start."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await processes.worker(AGENT)
    gate = tmp_path / "gate"
    body = counted(tmp_path, ["say", 1], ["tool"], ["gate", str(gate)], ["say", 2])
    async with client.streaming(urls[0], body, Idempotency_Key=key) as first:
        begun = await first.until(b"event: tool_call_end\n")
        async with client.streaming(urls[1], body, Idempotency_Key=key) as second:
            again = await second.until(b"event: tool_call_end\n")
            waiting = asyncio.create_task(client.post(urls[1], body, Idempotency_Key=key))
            gate.touch()
            whole = frames(begun + await first.rest())
            assert frames(again + await second.rest()) == whole
        status, completion = await waiting
    for url in urls:
        assert frames(await client.whole(url, body, Idempotency_Key=key)) == whole
        assert await client.post(url, body, Idempotency_Key=key) == (status, completion)
    assert (status, completion["id"]) == (200, run_id_of(whole[0]))
    assert completion["choices"][0]["message"]["content"] == "".join(texts(decode(b"".join(whole))))
    assert runs_in(tmp_path) == 1


async def test_a_repeat_finds_the_run_after_its_client_disconnected(
    processes: Processes, client: Client, tmp_path: Path, key: str
) -> None:
    """A client that was cut before the end gets the whole answer when it repeats the request."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await processes.worker(AGENT)
    gate = tmp_path / "gate"
    body = counted(tmp_path, ["say", 1], ["gate", str(gate)], ["say", 2])
    async with client.streaming(urls[0], body, Idempotency_Key=key) as first:
        begun = frames(await first.until(b'"content":'))
    async with client.streaming(urls[1], body, Idempotency_Key=key) as again:
        start = await again.until(b'"content":')
        gate.touch()
        whole = frames(start + await again.rest())
    assert whole[: len(begun)] == begun
    assert decode(whole[-1]) == [(None, "[DONE]")]
    assert "agent_error" not in decode(whole[-2])[0][1]
    assert runs_in(tmp_path) == 1


async def test_a_repeated_background_request_answers_at_once(
    processes: Processes, client: Client, tmp_path: Path, key: str
) -> None:
    """A repeated background request answers at once with the current state of the run."""
    url = await processes.frontend()
    await processes.worker(AGENT)
    gate = tmp_path / "gate"
    body = counted(tmp_path, ["say", 2], ["gate", str(gate)], background=True)
    _, created = await client.post(url, body, Idempotency_Key=key)
    async with client.streaming(url, run_id=created["id"]) as stream:
        await stream.until(b'"content":"1 ')
        status, repeated = await client.post(url, body, Idempotency_Key=key)
        assert (status, repeated["id"], repeated["status"]) == (200, created["id"], "in_progress")
        gate.touch()
        await stream.rest()
    _, repeated = await client.post(url, body, Idempotency_Key=key)
    assert repeated["status"] == "completed"
    assert repeated["choices"][0]["message"]["content"] == SAID
    assert runs_in(tmp_path) == 1


async def test_a_key_stands_for_one_request(processes: Processes, client: Client, tmp_path: Path, key: str) -> None:
    """Another body with the same key gets 409, and a repeat of a failed run gets the same failure."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await processes.worker(AGENT)
    body = counted(tmp_path, ["say", 2], ["fail", "on purpose"])
    first = await client.post(urls[0], body, Idempotency_Key=key)
    assert first[0] == 500
    for changed in (body | {"model": "m2"}, body | {"temperature": 0.5}, body | {"vendor": 1}, request(["say", 2])):
        for stream in ({}, {"stream": True}):
            status, refused = await client.post(urls[1], changed | stream, Idempotency_Key=key)
            assert (status, refused["error"]["code"]) == (409, "idempotency_key_reused")
            assert refused["error"]["param"] == "Idempotency-Key"
    reordered = dict(reversed(body.items()))
    assert await client.post(urls[1], reordered, Idempotency_Key=key) == first
    assert runs_in(tmp_path) == 1


async def test_keys_are_scoped_to_the_api_key(processes: Processes, client: Client, tmp_path: Path, key: str) -> None:
    """The same Idempotency-Key with two API keys stands for two runs, one for each owner."""
    url = await processes.frontend(AGENTSTREAM_API_KEYS="sk-one,sk-two")
    await processes.worker(AGENT)
    bodies = [counted(tmp_path, ["say", number]) for number in (1, 2)]
    owners = [client.using("sk-one"), client.using("sk-two")]
    answers = [await owner.post(url, body, Idempotency_Key=key) for owner, body in zip(owners, bodies, strict=True)]
    assert [status for status, _ in answers] == [200, 200]
    assert len({answer["id"] for _, answer in answers}) == 2
    for owner, body, answer in zip(owners, bodies, answers, strict=True):
        assert await owner.post(url, body, Idempotency_Key=key) == answer
    assert runs_in(tmp_path) == 2


async def test_bad_keys_are_refused(processes: Processes, client: Client, tmp_path: Path, key: str) -> None:
    """A key that is empty, longer than 255 characters or not printable ASCII gets 400 and runs nothing."""
    url = await processes.frontend()
    await processes.worker(AGENT)
    body = counted(tmp_path, ["say", 2])
    for bad in ("", " ", "x" * 256, "\u00fc", "a\tb", "\u0661", "\U0001f600"):
        status, refused = await client.post(url, body, Idempotency_Key=bad)
        assert (status, refused["error"]["param"]) == (400, "Idempotency-Key"), bad
    assert not (tmp_path / "runs").exists()
    long = key.ljust(254, "k")
    for good in (f"{long}1", f"{long}2", f"{key} !~"):
        assert (await client.post(url, body, Idempotency_Key=good))[0] == 200
    assert runs_in(tmp_path) == 3


async def test_twenty_at_once_run_the_agent_once(
    processes: Processes, client: Client, tmp_path: Path, key: str
) -> None:
    """20 concurrent requests with one key, streamed or not, on two front ends share one run and get one answer."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await asyncio.gather(processes.worker(AGENT), processes.worker(AGENT))
    body = counted(tmp_path, ["say", 2])
    streams, completions = await asyncio.gather(
        asyncio.gather(*(client.whole(urls[n % 2], body, Idempotency_Key=key) for n in range(12))),
        asyncio.gather(*(client.post(urls[n % 2], body, Idempotency_Key=key) for n in range(8))),
    )
    assert len({tuple(frames(stream)) for stream in streams}) == 1
    assert texts(decode(streams[0])) == ["0 \u00fc\u2028\n", "1 \u00fc\u2028\n"]
    run_id = run_id_of(streams[0])
    for status, completion in completions:
        assert (status, completion["id"]) == (200, run_id)
        assert completion["choices"][0]["message"]["content"] == SAID
    assert runs_in(tmp_path) == 1


async def test_a_key_refused_by_a_full_queue_works_later(
    processes: Processes, client: Client, tmp_path: Path, key: str
) -> None:
    """A request that a full queue refused runs once when it is sent again with its key."""
    url = await processes.frontend(AGENTSTREAM_MAX_QUEUED="1")
    _, blocking = await client.post(url, request(["say", 1], background=True))
    body = counted(tmp_path, ["say", 2])
    for stream in ({}, {"stream": True}):
        status, refused = await client.post(url, body | stream, Idempotency_Key=key)
        assert (status, refused["error"]["code"]) == (429, "queue_full")
    await processes.worker(AGENT)
    await client.whole(url, run_id=blocking["id"])
    while (answer := await client.post(url, body, Idempotency_Key=key))[0] == 429:  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # the job is removed right after the last event
    assert answer[1]["choices"][0]["message"]["content"] == SAID
    assert await client.post(url, body, Idempotency_Key=key) == answer
    assert runs_in(tmp_path) == 1


async def test_a_job_submitted_again_to_a_full_queue_stays_known(broker_url: str) -> None:
    """A refused repeat of an admitted job keeps its run known, and a refused first submit leaves nothing."""
    link, keys = ServerLink(Endpoint(broker_url), name="test"), Keys(f"test-{secrets.token_hex(6)}")
    link.open()
    try:
        await link.wait_ready(TIMEOUT_S)
        submitter, runs = JobSubmitter(link, keys, "q", max_queued=1), RunStore(link, keys)
        admitted, refused = (
            Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=2.0, owner="o") for _ in range(2)
        )
        await submitter.submit(admitted, ttl_s=60)
        for job in (admitted, refused):
            with pytest.raises(QueueFull):
                await submitter.submit(job, ttl_s=60)
        assert await runs.get_info(admitted.run_id) is not None
        assert await runs.get_info(refused.run_id) is None
    finally:
        await link.close()


async def test_repeats_refused_by_a_full_queue_keep_the_admitted_run(
    processes: Processes, client: Client, tmp_path: Path, key: str
) -> None:
    """If the first of many concurrent requests fills the queue, the others attach or get 429, and the run stays."""
    url = await processes.frontend(AGENTSTREAM_MAX_QUEUED="1")
    body = counted(tmp_path, ["say", 2], background=True)
    answers = await asyncio.gather(*(client.post(url, body, Idempotency_Key=key) for _ in range(10)))
    assert {status for status, _ in answers} <= {200, 429}
    (run_id,) = {answer["id"] for status, answer in answers if status == 200}
    assert (await client.get(url, run_id))[1]["status"] == "queued"
    await processes.worker(AGENT)
    messages = decode(await client.whole(url, body, Idempotency_Key=key))
    assert "".join(texts(messages)) == SAID
    assert messages[0][1]["id"] == run_id
    assert runs_in(tmp_path) == 1
