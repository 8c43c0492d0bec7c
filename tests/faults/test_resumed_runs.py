"""Runs of resumable agents: they go on when their worker is killed, frozen or stopped."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.deployment import (
    LEASE_S,
    Deployment,
    Message,
    error_of,
    freeze,
    kill_worker,
    said,
    terminate,
)
from tests.processes import Process, Processes

AGENTS = ["counting", "counting_in_a_thread"]
LAST = 80


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


async def worker_of(deployment: Deployment, name: str, agent: str = "counting", **settings: str) -> Process:
    """Start a worker with a counting agent."""
    return await deployment.worker(name, f"counting_agents:{agent}", **settings)


def check_whole(messages: list[Message], last: int = LAST) -> None:
    """Check that the stream has every number once, in order, and ends well."""
    assert error_of(messages) is None
    assert said(messages) == [f"{number} " for number in range(1, last + 1)]


def attempts_of(worker: Process) -> list[int]:
    """Return the numbers from which the worker's agents counted."""
    return [int(number) for number in re.findall(r"note \w+ counts from (\d+)", worker.output)]


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_killed_worker_leaves_a_pause_and_no_error(deployment: Deployment, agent: str) -> None:
    """If a worker is killed, another worker continues its run where it stopped, and the client sees a whole answer."""
    first = await worker_of(deployment, "a", agent)
    async with deployment.stream(f"count to {LAST}") as stream:
        await stream.until('"12 "')
        second = await worker_of(deployment, "b", agent)
        await kill_worker(first)
        messages = await stream.whole()
        check_whole(messages)
        assert await deployment.replay(stream.run_id) == messages
    assert attempts_of(second)[0] > 12


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_stopped_worker_hands_its_run_over_at_once(deployment: Deployment, agent: str) -> None:
    """A worker that is told to stop hands its run to another worker long before its drain time is over."""
    first = await worker_of(deployment, "a", agent, AGENTSTREAM_DRAIN_TIMEOUT_S="600")
    async with deployment.stream(f"count to {LAST}") as stream:
        await stream.until('"12 "')
        await worker_of(deployment, "b", agent)
        assert await terminate(first) == 0
        check_whole(await stream.whole())


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_frozen_worker_adds_nothing_when_it_wakes(deployment: Deployment, agent: str) -> None:
    """If a worker is frozen and its run continues elsewhere, its late events and checkpoints reach nobody."""
    first = await worker_of(deployment, "a", agent)
    async with deployment.stream(f"count to {LAST}") as stream:
        await stream.until('"12 "')
        with freeze(first):
            await worker_of(deployment, "b", agent)
            await stream.until('"40 "')
        check_whole(await stream.whole())


async def test_a_handed_over_run_waits_for_the_next_worker(deployment: Deployment) -> None:
    """If no other worker is there, a run that was handed over waits in the queue until a worker starts."""
    first = await worker_of(deployment, "a")
    async with deployment.stream(f"count to {LAST}") as stream:
        await stream.until('"12 "')
        assert await terminate(first) == 0
        await asyncio.sleep(2 * LEASE_S)  # nothing happens in this time
        await worker_of(deployment, "b")
        check_whole(await stream.whole())
