"""Stop signals: to a parent alone, to all its processes at once, repeated ones, and a second ctrl-C."""

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers import TIMEOUT_S, texts
from tests.integration.conftest import Client, Stream
from tests.ports import free_port
from tests.processes import Process, Processes, ended, linux_only

# Children end with their parent only on Linux.
pytestmark = linux_only
# Up to five processes start at the same time, on a machine that may have only two cores.
START_S = 3 * TIMEOUT_S
# The time that a slow supervisor takes to signal all processes.
SUPERVISOR_S = 0.2


class Stopped:
    """A service whose agent waits for the file ``gate``, and that has begun runs."""

    def __init__(self, process: Process, gate: Path, streams: list[asyncio.Task[Stream]]) -> None:
        self.process = process
        self.pids = {name: int(pid) for name, pid in re.findall(r"(?m)^(\S.*?) +pid (\d+)", process.output)}
        self._gate = gate
        self._streams = streams

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the service, to the parent last."""
        self.signal_children(number)
        with contextlib.suppress(ProcessLookupError):  # it has already ended
            self.process.send_signal(number)

    def signal_children(self, number: signal.Signals) -> None:
        """Send a signal to every process but the parent."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def answers(self) -> list[str]:
        """Open the gate and return the texts of all answers."""
        self._gate.touch()
        return ["".join(texts(await stream)) for stream in self._streams]

    async def ended(self) -> int:
        """Return the exit code of the parent after all processes have ended."""
        code = await self.process.ended(START_S)
        for pid in self.pids.values():
            await ended(pid)
        return code


async def started(command: str, processes: Processes, client: Client, folder: Path, *, runs: int = 2) -> Stopped:
    """Start ``up``, or several workers or front ends, and return it when ``runs`` requests wait for the gate."""
    gate = folder / "gate"
    temporary = folder / "temporary"
    temporary.mkdir()
    settings = {
        "AGENTSTREAM_PORT": "0",
        "AGENTSTREAM_WORKERS": "2",
        "AGENTSTREAM_CONCURRENCY": "1",
        "AGENTSTREAM_AGENT": "agents:gated",
        "GATE": str(gate),
        "TMPDIR": str(temporary),
    }
    several = [] if command == "up" else ["--processes", "2"]
    service = await processes.start(command, *several, **settings, **({"REDIS_URL": ""} if command == "up" else {}))
    if command == "worker":
        url = await processes.frontend()
        working = service
    elif command == "frontend":
        url = (await service.until(r"serving on (http://\S+)", START_S))[1]
        await service.until(r"(?s)(serving on .*){2}", START_S)
        working = await processes.worker("gated", GATE=str(gate), AGENTSTREAM_CONCURRENCY="2")
    else:
        url = (await service.until(r"serving +(http://\S+) .*\ntry .*\n", START_S))[1]
        working = service
    streams = [asyncio.create_task(client.stream(url, f"{number}")) for number in range(runs)]
    await working.until(r"(?s)(gated run.*){2}", START_S)
    if runs > 2:  # the rest waits in the queue
        async with asyncio.timeout(START_S):
            while f"agentstream_open_runs {runs}.0" not in await _metrics(client, url):  # noqa: ASYNC110 -- another process
                await asyncio.sleep(0.02)
    return Stopped(service, gate, streams)


async def _metrics(client: Client, url: str) -> str:
    async with client.session.get(f"{url}/metrics") as response:
        return await response.text()


