"""One server process with its own address and configuration file: start, kill, freeze, ask."""

import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from agentstream.processes.launcher import die_with_parent
from tests.brokers.waiting import WAIT_S, until
from tests.ports import free_port

_ANSWER_S = 3.0  # a live server answers within milliseconds; a frozen one never


class PortTaken(Exception):
    """Another process has taken the port of a server before the server listened on it."""


class Server:
    """A server. It listens on its own loopback address where the system has several; its clients come from there too.

    No method is bound to an event loop. ``client_options`` are the options of redis-py for its administrator.
    """

    def __init__(
        self, name: str, command: tuple[str, ...], folder: Path, address: str, client_options: dict[str, Any]
    ) -> None:
        """Take what does not change. ``configure`` must be called before ``start``.

        ``command`` is the executable, or the executable and the options that follow the configuration file.
        """
        self.name = name
        self.address = address
        self.port = free_port()
        self.bus_port = free_port()
        self.id = ""  # of a cluster's node
        self.frozen = False
        self.folder = folder / name
        self._command = command
        self._options = client_options
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}:{self.port}>"

    @property
    def place(self) -> tuple[str, int]:
        """The address and port."""
        return self.address, self.port

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError if the server has never been started."""
        if self._process is None:
            message = f"{self} has not been started"
            raise RuntimeError(message)
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists; also true while it is frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def awake(self) -> bool:
        """Whether the process exists and is not frozen."""
        return self.running and not self.frozen

    @property
    def output(self) -> str:
        """The text that the server has printed since it was first started."""
        return (self.folder / "output").read_text(errors="replace")

    def configure(self, *lines: str) -> None:
        """Write the configuration file, which only this user may read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "server.conf"
        file.touch(mode=0o600)
        file.write_text("\n".join(lines) + "\n")

    def launch(self) -> None:
        """Start the process. ``wait_started`` waits until it answers."""
        command = [self._command[0], str(self.folder / "server.conf"), *self._command[1:]]
        if self._output is None:
            self._output = (self.folder / "output").open("ab")
        self._process = subprocess.Popen(
            die_with_parent(*command),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )
        self.frozen = False

    async def wait_started(self) -> None:
        """Return when the server has loaded its data and answers. Raises PortTaken, or AssertionError with its output.

        Compares process ids, because another process on the port may answer in its place.
        """
        await until(self._is_up, f"{self} answers; its output: {self.output[-2000:]}")

    async def start(self) -> None:
        """Start the process with the configuration and the data that it has, and return when it answers."""
        self.launch()
        await self.wait_started()

    def kill(self) -> None:
        """Kill the process with SIGKILL, also if it is frozen. Does nothing if it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
        self.frozen = False

    def freeze(self) -> None:
        """Stop the process with SIGSTOP: its connections stay open and silent."""
        os.kill(self.pid, signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Let a frozen process continue."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        self.frozen = False

    def close(self) -> None:
        """Kill the process and close its output file."""
        self.kill()
        if self._output is not None:
            self._output.close()
            self._output = None

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[redis_asyncio.Redis]:
        """Yield a new client with the administrator's login, which does not retry. ``options`` are redis-py's."""
        defaults: dict[str, Any] = {
            "host": self.address,
            "port": self.port,
            "protocol": 2,
            "decode_responses": True,
            "socket_timeout": _ANSWER_S,
            "socket_connect_timeout": _ANSWER_S,
            "retry": Retry(NoBackoff(), 0),
        }
        client = redis_asyncio.Redis(**(defaults | self._options | options))
        try:
            yield client
        finally:
            await client.aclose()

    async def call(self, *words: str | int) -> Any:
        """Send one command and return the answer with text decoded. Raises redis-py's errors."""
        async with self.client() as client:
            client.response_callbacks.clear()  # INFO and others: the text as the server sends it
            send: Any = client.execute_command
            return await send(*words)

    async def pipeline(self, commands: list[tuple[str | int, ...]]) -> list[Any]:
        """Send commands in one write and return their answers. Raises the first error, after all were answered."""
        async with self.client(socket_timeout=WAIT_S) as client:
            client.response_callbacks.clear()
            pipeline = client.pipeline(transaction=False)
            for words in commands:
                pipeline.execute_command(*words)
            return await pipeline.execute()

    async def info(self, section: str = "everything") -> dict[str, str]:
        """Return the fields of INFO."""
        text: str = await self.call("INFO", section)
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    async def role(self) -> list[Any]:
        """Return the answer of ROLE; its first item is master or slave."""
        answer: list[Any] = await self.call("ROLE")
        return answer

    async def _is_up(self) -> bool:
        if not self.running:
            output = self.output
            if "already in use" in output:
                raise PortTaken(str(self))
            message = f"{self} ended: {output[-2000:]}"
            raise AssertionError(message)
        info = await self.info()
        return info["process_id"] == str(self.pid) and info.get("loading", "0") == "0"
