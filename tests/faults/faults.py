"""Faults by name, and a broker that can be killed, frozen and started again on the same port with the same data.

Each fault is a function, or a context manager that ends the fault. Faults send real signals to real processes.
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
from tests.helpers import TIMEOUT_S
from tests.ports import free_port

_POLL_S = 0.02


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = TIMEOUT_S) -> None:
    """Return when ``holds`` is true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110 -- the state of another process can only be polled
            await asyncio.sleep(_POLL_S)


class Broker:
    """The test's own real server. With ``append_only`` it keeps its data over a restart.

    Every write reaches the kernel before its reply, so SIGKILL of the server loses no acknowledged write.
    """

    def __init__(self, folder: Path, *, append_only: bool, replica_of: "Broker | None" = None) -> None:
        self.port = free_port()
        self._folder = folder / f"broker-{self.port}"
        self._append_only = append_only
        self._replica_of = replica_of
        self._process: asyncio.subprocess.Process | None = None
        # A few connections, made again when they break: faults must not wait for each other.
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
        """Start the server, and return when it has loaded its data and answers."""
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
        """Kill the server with SIGKILL. This also ends a frozen server."""
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
    """Freeze a process (SIGSTOP), then let it continue (SIGCONT) if it still exists."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def outage(broker: Broker) -> AsyncIterator[None]:
    """Kill the broker, so that nothing listens on its port, then start it again."""
    await broker.kill()
    try:
        yield
    finally:
        await broker.start()


async def cut_connections(broker: Broker) -> None:
    """Cut all other connections with CLIENT KILL."""
    for kind in ("pubsub", "normal"):
        await broker.admin.client_kill_filter(_type=kind, skipme=True)


@contextlib.asynccontextmanager
async def tiny_push_buffer(broker: Broker, limit_bytes: int = 1024) -> AsyncIterator[None]:
    """Let the broker cut subscribers that have more than ``limit_bytes`` not read."""
    name = "client-output-buffer-limit"
    before = str((await broker.admin.config_get(name))[name])
    await broker.admin.config_set(name, f"pubsub {limit_bytes} {limit_bytes} 0")
    try:
        yield
    finally:
        await broker.admin.config_set(name, before)


@contextlib.asynccontextmanager
async def full_memory(broker: Broker) -> AsyncIterator[None]:
    """Let the broker answer OOM to every command that needs memory."""
    await broker.admin.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await broker.admin.config_set("maxmemory", 0)


async def forget_scripts(broker: Broker) -> None:
    """Remove all scripts from the broker with SCRIPT FLUSH."""
    await broker.admin.script_flush()


async def count_oom_errors(broker: Broker) -> int:
    """Return how many commands the broker refused with OOM."""
    stats: dict[str, Any] = await broker.admin.info("errorstats")
    return int(stats.get("errorstat_OOM", {}).get("count", 0))


async def count_cut_subscribers(broker: Broker) -> int:
    """Return how many connections the broker cut because of a full output buffer."""
    stats: dict[str, Any] = await broker.admin.info("stats")
    return int(stats["client_output_buffer_limit_disconnections"])


class SwitchableProxy:
    """One address in front of several brokers. It forwards new connections to one of them."""

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

    def switch_to(self, broker: Broker, *, cut: bool = True) -> None:
        """Forward new connections to another broker. With ``cut``, end those that are open."""
        self._broker = broker
        if cut:
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
    """Return a client socket with a small receive buffer: the server notices at once if the client does not read."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)  # noqa: FBT003 -- socket's own signature
    return made


async def leftovers(broker: Broker, queue: str) -> list[str]:
    """Return the leftovers on a broker after all runs have ended: see ``leftovers_at``."""
    return await leftovers_at(broker.admin, queue)


async def leftovers_at(redis: redis_asyncio.Redis, queue: str) -> list[str]:
    """Return the leftovers on a server: keys without a TTL, jobs, and consumers that hold jobs.

    The queue itself has no TTL. Consumers of killed processes stay until they are pruned. Pruning removes only
    consumers that hold nothing. In a cluster the queue is on one of the servers.
    """
    jobs = f"agentstream:jobs:{queue}"
    keys = {key.decode() async for key in redis.scan_iter()}
    found = [f"key without TTL: {key}" for key in keys - {jobs} if await redis.ttl(key) == -1]
    if jobs not in keys:
        return found
    if outstanding := await redis.xlen(jobs):
        found.append(f"{outstanding} jobs outstanding")
    return found + [
        f"consumer {consumer['name'].decode()} holds {consumer['pending']} jobs"
        for consumer in await redis.xinfo_consumers(jobs, "workers")
        if consumer["pending"]
    ]
