"""Runs the command line in real processes and returns their output and exit codes."""

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
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def command_environment(**environment: str) -> dict[str, str]:
    """Return the environment of this process with these changes. Variables with empty values are removed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment}
    return {name: value for name, value in env.items() if value}


async def agentstream(*arguments: str, stdin: str = "", **environment: str) -> CommandResult:
    """Run ``agentstream <arguments>`` and wait until it has ended."""
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
    """A front end and a worker with the scripted agent."""

    url: str
    redis_url: str
    processes: Processes
    client: Client

    async def command(self, *arguments: str, stdin: str = "", **environment: str) -> CommandResult:
        """Run a command with the environment of this deployment and wait until it has ended."""
        return await agentstream(*arguments, stdin=stdin, **self._environment(environment))

    async def begin(self, *arguments: str, **environment: str) -> Process:
        """Start a command with the environment of this deployment."""
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
    """A deployment whose agent executes the steps in the request."""
    url = await processes.frontend()
    await processes.worker(AGENT, PYTHONPATH=str(ROOT))
    async with http_client() as client:
        yield Deployment(url, broker_url, processes, client)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition is true that another process makes true."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110 -- another process makes it true
            await asyncio.sleep(0.02)


def exists(path: Path) -> Callable[[], Awaitable[bool]]:
    """Return the condition that a file exists."""

    async def file_exists() -> bool:
        return path.exists()  # noqa: ASYNC240 -- another process creates it

    return file_exists
