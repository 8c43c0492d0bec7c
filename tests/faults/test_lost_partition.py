"""A cluster that has lost a primary and has no replica for it."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from agentstream.protocol.keys import Keys
from tests.brokers.cluster import ClusterServers
from tests.helpers import TIME_SCALE, TIMEOUT_S
from tests.processes import Processes

pytestmark = pytest.mark.timeout(120 * TIME_SCALE)
REQUESTS = 30  # a third of them need the lost primary


async def test_a_front_end_that_lost_its_queue_is_ready_for_others(tmp_path: Path) -> None:
    """If the primary with the keys of the queue is lost, the front end stays ready, and says what is unknown."""
    async with ClusterServers(replicas=0) as cluster, Processes(cluster.url, tmp_path) as processes:
        url = await processes.frontend()
        (await cluster.primary_of(Keys().jobs(processes.queue))).kill()
        timeout = aiohttp.ClientTimeout(total=2 * TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.get(f"{url}/health/ready") as ready:
                body = await ready.json()
                assert (ready.status, body["status"]) == (200, "degraded")
                assert body["queues"][processes.queue]["queued"] == -1
            async with session.get(f"{url}/metrics") as metrics:
                assert f'agentstream_queued_jobs{{queue="{processes.queue}"}} -1.0' in await metrics.text()


async def test_only_requests_that_need_the_lost_primary_are_refused(tmp_path: Path) -> None:
    """Requests whose partition has no primary get 503 with Retry-After, others go on, and the front end stays ready."""
    async with ClusterServers(replicas=0) as cluster, Processes(cluster.url, tmp_path) as processes:
        url = await processes.frontend()
        await processes.worker("whoami")
        queue = await cluster.primary_of(Keys().jobs(processes.queue))
        next(server for server in await cluster.primaries() if server is not queue).kill()
        timeout = aiohttp.ClientTimeout(total=2 * TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask() -> int:
                body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    answer = await response.json()
                    if response.status == 503:
                        assert int(response.headers["Retry-After"]) > 0
                        assert answer["error"]["code"] == "broker_unavailable"
                    return response.status

            statuses = await asyncio.gather(*(ask() for _ in range(REQUESTS)))
            assert set(statuses) == {200, 503}
            assert statuses.count(200) > statuses.count(503) / 2
            async with session.get(f"{url}/health/ready") as ready:
                assert ready.status == 200, await ready.text()
