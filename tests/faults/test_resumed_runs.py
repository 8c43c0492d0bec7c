"""Runs of resumable agents: they go on when their worker is killed, frozen or stopped."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.deployment import LEASE_S, Deployment, freeze, kill_worker, terminate
from tests.faults.resumed import AGENTS, GATE, LAST, attempts_of, check_whole, worker_of
from tests.processes import Processes


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_killed_worker_leaves_a_pause_and_no_error(deployment: Deployment, agent: str) -> None:
    """If a worker is killed, another worker continues its run where it stopped, and the client sees a whole answer."""
    first = await worker_of(deployment, "a", agent)
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        second = await worker_of(deployment, "b", agent)
        await kill_worker(first)
        deployment.open_gate(GATE)
        messages = await stream.whole()
        check_whole(messages)
        assert await deployment.replay(stream.run_id) == messages
    assert attempts_of(second) == [GATE + 1]


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_stopped_worker_hands_its_run_over_at_once(deployment: Deployment, agent: str) -> None:
    """A worker that is told to stop hands its run to another worker long before its drain time is over."""
    first = await worker_of(deployment, "a", agent, AGENTSTREAM_DRAIN_TIMEOUT_S="600")
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        await worker_of(deployment, "b", agent)
        assert await terminate(first) == 0
        deployment.open_gate(GATE)
        check_whole(await stream.whole())


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_frozen_worker_adds_nothing_when_it_wakes(deployment: Deployment, agent: str) -> None:
    """If a worker is frozen and its run continues elsewhere, its late events and checkpoints reach nobody."""
    first = await worker_of(deployment, "a", agent)
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        with freeze(first):
            second = await worker_of(deployment, "b", agent)
            await second.until(rf"counts from {GATE + 1}\b")
        deployment.open_gate(GATE)
        check_whole(await stream.whole())


async def test_a_handed_over_run_waits_for_the_next_worker(deployment: Deployment) -> None:
    """If no other worker is there, a run that was handed over waits in the queue until a worker starts."""
    first = await worker_of(deployment, "a")
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        assert await terminate(first) == 0
        await asyncio.sleep(2 * LEASE_S)  # nothing happens in this time
        await worker_of(deployment, "b")
        deployment.open_gate(GATE)
        check_whole(await stream.whole())
