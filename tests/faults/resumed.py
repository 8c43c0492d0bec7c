"""Helpers for the tests of resumable agents: workers that count, and checks of what clients receive."""

import re

from tests.faults.deployment import Deployment, Message, error_of, said
from tests.processes import Process

AGENTS = ["counting", "counting_in_a_thread"]
LAST = 80
GATE = 42  # an agent that is told so waits after this number, two numbers after a checkpoint


async def worker_of(deployment: Deployment, name: str, agent: str = "counting", **settings: str) -> Process:
    """Start a worker with an agent of ``counting_agents``."""
    return await deployment.worker(name, f"counting_agents:{agent}", **settings)


def check_whole(messages: list[Message], last: int = LAST) -> None:
    """Check that the stream has every number once, in order, and ends well."""
    assert error_of(messages) is None
    assert said(messages) == [f"{number} " for number in range(1, last + 1)]


def attempts_of(worker: Process) -> list[int]:
    """Return the numbers from which the worker's agents counted."""
    return [int(number) for number in re.findall(r"note \w+ counts from (\d+)", worker.output)]


async def checkpoint_of(deployment: Deployment, run_id: str) -> dict[str, str | None]:
    """Return the fields of the run's hash that hold its checkpoint."""
    return {name: await deployment.field_of(run_id, name) for name in ("checkpoint", "checkpoint_at", "state")}
