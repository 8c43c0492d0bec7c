"""A failover loses the last writes of a primary: every run is still answered once and whole."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.cluster import ClusterServers
from tests.brokers.sentinel import SentinelServers
from tests.faults.clients import AGENT, Client, http_client, request
from tests.faults.faults import until
from tests.faults.lost_writes import losing_writes, queue_at, starved
from tests.helpers import TIME_SCALE, decode, texts
from tests.processes import ROOT, Processes

RUNS = 6
SAID = "0 \u00fc\u2028\n1 \u00fc\u2028\n"
PATIENCE_S = 60 * TIME_SCALE

pytestmark = pytest.mark.timeout(180 * TIME_SCALE)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client without an API key."""
    async with http_client() as opened:
        yield opened


def counted(folder: Path, *steps: Any, **fields: Any) -> dict[str, Any]:
    """Return a request whose agent adds the id of its run to a file each time it is called."""
    return request(["count", str(folder / "runs")], *steps, **fields)


def calls(folder: Path) -> Counter[str]:
    """Return how often the agent was called for each run."""
    path = folder / "runs"
    return Counter(path.read_text().split()) if path.exists() else Counter()


async def text_of(client: Client, url: str, body: dict[str, Any]) -> str:
    """Return the text of a stream that ends properly."""
    messages = decode(await client.whole(url, body))
    assert messages[-1] == (None, "[DONE]")
    assert "agent_error" not in messages[-2][1], messages[-2]
    return "".join(texts(messages))


async def completed(client: Client, url: str, run_id: str) -> None:
    """Return when the run has ended as completed, with its whole text."""

    async def ended() -> bool:
        status, body = await client.get(url, run_id)
        assert status == 200, body
        assert body.get("status") in {"queued", "in_progress", "completed"}, body
        return bool(body["status"] == "completed" and body["choices"][0]["message"]["content"] == SAID)

    await until(ended, PATIENCE_S)


async def emptied(servers: ClusterServers | SentinelServers, queue: str) -> None:
    """Return when the queue has no entries."""

    async def empty() -> bool:
        primary = await servers.primary_of(f"agentstream:jobs:{queue}")
        return int(await primary.call("XLEN", f"agentstream:jobs:{queue}")) == 0

    await until(empty, PATIENCE_S)


@pytest.mark.parametrize("lost", ["queue", "runs"])
async def test_jobs_that_wait_are_enqueued_again(
    cluster: ClusterServers, client: Client, tmp_path: Path, lost: str
) -> None:
    """Jobs are enqueued again if the queue lost them or their hashes, also those of background runs, and run once."""
    first, second, _ = await cluster.primaries()
    async with Processes(cluster.url, tmp_path) as processes:
        processes.queue = await queue_at(cluster, first if lost == "queue" else second)
        url = await processes.frontend()
        body = counted(tmp_path, ["say", 2])
        async with losing_writes(cluster, first):
            streams = [asyncio.create_task(text_of(client, url, body)) for _ in range(RUNS)]
            background = [(await client.post(url, body | {"background": True}))[1]["id"] for _ in range(RUNS)]
            primary = await cluster.primary_of(f"agentstream:jobs:{processes.queue}")

            async def admitted() -> bool:
                return int(await primary.call("XLEN", f"agentstream:jobs:{processes.queue}")) == 2 * RUNS

            await until(admitted)
        await processes.worker(AGENT, PYTHONPATH=str(ROOT))
        assert await asyncio.gather(*streams) == [SAID] * RUNS
        for run_id in background:
            await completed(client, url, run_id)
        assert sorted(calls(tmp_path).values()) == [1] * 2 * RUNS
        await emptied(cluster, processes.queue)


async def test_runs_that_have_just_ended_stay_ended(cluster: ClusterServers, client: Client, tmp_path: Path) -> None:
    """Runs whose end was lost are whole for later readers, their jobs are gone, and they do not run again."""
    primary = (await cluster.primaries())[0]
    async with Processes(cluster.url, tmp_path) as processes:
        processes.queue = await queue_at(cluster, primary)
        url = await processes.frontend()
        await asyncio.gather(*(processes.worker(AGENT, PYTHONPATH=str(ROOT)) for _ in range(2)))
        body = counted(tmp_path, ["say", 2])
        async with losing_writes(cluster, primary):
            answers = await asyncio.gather(*(client.post(url, body) for _ in range(2 * RUNS)))
        run_ids = [answer["id"] for status, answer in answers if status == 200]
        assert len(run_ids) == 2 * RUNS
        later = await processes.frontend()
        for run_id in run_ids:
            await completed_later(client, later, run_id)
        await emptied(cluster, processes.queue)
        assert sorted(calls(tmp_path).values()) == [1] * 2 * RUNS


