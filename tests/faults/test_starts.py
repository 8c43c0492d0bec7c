"""Workers that start while Redis accepts connections but refuses their commands for now."""

import contextlib
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from agentstream.processes.runtime import EXIT_UNREACHABLE
from tests.brokers.cluster import ClusterServers
from tests.faults.clients import AGENT, http_client, request
from tests.faults.faults import Broker, full_memory, until
from tests.helpers import TIME_SCALE
from tests.processes import ROOT, START_S, Process, Processes

pytestmark = pytest.mark.timeout(90 * TIME_SCALE)
WAIT_S = 5.0


class Refusals:
    """A broker that refuses all commands for a queue, with ``words``, while ``refusing`` is entered."""

    def __init__(
        self, words: str, refusing: AbstractAsyncContextManager[None], servers: Sequence[Callable[..., Awaitable[Any]]]
    ) -> None:
        """``servers`` send a command to one server each."""
        self.words = words
        self.refusing = refusing
        self._servers = servers

    async def have_come(self) -> bool:
        """Return whether a server has refused to create the queue."""
        stats = [str(await call("INFO", "commandstats")) for call in self._servers]
        return any(re.search(r"xgroup\|create.*?(rejected|failed)_calls['\"]?[=:] ?[1-9]", text) for text in stats)


@contextlib.asynccontextmanager
async def full_server(folder: Path) -> AsyncIterator[tuple[str, Refusals]]:
    """Provide one server, which refuses writes while its memory is full, and its URL."""
    async with Broker(folder, append_only=False) as broker:
        words = "OOM command not allowed when used memory > 'maxmemory'"
        yield broker.url, Refusals(words, full_memory(broker), [broker.admin.execute_command])


@contextlib.asynccontextmanager
async def joining_cluster(_folder: Path) -> AsyncIterator[tuple[str, Refusals]]:
    """Provide a cluster, whose servers refuse commands while one of them misses a slot, and its URL."""
    async with ClusterServers(replicas=0) as servers:
        nodes = await servers.primaries()

        @contextlib.asynccontextmanager
        async def missing_slots() -> AsyncIterator[None]:
            slots = {node: first for first, _, place in await servers.ranges() for node in nodes if node.place == place}
            for node, slot in slots.items():
                await node.call("CONFIG", "SET", "cluster-require-full-coverage", "yes")
                await node.call("CLUSTER", "DELSLOTS", slot)
            yield
            for node, slot in slots.items():
                await node.call("CLUSTER", "ADDSLOTS", slot)

        yield servers.url, Refusals("CLUSTERDOWN The cluster is down", missing_slots(), [node.call for node in nodes])


BROKERS = pytest.mark.parametrize("broker", [full_server, joining_cluster])
MakeBroker = Callable[[Path], AbstractAsyncContextManager[tuple[str, Refusals]]]


async def begin_worker(processes: Processes, **settings: str) -> Process:
    """Start a worker, and do not wait until it takes jobs."""
    return await processes.start("worker", AGENTSTREAM_AGENT=AGENT, PYTHONPATH=str(ROOT), **settings)


@BROKERS
async def test_a_worker_waits_while_its_commands_are_refused(broker: MakeBroker, tmp_path: Path) -> None:
    """A worker that Redis refuses at its start waits, and takes jobs as soon as Redis accepts them."""
    async with broker(tmp_path) as (url, refusals), Processes(url, tmp_path) as processes, http_client() as client:
        async with refusals.refusing:
            worker = await begin_worker(processes)
            await until(refusals.have_come, START_S)
            assert "takes jobs of queue" not in worker.output
            await worker.until(f"Redis refuses commands for now.*{re.escape(refusals.words)}")
        await worker.until("takes jobs of queue")
        frontend = await processes.frontend()
        assert (await client.post(frontend, request(["answer", "fine"])))[0] == 200


@BROKERS
async def test_a_worker_that_is_refused_for_too_long_says_why(broker: MakeBroker, tmp_path: Path) -> None:
    """A worker whose Redis goes on refusing prints its words, and ends with the exit code of an unreachable Redis."""
    async with broker(tmp_path) as (url, refusals), Processes(url, tmp_path) as processes, refusals.refusing:
        worker = await begin_worker(processes, AGENTSTREAM_BROKER_WAIT_S=str(WAIT_S))
        assert await worker.ended(START_S) == EXIT_UNREACHABLE
        assert refusals.words in worker.output
        assert "Traceback" not in worker.output


@BROKERS
async def test_a_worker_that_is_refused_stops_at_once(broker: MakeBroker, tmp_path: Path) -> None:
    """SIGTERM ends a worker that waits until Redis accepts its commands, with exit code 0 and without errors."""
    async with broker(tmp_path) as (url, refusals), Processes(url, tmp_path) as processes, refusals.refusing:
        worker = await begin_worker(processes, AGENTSTREAM_BROKER_WAIT_S="3600")
        await until(refusals.have_come, START_S)
        worker.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert not re.search(r"ERROR|Traceback|never awaited", worker.output)
