"""A broker that accepts no writes: another one was promoted, or its memory is full."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import AGENT, Client, http_client, request
from tests.faults.faults import Broker, SwitchableProxy, frozen, full_memory, until
from tests.faults.test_broker_trouble import LONG, scene_on
from tests.helpers import TIME_SCALE
from tests.ports import free_port
from tests.processes import ROOT, Processes

READONLY = "READONLY You can't write against a read only replica"
OOM = "OOM command not allowed when used memory > 'maxmemory'"
OK = (200, {"status": "ok", "redis": "ok"})

pytestmark = pytest.mark.timeout(120 * TIME_SCALE)


@pytest.fixture
async def primary(tmp_path: Path) -> AsyncIterator[Broker]:
    """Run a broker."""
    async with Broker(tmp_path, append_only=True) as started:
        yield started


@pytest.fixture
async def replica(tmp_path: Path, primary: Broker) -> AsyncIterator[Broker]:
    """Run a replica that has all data of the primary."""
    async with Broker(tmp_path, append_only=True, replica_of=primary) as started:

        async def in_step() -> bool:
            return bool((await started.admin.info("replication"))["master_link_status"] == "up")

        await until(in_step)
        yield started


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client."""
    async with http_client() as started:
        yield started


class Health:
    """The ready answers of a front end and of a worker."""

    def __init__(self, client: Client, url: str, worker_port: int) -> None:
        self._client = client
        self.url = url
        self._worker = f"http://127.0.0.1:{worker_port}"

    async def both(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the status and the fields that both have."""
        urls = (self.url, self._worker)
        answers = await asyncio.gather(*(self._client.call("GET", f"{url}/health/ready") for url in urls))
        return [(status, {name: body[name] for name in ("status", "redis")}) for status, body in answers]

    async def are(self, *wanted: tuple[int, dict[str, Any]]) -> None:
        """Return when both answers are these. Raises TimeoutError."""

        async def holds() -> bool:
            return await self.both() == list(wanted)

        await until(holds)


@asynccontextmanager
async def service(client: Client, url: str, folder: Path) -> AsyncIterator[Health]:
    """Run a front end and a worker with a health port."""
    async with Processes(url, folder) as processes:
        frontend = await processes.frontend()
        port = free_port()
        await processes.worker(AGENT, PYTHONPATH=str(ROOT), AGENTSTREAM_METRICS_PORT=str(port))
        yield Health(client, frontend, port)


def refused(words: str) -> tuple[int, dict[str, Any]]:
    """Return a ready answer that has these words of the broker."""
    return 503, {"status": "unavailable", "redis": words}


@pytest.mark.parametrize("query", ["", "?protocol=2"])
async def test_a_promoted_replica_is_used_at_once(
    primary: Broker, replica: Broker, client: Client, tmp_path: Path, query: str
) -> None:
    """If another broker is promoted behind the same address, open connections move there, and requests are answered."""
    async with SwitchableProxy(primary) as switch, service(client, switch.url + query, tmp_path) as health:
        assert (await client.post(health.url, request(["answer", "fine"])))[0] == 200
        await replica.admin.replicaof("NO", "ONE")
        switch.switch_to(replica, cut=False)
        await primary.admin.replicaof("127.0.0.1", replica.port)
        for _ in range(2):

            async def answered() -> bool:
                return (await client.post(health.url, request(["answer", "fine"])))[0] == 200

            await until(answered)
        await health.are(OK, OK)
        info = await replica.admin.client_list()
        assert len([entry for entry in info if entry["name"].startswith("agentstream-")]) >= 3
        assert [entry for entry in await primary.admin.client_list() if entry["name"].startswith("agentstream-")] == []


async def test_streams_go_on_at_a_promoted_replica(primary: Broker, replica: Broker, tmp_path: Path) -> None:
    """Streams that are open when another broker is promoted go on there, and no word is lost or repeated."""
    async with SwitchableProxy(primary) as switch, scene_on(switch.url, tmp_path) as deployment:
        async with deployment.streams(LONG) as streams:
            await streams.all_said(10)
            await replica.admin.replicaof("NO", "ONE")
            switch.switch_to(replica, cut=False)
            await primary.admin.replicaof("127.0.0.1", replica.port)
        streams.assert_complete()


@pytest.mark.parametrize("query", ["", "?protocol=2"])
async def test_nothing_is_ready_while_there_are_only_replicas(
    primary: Broker, client: Client, tmp_path: Path, query: str
) -> None:
    """While the broker is a replica, both processes are not ready and requests get 503, all with the broker's words."""
    async with service(client, primary.url + query, tmp_path) as health:
        assert await health.both() == [OK, OK]
        await primary.admin.replicaof("127.0.0.1", free_port())
        await health.are(refused(READONLY), refused(READONLY))
        for body in (request(["answer", "fine"]), request(["answer", "fine"], background=True)):
            status, answer = await client.post(health.url, body)
            assert (status, answer["error"]["code"]) == (503, "broker_unavailable")
            assert READONLY in answer["error"]["message"]
        await primary.admin.replicaof("NO", "ONE")
        await health.are(OK, OK)
        assert (await client.post(health.url, request(["answer", "fine"])))[0] == 200


async def test_nothing_is_ready_while_memory_is_full(primary: Broker, client: Client, tmp_path: Path) -> None:
    """While the memory is full, both processes are not ready and requests get 503, all with the broker's words."""
    async with service(client, primary.url, tmp_path) as health:
        async with full_memory(primary):
            assert await health.both() == [refused(OOM), refused(OOM)]
            status, answer = await client.post(health.url, request(["answer", "fine"]))
            assert (status, answer["error"]["code"]) == (503, "broker_unavailable")
            assert OOM in answer["error"]["message"]
        assert await health.both() == [OK, OK]
        assert (await client.post(health.url, request(["answer", "fine"])))[0] == 200


@pytest.mark.parametrize("command", ["frontend", "worker"])
async def test_no_process_starts_on_a_replica(primary: Broker, tmp_path: Path, command: str) -> None:
    """A process whose broker stays a replica ends, with the broker's words and the setting to change."""
    await primary.admin.replicaof("127.0.0.1", free_port())
    async with Processes(primary.url, tmp_path) as processes:
        process = await processes.start(command, AGENTSTREAM_BROKER_WAIT_S="1.2", AGENTSTREAM_PORT="0")
        assert await process.ended() != 0
        assert READONLY in process.output
        assert "REDIS_URL must lead to the primary" in process.output


async def test_a_hanging_broker_bounds_ready(primary: Broker, client: Client, tmp_path: Path) -> None:
    """While the broker hangs, ready answers 503 after a bounded time, and after that it is ready again."""
    async with service(client, primary.url, tmp_path) as health:
        with frozen(primary.pid):
            await health.are(refused("does not answer"), refused("does not answer"))
        await health.are(OK, OK)
