"""Faults by name, and a broker that survives them: killed, frozen and started again on its port, with its data.

Each fault is a function, or a context manager that takes it back. They hit real processes with real signals.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import redis.asyncio as redis_asyncio
import redis.exceptions

from agentstream.processes.broker import usable_servers
from agentstream.processes.launcher import die_with_parent
from agentstream.processes.runtime import free_port
from tests.helpers import TIMEOUT_S

_POLL_S = 0.02


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = TIMEOUT_S) -> None:
    """Return when another process has come to a state; raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110 -- nothing tells us but asking
            await asyncio.sleep(_POLL_S)


class Broker:
    """A real server of the test's own. ``append_only``: whether it keeps its data over a restart.

    Every write is in the kernel before it is answered, so SIGKILL of the server loses nothing that was acknowledged.
    """

    def __init__(self, folder: Path, *, append_only: bool, replica_of: "Broker | None" = None) -> None:
        self.port = free_port()
        self._folder = folder / f"broker-{self.port}"
        self._append_only = append_only
        self._replica_of = replica_of
        self._process: asyncio.subprocess.Process | None = None
        # One connection, made anew when it breaks: faults must not wait for one another.
        self.admin = redis_asyncio.Redis(port=self.port, socket_timeout=TIMEOUT_S, max_connections=4)

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.admin.aclose()
        await self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it (again); returns when it answers and has loaded its data."""
        executable = next(choice.executable for choice in usable_servers() if choice.executable)
        options = [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""),
            *("--appendonly", "yes" if self._append_only else "no", "--appendfsync", "everysec"),
            *("--loglevel", "warning", "--repl-diskless-sync-delay", "0", "--enable-debug-command", "local"),
        ]
        if self._replica_of is not None:
            options += ["--replicaof", f"127.0.0.1 {self._replica_of.port}"]
        with (self._folder / "output").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *die_with_parent(str(executable), *options), stdout=output, stderr=output, start_new_session=True
            )
        await until(self._answers)

    async def kill(self) -> None:
        """End it with SIGKILL, frozen or not."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _answers(self) -> bool:
        try:
            return bool(await self.admin.ping())
        except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError, OSError):
            return False


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process stands still (SIGSTOP) and then goes on (SIGCONT), if it still exists."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def outage(broker: Broker) -> AsyncIterator[None]:
    """The broker is killed, nobody listens on its port; then it is started again."""
    await broker.kill()
    try:
        yield
    finally:
        await broker.start()


async def cut_connections(broker: Broker) -> None:
    """CLIENT KILL of everybody else's connections."""
    for kind in ("pubsub", "normal"):
        await broker.admin.client_kill_filter(_type=kind, skipme=True)


@contextlib.asynccontextmanager
async def tiny_push_buffer(broker: Broker, limit_bytes: int = 1024) -> AsyncIterator[None]:
    """Subscribers that leave more than ``limit_bytes`` untaken are cut by the broker."""
    name = "client-output-buffer-limit"
    before = str((await broker.admin.config_get(name))[name])
    await broker.admin.config_set(name, f"pubsub {limit_bytes} {limit_bytes} 0")
    try:
        yield
    finally:
        await broker.admin.config_set(name, before)


@contextlib.asynccontextmanager
async def full_memory(broker: Broker) -> AsyncIterator[None]:
    """The broker answers OOM to whatever would need memory."""
    await broker.admin.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await broker.admin.config_set("maxmemory", 0)


async def forget_scripts(broker: Broker) -> None:
    """SCRIPT FLUSH."""
    await broker.admin.script_flush()


async def count_oom_errors(broker: Broker) -> int:
    """Return how many commands were refused for want of memory."""
    stats: dict[str, Any] = await broker.admin.info("errorstats")
    return int(stats.get("errorstat_OOM", {}).get("count", 0))


async def count_cut_subscribers(broker: Broker) -> int:
    """Return how many connections were cut for an output buffer that grew too large."""
    stats: dict[str, Any] = await broker.admin.info("stats")
    return int(stats["client_output_buffer_limit_disconnections"])


class SwitchableProxy:
    """One address before several brokers: forwards to the chosen one; changing it cuts who was connected."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = free_port()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def switch_to(self, broker: Broker) -> None:
        self._broker = broker
        self._cut()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._broker.port)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(there_writer)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pipe(reader, there_writer), name="to the broker")
                tasks.create_task(_pipe(there_reader, writer), name="from the broker")
        finally:
            for end in (writer, there_writer):
                end.transport.abort()
                self._writers.discard(end)


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.transport.abort()


def small_buffer_socket(info: Any) -> socket.socket:
    """Make a client's socket that takes little before its reader reads: a stalled client is felt at once."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)  # noqa: FBT003 -- socket's own signature
    return made


async def leftovers(broker: Broker, queue: str) -> list[str]:
    """Return what should not be there when every run is over: keys without a TTL, jobs, and who still holds some.

    The queue itself has no TTL. Consumers of killed processes stay until they are pruned, which takes those that
    hold nothing.
    """
    jobs = f"agentstream:jobs:{queue}"
    found = [
        f"key without TTL: {key.decode()}"
        async for key in broker.admin.scan_iter()
        if key.decode() != jobs and await broker.admin.ttl(key) == -1
    ]
    if outstanding := await broker.admin.xlen(jobs):
        found.append(f"{outstanding} jobs outstanding")
    if await broker.admin.exists(jobs):
        found += [
            f"consumer {consumer['name'].decode()} holds {consumer['pending']} jobs"
            for consumer in await broker.admin.xinfo_consumers(jobs, "workers")
            if consumer["pending"]
        ]
    return found
