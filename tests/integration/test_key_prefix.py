"""Deployments with different key prefixes on one real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.cli.conftest import agentstream
from tests.deploy.servers import SERVERS, run_server
from tests.faults.clients import AGENT, Client, http_client, request
from tests.faults.resume_agents import cancelled_at
from tests.helpers import TIMEOUT_S
from tests.processes import ROOT, Processes

WORKER = {"PYTHONPATH": str(ROOT), "AGENTSTREAM_LEASE_S": "0.6", "AGENTSTREAM_DRAIN_TIMEOUT_S": "0.2"}
LIMITS = {"AGENTSTREAM_MAX_RUNS_PER_KEY": "20", "AGENTSTREAM_MAX_REQUESTS_PER_MINUTE": "100"}
# The default user may use only names of this prefix. ``watching`` is for the test.
USERS = """\
user default on nopass resetkeys resetchannels ~team-a:* &team-a:* +@all
user watching on nopass allcommands allkeys allchannels
"""


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a server whose default user may use only names that begin with ``team-a:``."""
    users = tmp_path / "users.acl"
    users.write_text(USERS, encoding="utf-8")
    async with run_server(SERVERS[0], tmp_path, "--aclfile", str(users)) as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client with an API key."""
    async with http_client() as anonymous:
        yield anonymous.using("key")


@pytest.mark.parametrize("prefix", ["team-a", "team-a:"])
async def test_every_name_begins_with_the_prefix(port: int, client: Client, tmp_path: Path, prefix: str) -> None:
    """A deployment with a prefix uses no key and no channel without it, whatever clients and operators do."""
    redis_url = f"redis://127.0.0.1:{port}/0"
    settings = {"AGENTSTREAM_KEY_PREFIX": prefix, "REDIS_URL": redis_url}
    gates = [tmp_path / f"gate{number}" for number in range(2)]
    async with Processes(redis_url, tmp_path) as processes:
        url = await processes.frontend(AGENTSTREAM_API_KEYS="key", **settings, **LIMITS)
        first = await processes.worker(AGENT, **settings, **WORKER)
        once, again = [await client.post(url, request(["answer", "fine"]), Idempotency_Key="one") for _ in range(2)]
        assert once == again
        async with client.streaming(url, request(["say", 1], ["gate", str(gates[0])])) as stream:
            await stream.until(b'"content":"0 ')
        async with asyncio.timeout(TIMEOUT_S):  # the front end sends the cancel over the worker's control channel
            while not cancelled_at(gates[0]).exists():  # noqa: ASYNC110 -- another process makes it
                await asyncio.sleep(0.02)
        named = {**settings, "AGENTSTREAM_QUEUE": processes.queue}
        async with client.streaming(url, request(["gate", str(gates[1])], ["say", 1])) as stream:
            run_id = (await stream.until(b'"role"')).partition(b'"id":"')[2].partition(b'"')[0].decode()
            assert run_id in (await agentstream("ps", **named)).out
            report = await agentstream("doctor", "--url", url, "--api-key", "key", "--json", **named)
            assert f'"workers of {processes.queue}", "level": "ok"' in report.out
            assert '"stream", "level": "ok"' in report.out, report
            await first.stop()  # it hands the run back
            await processes.worker(AGENT, **settings, **WORKER)
            ended = await agentstream("cancel", run_id, "--api-key", "key", AGENTSTREAM_URL=url, **named)
            assert ended.code == 0, ended
    async with Redis(port=port, username="watching", password="any", protocol=3) as redis:  # noqa: S106
        refused = [f"{entry['reason']} {entry['object']}" for entry in await redis.acl_log()]
        names = [name.decode() async for name in redis.scan_iter(count=1000)]
    assert refused == []
    assert names
    assert [name for name in names if not name.startswith("team-a:") or name.startswith("team-a::")] == []


async def test_deployments_with_different_prefixes_share_nothing(
    broker_url: str, client: Client, tmp_path: Path
) -> None:
    """Two deployments with the same queue and API key share neither runs nor idempotency keys, queues or workers."""
    async with AsyncExitStack() as stack:
        processes = await stack.enter_async_context(Processes(broker_url, tmp_path))
        urls = []
        for prefix in ("test-key-prefix-a", "test-key-prefix-b"):
            settings = {"AGENTSTREAM_KEY_PREFIX": prefix}
            urls.append(await processes.frontend(AGENTSTREAM_API_KEYS="key", **settings))
            if len(urls) == 1:
                await processes.worker(AGENT, **settings, **WORKER)
        body = request(["answer", "fine"], background=True)
        answers = [await client.post(url, body, Idempotency_Key="one") for url in urls]
        ids = [answer["id"] for _, answer in answers]
        assert ids[0] != ids[1]
        assert [(await client.get(url, run_id))[0] for url, run_id in zip(urls, ids, strict=True)] == [200, 200]
        assert [(await client.get(url, run_id))[0] for url, run_id in zip(urls, reversed(ids), strict=True)] == [
            404
        ] * 2
        ready = [(await client.call("GET", f"{url}/health/ready"))[1]["workers"] for url in urls]
        assert ready == [1, 0]