@pytest.mark.parametrize("command", ["worker", "frontend", "up"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
async def test_a_signal_to_all_processes_drains(
    processes: Processes, client: Client, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """A signal to all processes at once drains as a signal to the parent alone: no run and no stream is lost."""
    service = await started(command, processes, client, tmp_path)
    service.signal_all(number)
    await service.process.until(r"stopping")
    await service.process.until(r"draining: [1-9]")
    assert await service.answers() == ["0", "1"]
    assert await service.ended() == 0
    assert "Traceback" not in service.process.output
    assert os.listdir(tmp_path / "temporary") == []  # noqa: PTH208 -- a small local folder does not block


@pytest.mark.parametrize("command", ["worker", "frontend", "up"])
async def test_a_repeated_sigterm_changes_nothing(
    processes: Processes, client: Client, tmp_path: Path, command: str
) -> None:
    """Every further SIGTERM to all processes leaves the drain alone."""
    service = await started(command, processes, client, tmp_path)
    for _ in range(3):
        service.signal_all(signal.SIGTERM)
    await service.process.until(r"draining: [1-9]")
    service.signal_all(signal.SIGTERM)
    assert await service.answers() == ["0", "1"]
    assert await service.ended() == 0


@pytest.mark.parametrize("everybody", [True, False], ids=["all processes", "the parent alone"])
async def test_up_ends_in_order(processes: Processes, client: Client, tmp_path: Path, everybody: bool) -> None:
    """The workers of ``up`` take queued jobs until the front end has drained, and the broker ends last."""
    service = await started("up", processes, client, tmp_path, runs=3)
    if everybody:
        service.signal_children(signal.SIGTERM)
        await asyncio.sleep(SUPERVISOR_S)
    service.process.send_signal(signal.SIGTERM)
    await service.process.until(r"draining: 3 open runs")
    os.kill(service.pids["broker"], 0)
    assert await service.answers() == ["0", "1", "2"]
    assert await service.ended() == 0
    output = service.process.output
    assert "ended with code" not in output
    assert output.index("draining: 3 open runs") < output.rindex("gated run")


@pytest.mark.parametrize("command", ["worker", "frontend", "up"])
async def test_a_second_ctrl_c_ends_everything_at_once(
    processes: Processes, client: Client, tmp_path: Path, command: str
) -> None:
    """A second ctrl-C waits for no run, leaves no process and no file, and prints neither warnings nor errors."""
    service = await started(command, processes, client, tmp_path)
    service.process.send_signal(signal.SIGINT)
    await service.process.until(r"stopping .*20 s.*a second ctrl-C")
    await service.process.until(r"draining: [1-9]")
    service.process.send_signal(signal.SIGINT)
    assert await service.ended() == 130
    assert not re.search(r"Aborted|Traceback|Warning|WARNING|never awaited", service.process.output)
    assert os.listdir(tmp_path / "temporary") == []  # noqa: PTH208 -- a small local folder does not block
    for stream in service._streams:
        stream.cancel()
    await asyncio.gather(*service._streams, return_exceptions=True)


@pytest.mark.parametrize("command", ["worker", "frontend"])
async def test_a_repeated_sigterm_leaves_a_single_process_alone(
    processes: Processes, client: Client, tmp_path: Path, command: str
) -> None:
    """Neither a repeated SIGTERM nor a first ctrl-C after it interrupts the drain of a worker or front end."""
    gate = tmp_path / "gate"
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    worker = await processes.worker("gated", GATE=str(gate))
    process = worker if command == "worker" else frontend
    stream = asyncio.create_task(client.stream(url, "go"))
    await worker.until(r"gated run")
    process.send_signal(signal.SIGTERM)
    await process.until(r"draining: 1")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    gate.touch()
    assert "".join(texts(await stream)) == "go"
    assert await process.ended() == 0


@pytest.mark.parametrize("command", ["worker", "frontend"])
async def test_a_second_ctrl_c_ends_a_single_process(
    processes: Processes, client: Client, tmp_path: Path, command: str
) -> None:
    """A second ctrl-C ends a worker or front end at once, with exit code 130 and without a traceback."""
    frontend = await processes.start("frontend", AGENTSTREAM_PORT="0")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    worker = await processes.worker("gated", GATE=str(tmp_path / "gate"))
    process = worker if command == "worker" else frontend
    stream = asyncio.create_task(client.stream(url, "go"))
    await worker.until(r"gated run")
    process.send_signal(signal.SIGINT)
    await process.until(r"a second ctrl-C ends at once")
    await process.until(r"draining: 1")
    process.send_signal(signal.SIGINT)
    assert await process.ended() == 130
    assert not re.search(r"Aborted|Traceback|never awaited", process.output)
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)


@pytest.mark.parametrize("command", ["worker", "frontend", "up"])
async def test_a_process_that_waits_for_redis_stops_at_once(processes: Processes, command: str) -> None:
    """SIGTERM ends a process that waits for Redis long before the wait is over, with exit code 0 and without errors."""
    url = f"redis://127.0.0.1:{free_port()}"
    process = await processes.start(command, REDIS_URL=url, AGENTSTREAM_PORT="0", AGENTSTREAM_BROKER_WAIT_S="3600")
    await process.until(r"cannot connect to the broker", START_S)
    process.send_signal(signal.SIGTERM)
    assert await process.ended(START_S) == 0
    assert not re.search(r"ERROR|Traceback|never awaited", process.output)


async def test_a_child_that_is_stopped_alone_is_replaced(processes: Processes) -> None:
    """A single child that gets SIGTERM alone is replaced, and its parent keeps running."""
    parent = await processes.start("worker", "--processes", "2")
    await parent.until(r"(?s)(takes jobs of queue.*){2}", START_S)
    pid = int((await parent.until(r"worker 1 +pid (\d+)"))[1])
    os.kill(pid, signal.SIGTERM)
    await parent.until(rf"worker 1 \(pid {pid}\) ended with code 0; starting it again")
    await parent.until(r"(?s)(takes jobs of queue.*){3}", START_S)