async def completed_later(client: Client, url: str, run_id: str) -> None:
    """Return when the run is stored whole; its worker may need a moment."""

    async def stored() -> bool:
        status, body = await client.get(url, run_id)
        return bool(status == 200 and body.get("status") == "completed")

    await until(stored, PATIENCE_S)
    messages = decode(await client.whole(url, run_id=run_id))
    assert "".join(texts(messages)) == SAID


async def test_claims_and_begins_that_were_lost(cluster: ClusterServers, client: Client, tmp_path: Path) -> None:
    """Silent runs whose claim and begin were lost stay with their workers, although the queue delivers them again."""
    primary = (await cluster.primaries())[0]
    gate = tmp_path / "gate"
    async with Processes(cluster.url, tmp_path) as processes:
        processes.queue = await queue_at(cluster, primary)
        url = await processes.frontend()
        body = counted(tmp_path, ["say", 1], ["gate", str(gate)], ["say", 2])
        jobs = f"agentstream:jobs:{processes.queue}"
        await (await processes.worker(AGENT, PYTHONPATH=str(ROOT))).stop()  # it has created the group of the queue
        streams = [asyncio.create_task(text_of(client, url, body)) for _ in range(2 * RUNS)]

        async def admitted() -> bool:
            return int(await primary.call("XLEN", jobs)) == 2 * RUNS

        await until(admitted)
        async with primary.client() as redis:
            assert await redis.wait(1, 10_000) == 1
        async with losing_writes(cluster, primary):
            settings = {"PYTHONPATH": str(ROOT), "AGENTSTREAM_CONCURRENCY": str(RUNS)}
            workers = [await processes.worker(AGENT, **settings) for _ in range(2)]

            async def begun() -> bool:
                return len(calls(tmp_path)) == 2 * RUNS

            await until(begun)
            workers.append(await processes.worker(AGENT, **settings))  # the only one with free slots

        async def given_back() -> bool:
            return any("giving the job back" in worker.output for worker in workers)

        await until(given_back, PATIENCE_S)
        gate.touch()
        assert await asyncio.gather(*streams) == ["0 \u00fc\u2028\n" + SAID] * 2 * RUNS
        await emptied(cluster, processes.queue)
        assert sorted(calls(tmp_path).values()) == [1] * 2 * RUNS, [worker.output for worker in workers]


async def test_a_repeated_request_finds_its_run(sentinels: SentinelServers, client: Client, tmp_path: Path) -> None:
    """A request with an Idempotency-Key that is repeated after the failover gets the same answer, from one run."""
    key = secrets.token_hex(8)
    async with Processes(sentinels.url, tmp_path) as processes:
        url = await processes.frontend()
        await processes.worker(AGENT, PYTHONPATH=str(ROOT))
        body = counted(tmp_path, ["say", 2])
        async with losing_writes(sentinels, await sentinels.primary()):
            answer = await client.post(url, body, Idempotency_Key=key)
            assert answer[0] == 200
        await completed_later(client, url, answer[1]["id"])

        async def registered() -> bool:
            primary = await sentinels.primary()
            return len(await primary.call("KEYS", "agentstream:idempotency:*")) == 1

        await until(registered, PATIENCE_S)
        assert await client.post(url, body, Idempotency_Key=key) == answer
        assert sorted(calls(tmp_path).values()) == [1]


async def test_admission_waits_for_replicas(sentinels: SentinelServers, client: Client, tmp_path: Path) -> None:
    """With AGENTSTREAM_ADMISSION_REPLICAS a request is answered with 503 while no replica follows, and it is undone."""
    gate = tmp_path / "gate"
    async with Processes(sentinels.url, tmp_path) as processes:
        url = await processes.frontend(AGENTSTREAM_ADMISSION_REPLICAS="1")
        await processes.worker(AGENT, PYTHONPATH=str(ROOT))
        assert (await client.post(url, counted(tmp_path, ["say", 2])))[0] == 200
        async with starved(sentinels, await sentinels.primary()):
            for fields in ({}, {"background": True}):
                status, refused = await client.post(url, counted(tmp_path, ["gate", str(gate)], **fields))
                assert (status, refused["error"]["code"]) == (503, "broker_unavailable")
                assert "0 replicas" in refused["error"]["message"]
            await emptied(sentinels, processes.queue)
        await sentinels.wait_ok()
        assert (await client.post(url, counted(tmp_path, ["say", 2])))[0] == 200
