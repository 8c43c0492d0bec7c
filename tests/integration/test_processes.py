"""The option ``--processes``: a parent supervises several front ends on one port, or several workers."""

import asyncio
import os
import re
import signal
import socket
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import TIMEOUT_S, texts
from tests.integration.conftest import Client
from tests.processes import Process, Processes, ended, linux_only

# On other systems the kernel may not spread connections, and the children of a killed parent stay.
pytestmark = linux_only
# Three processes start at the same time, on a machine that may have only two cores.
START_S = 3 * TIMEOUT_S
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def pids(process: Process) -> list[int]:
    """Return the process ids of the children that the parent has printed, in order."""
    return [int(pid) for pid in re.findall(r"(?m)^(?:frontend|worker) \d +pid (\d+)", process.output)]


async def front_ends(processes: Processes, count: int, **settings: str) -> tuple[Process, str]:
    """Start a front end of several processes; return the parent and the URL once all of them serve."""
    parent = await processes.start("frontend", "--processes", str(count), AGENTSTREAM_PORT="0", **settings)
    url = (await parent.until(r"serving on (http://\S+)", START_S))[1]
    await parent.until(rf"(?s)(serving on {url}\n.*){{{count}}}", START_S)
    assert len(pids(parent)) == count
    return parent, url


async def connect(url: str) -> Connection:
    """Return a connection on which one request has been answered."""
    connection = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    connection[1].write(LIVE)
    await answer(connection[0])
    return connection


async def answer(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        assert b" 200 OK\r\n" in await reader.readuntil(b"\r\n")
        await reader.readuntil(b'"ok"}')


async def live_requests(client: Client, url: str) -> float:
    """Return the number of requests for /health/live that all processes together have counted."""
    async with client.session.get(f"{url}/metrics") as response:
        families = list(text_string_to_metric_families(await response.text()))
    assert {"agentstream_open_runs", "agentstream_workers_alive"} <= {family.name for family in families}
    return sum(
        sample.value for family in families for sample in family.samples if sample.labels.get("route") == "/health/live"
    )


async def test_front_ends_share_a_port_and_survive_the_loss_of_one(processes: Processes, client: Client) -> None:
    """If one of several front ends is killed, the others serve, a new one starts, and the metrics keep their counts."""
    parent, url = await front_ends(processes, 3)
    first = pids(parent)
    connections = [await connect(url) for _ in range(60)]
    os.kill(first[0], signal.SIGKILL)
    await parent.until(rf"frontend 1 \(pid {first[0]}\) ended with code -9; starting it again")
    later = [await connect(url) for _ in range(20)]  # before the new process serves
    lost = 0
    for reader, writer in connections:
        writer.write(LIVE)
        try:
            await answer(reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            lost += 1
    assert 0 < lost < len(connections)
    await parent.until(rf"(?s)(serving on {url}\n.*){{4}}", START_S)
    assert len(set(pids(parent)) - set(first)) == 1
    answered = len(connections) + len(connections) - lost + len(later)
    assert [await live_requests(client, url) for _ in range(10)] == [answered] * 10  # the same from every process
    for _, writer in connections + later:
        writer.transport.abort()


async def test_all_front_ends_drain_when_the_parent_gets_sigterm(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    """After SIGTERM all processes refuse new connections and finish their streams, and the exit code is 0."""
    parent, url = await front_ends(processes, 2, TMPDIR=str(tmp_path))
    worker = await processes.worker("gated", GATE=str(gate := tmp_path / "gate"))
    streams = [asyncio.create_task(client.stream(url, f"{number}")) for number in range(8)]
    await worker.until(r"(?s)(gated run.*){8}")
    parent.send_signal(signal.SIGTERM)
    await parent.until(r"(?s)(draining: .*){2}")
    assert sum(map(int, re.findall(r"draining: (\d+) open runs", parent.output))) == len(streams)
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.stream(url, "too late")
    gate.touch()
    for number, stream in enumerate(streams):
        assert "".join(texts(await stream)) == f"{number}"
    assert await parent.ended() == 0
    for pid in pids(parent):
        await ended(pid)
    assert os.listdir(tmp_path) == ["gate"]  # noqa: PTH208 -- a small local folder does not block


async def test_front_ends_can_be_replaced_one_by_one(processes: Processes, client: Client, tmp_path: Path) -> None:
    """A process that gets SIGTERM finishes its streams while the others serve, and then a new process replaces it."""
    parent, url = await front_ends(processes, 2)
    worker = await processes.worker("gated", GATE=str(gate := tmp_path / "gate"))
    streams = [asyncio.create_task(client.stream(url, f"{number}")) for number in range(12)]
    await worker.until(r"(?s)(gated run.*){12}")
    first = pids(parent)
    os.kill(first[0], signal.SIGTERM)
    draining = await parent.until(r"frontend 1\[.*draining: (\d+) open runs")
    assert 0 < int(draining[1]) < len(streams)
    for connection in [await connect(url) for _ in range(10)]:
        connection[1].transport.abort()
    gate.touch()
    for number, stream in enumerate(streams):
        assert "".join(texts(await stream)) == f"{number}"
    await parent.until(rf"frontend 1 \(pid {first[0]}\) ended with code 0; starting it again")
    await parent.until(rf"(?s)(serving on {url}\n.*){{3}}", START_S)


async def test_workers_are_several_processes_and_end_with_their_parent(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    """Each worker process runs its own jobs, and no worker process survives a SIGKILL of the parent."""
    url = await processes.frontend()
    parent = await processes.start(
        "worker",
        "--processes",
        "2",
        "--concurrency",
        "1",
        AGENTSTREAM_AGENT="agents:gated",
        GATE=str(tmp_path / "gate"),
    )
    streams = [asyncio.create_task(client.stream(url, "go")) for _ in range(2)]
    await parent.until(r"(?s)(gated run.*){2}", START_S)
    children = pids(parent)
    assert {int(pid) for pid in re.findall(r"gated run in (\d+)", parent.output)} == set(children)
    assert parent.pid not in children
    parent.send_signal(signal.SIGKILL)
    await parent.ended()
    for pid in children:
        await ended(pid)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


@pytest.mark.parametrize(
    ("command", "settings", "reason"),
    [
        ("worker", {"AGENTSTREAM_AGENT": "agents:no_such_agent"}, "has no attribute 'no_such_agent'"),
        ("frontend", {"REDIS_URL": ""}, "REDIS_URL is not set"),
        ("frontend", {"AGENTSTREAM_PROCESSES": "0"}, "AGENTSTREAM_PROCESSES='0'"),
    ],
)
async def test_refused_settings_end_all_processes(
    processes: Processes, command: str, settings: dict[str, str], reason: str
) -> None:
    """If one process refuses its settings, all processes end, with the reason and exit code 2."""
    process = await processes.start(command, **{"AGENTSTREAM_PROCESSES": "2", "AGENTSTREAM_PORT": "0", **settings})
    assert await process.ended(START_S) == 2
    assert reason in process.output
    assert "Traceback" not in process.output
    for pid in pids(process):
        await ended(pid)


async def test_a_port_that_is_already_shared_is_refused(processes: Processes) -> None:
    """A front end does not start on a port that another server shares, so it takes none of its connections."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = str(other.getsockname()[1])
        process = await processes.start("frontend", "--processes", "2", "--port", port)
        assert await process.ended(START_S) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in process.output
