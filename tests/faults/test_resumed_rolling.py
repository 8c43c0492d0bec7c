"""A rolling restart of all workers under a hundred runs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.deployment import Deployment, StreamedResponse, terminate
from tests.faults.resumed import GATE, check_whole, worker_of
from tests.helpers import TIMEOUT_S
from tests.processes import Processes

RUNS = 100
LAST = 60
# The runs take as long as the restart: they wait at the gate until it is over. Nothing may wait for the drain timeout.
SETTINGS = {"AGENTSTREAM_CONCURRENCY": str(RUNS), "AGENTSTREAM_DRAIN_TIMEOUT_S": "600", "TEST_TICK_S": "0.1"}


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


@pytest.mark.timeout(12 * TIMEOUT_S)
@pytest.mark.parametrize("agent", ["counting", "counting_in_a_thread"])
async def test_a_rolling_restart_fails_no_run(deployment: Deployment, agent: str) -> None:
    """If all workers are replaced one after another under a hundred runs, each ends soon, and every answer is whole."""
    workers = [await worker_of(deployment, name, agent, **SETTINGS) for name in ("a", "b")]
    async with contextlib.AsyncExitStack() as stack:

        async def begun() -> StreamedResponse:
            stream = await stack.enter_async_context(deployment.stream(f"gate to {LAST}"))
            await stream.until('"1 "')
            return stream

        streams = await asyncio.gather(*(begun() for _ in range(RUNS)))
        seconds = []
        for name in ("c", "d", "e", "f"):  # each worker is replaced twice
            workers.append(await worker_of(deployment, name, agent, **SETTINGS))
            started_s = time.monotonic()
            assert await terminate(workers.pop(0)) == 0
            seconds.append(time.monotonic() - started_s)
        print(f"the slowest worker was gone after {max(seconds):.2f} s")  # noqa: T201 -- pytest -s shows it
        deployment.open_gate(GATE)
        for stream in streams:
            check_whole(await stream.whole(), LAST)
            assert int(await deployment.field_of(stream.run_id, "attempt") or 0) >= 2
            assert await deployment.field_of(stream.run_id, "status") == "completed"
