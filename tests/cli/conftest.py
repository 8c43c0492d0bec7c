"""The command line as a shell runs it: real processes, their output and their exit codes."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.clients import AGENT, Client, http_client
from tests.helpers import TIMEOUT_S
from tests.processes import ROOT, Process, Processes


@dataclass(frozen=True)
class CommandResult:
    """A command that has ended."""

    code: int
    out: str
    err: str


def command_environment(**environment: str) -> dict[str, str]:
    """Return the environment of a command: the caller's, and this; empty values are left out."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment}
    return {name: value for name, value in env.items() if value}


async def agentstream(*arguments: str, stdin: str = "", **environment: str) -> CommandResult:
    """Run ``agentstream <arguments>`` to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agentstream",
        *arguments,
        env=command_environment(**environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return CommandResult(process.returncode or 0, out.decode(), err.decode())


@dataclass(frozen=True)
class Deployment:
    """A front end with a worker that does what it is told, and ways to look at them."""

    url: str
    redis_url: str
    processes: Processes
    client: Client

    async def command(self, *arguments: str, stdin: str = "", **environment: str) -> CommandResult:
        """Run a command in this deployment's environment to its end."""
        return await agentstream(*arguments, stdin=stdin, **self._environment(environment))

    async def begin(self, *arguments: str, **environment: str) -> Process:
        """Begin to run a command in this deployment's environment."""
        return await self.processes.start(*arguments, **self._environment(environment))

    def _environment(self, environment: dict[str, str]) -> dict[str, str]:
        ours = {
            "AGENTSTREAM_URL": self.url,
            "REDIS_URL": self.redis_url,
            "AGENTSTREAM_QUEUE": self.processes.queue,
        }
        return {**ours, **environment}


@pytest.fixture
async def deployment(processes: Processes, broker_url: str) -> AsyncIterator[Deployment]:
    """A deployment whose agent takes the steps it is asked for."""
    url = await processes.frontend()
    await processes.worker(AGENT, PYTHONPATH=str(ROOT))
    async with http_client() as client:
        yield Deployment(url, broker_url, processes, client)


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    """Return once something is so that another process brings about."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await look():  # noqa: ASYNC110 -- another process does it
            await asyncio.sleep(0.02)


def exists(path: Path) -> Callable[[], Awaitable[bool]]:
    """Return what tells whether there is a file."""

    async def look() -> bool:
        return path.exists()  # noqa: ASYNC240 -- another process makes it

    return look
