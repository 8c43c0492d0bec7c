"""The metrics of the connections to Redis, on real servers that are lost, replaced and started again."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentstream.protocol.broker_url import show_address
from agentstream.telemetry import names as metric_names
from tests.brokers.cluster import ClusterServers
from tests.brokers.sentinel import SentinelServers
from tests.brokers.server import Server
from tests.faults.clients import AGENT, http_client, request
from tests.faults.faults import Broker, outage
from tests.helpers import TIME_SCALE, TIMEOUT_S
from tests.processes import ROOT, Processes, linux_only
from tests.scrape import Scrape, Scraper, metrics_port

pytestmark = pytest.mark.timeout(120 * TIME_SCALE)
WAIT_S = 3 * TIMEOUT_S


def connections(scrape: Scrape) -> dict[str, float]:
    """Return whether the processes of a port are connected, by the address of the server."""
    names = {metric_names.BROKER_CONNECTED, metric_names.WORKER_CONNECTED}
    return {
        sample.labels["node"]: sample.value
        for family in scrape.families
        for sample in family.samples
        if sample.name in names
    }


class Observed:
    """Two front ends that share a port, and a worker: the counts of the front ends are in files."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.url = ""
        self._scrapers: list[Scraper] = []

    async def start(self) -> None:
        parent = await self._processes.start("frontend", "--processes", "2", AGENTSTREAM_PORT="0")
        self.url = (await parent.until(r"serving on (http://\S+)", WAIT_S))[1]
        await parent.until(rf"(?s)(serving on {re.escape(self.url)}\n.*){{2}}", WAIT_S)
        port, serving = metrics_port()
        await self._processes.worker(AGENT, PYTHONPATH=str(ROOT), **serving)
        self._scrapers = [Scraper(self.url), Scraper.of_port(port)]

    async def show(self, wanted: dict[str, float]) -> None:
        """Wait until the front ends and the worker report these connections, and no others."""
        for scraper in self._scrapers:
            await scraper.until(lambda scrape: connections(scrape) == wanted, WAIT_S)

    async def use(self) -> None:
        """Execute runs of many partitions, so that processes need every primary."""
        async with http_client() as client:
            for _ in range(20):
                assert (await client.post(self.url, request(["answer", "fine"])))[0] == 200


def each(servers: Sequence[Server], value: float = 1) -> dict[str, float]:
    """Return a value for each of these servers."""
    return {show_address(*server.place): value for server in servers}


@linux_only
async def test_the_connection_to_one_server_is_reported(tmp_path: Path) -> None:
    """Processes report 1 for their server, 0 while it is down, and 1 again afterwards."""
    async with Broker(tmp_path, append_only=True) as broker, Processes(broker.url, tmp_path) as processes:
        address = broker.url.partition("//")[2].partition("/")[0].rpartition("@")[2]
        observed = Observed(processes)
        await observed.start()
        await observed.show({address: 1})
        async with outage(broker):
            await observed.show({address: 0})
        await observed.show({address: 1})


@linux_only
async def test_a_lost_primary_is_reported_until_sentinels_replace_it(tmp_path: Path) -> None:
    """With sentinels a dead primary is reported as 0, and after the failover only the new primary is reported."""
    servers = SentinelServers(down_after_ms=round(5000 * TIME_SCALE))  # long enough for two scrapes
    async with servers as sentinels, Processes(sentinels.url, tmp_path) as processes:
        observed = Observed(processes)
        await observed.start()
        primary = await sentinels.primary()
        await observed.show(each([primary]))
        primary.kill()
        await observed.show(each([primary], 0))
        await observed.show(each([await sentinels.wait_failover(primary)]))


@linux_only
async def test_each_primary_of_a_cluster_is_reported(cluster: ClusterServers, tmp_path: Path) -> None:
    """A primary without a replica is reported as 0 while it is dead, and a replaced primary is not reported."""
    async with Processes(cluster.url, tmp_path) as processes:
        observed = Observed(processes)
        await observed.start()
        primaries = await cluster.primaries()
        await observed.show(each(primaries))
        old, lost, _ = primaries
        await cluster.failover(old)
        await observed.use()
        new = await cluster.primaries()
        await observed.show(each(new))
        for node in (*await cluster.replicas_of(lost), lost):
            node.kill()
        await observed.show(each(new) | each([lost], 0))
        await cluster.restart(lost)
        await observed.show(each(new))
