"""Real front-end and worker processes for integration tests."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.helpers import TIMEOUT_S

ROOT = Path(__file__).parents[1]
AGENTS = Path(__file__).parent / "integration"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, or the parent-death signal")
# A worker imports the framework of its agent first. On a loaded machine that took more than 20 s.
START_S = 3 * TIMEOUT_S


class Process:
    """A child process. Its output is read continuously."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[str] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """The text it has printed so far, to standard output and standard error."""
        return "".join(self._lines)

    async def until(self, pattern: str, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """Return the first match in the output; raises AssertionError if the process ends or the time is up first."""
        return await self._when(lambda: re.search(pattern, self.output), f"{pattern!r} was not printed", timeout_s)

    async def ended(self, timeout_s: float = TIMEOUT_S) -> int:
        """Return the exit code after the process has ended and all its output has been read."""
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self._reading)
            return await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL: the process ends without a cleanup, as in a crash."""
        self._process.kill()

    async def stop(self) -> None:
        """End the process if it still runs: send SIGTERM and, after a timeout, SIGKILL."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            await self.ended()
        except TimeoutError:
            self._process.kill()
            await self.ended()

    async def _when(self, found: Callable[[], re.Match[str] | None], complaint: str, timeout_s: float) -> re.Match[str]:
        try:
            async with asyncio.timeout(timeout_s):
                while (match := found()) is None:
                    if self._reading.done():
                        break
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            match = None
        if match is None and (match := found()) is None:
            message = f"{complaint}; output:\n{self.output}"
            raise AssertionError(message)
        return match

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while line := await stream.readline():
            self._lines.append(line.decode(errors="replace"))
            self._news.set()
        self._news.set()


class Processes:
    """Starts agentstream processes with one broker and one queue, and stops all of them at the end."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self._redis_url = redis_url
        self._folder = folder
        self.queue = f"test-{secrets.token_hex(6)}"
        self.started: list[Process] = []
        self.cwd = AGENTS  # the folder of the test agents
        self.module = "agentstream"  # or one that changes the package before it starts the command line

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(process.stop() for process in reversed(self.started)))

    async def start(self, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> Process:
        """Start ``agentstream <arguments>`` with these settings, in the folder ``cwd``.

        ``prefix`` is a command that runs the command after it, such as prlimit.
        """
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": self._redis_url,
            "AGENTSTREAM_QUEUE": self.queue,
            **environment,
        }
        env = {name: value for name, value in env.items() if value}
        process = Process(
            await asyncio.create_subprocess_exec(
                *prefix,
                sys.executable,
                "-m",
                self.module,
                *arguments,
                cwd=self.cwd,
                env=env,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )
        self.started.append(process)
        return process

    async def frontend(self, **settings: str) -> str:
        """Start a front end and return its URL once it serves."""
        process = await self.start("frontend", AGENTSTREAM_PORT="0", **settings)
        return (await process.until(r"serving on (http://[^\s\"]+)"))[1]

    async def worker(self, agent: str | None = None, **settings: str) -> Process:
        """Start a worker and return it once it takes jobs.

        ``agent`` is the name of an agent in tests/integration/agents.py, or ``module:attribute``.
        """
        spec = f"agents:{agent}" if agent and ":" not in agent else agent or ""
        process = await self.start("worker", AGENTSTREAM_AGENT=spec, **settings)
        await process.until(r"takes jobs of queue", START_S)
        return process


async def ended(pid: int) -> None:
    """Return once a process has ended; it need not be our child (Linux)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, has_ended.set)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await has_ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
