"""The parent of several processes: for ``agentstream up``, and for front ends and workers with ``--processes``."""

import asyncio
import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

from agentstream.config import BUILTIN, Settings, env_name, environment, masked
from agentstream.errors import StartupError
from agentstream.processes.broker import EmbeddedBroker, find_server
from agentstream.processes.children import Child, Children
from agentstream.processes.file_watch import FileWatch
from agentstream.processes.launcher import die_with_parent
from agentstream.processes.runtime import free_port
from agentstream.processes.shared_port import check_port, shared_port
from agentstream.processes.stopping import stop_signals
from agentstream.telemetry.metrics import multiproc_env, remove_process_gauges

Watch = Callable[[str, Children], Coroutine[Any, Any, None]]  # takes the URL of the front end and the children

READY_TIMEOUT_S: Final = 30.0
READY_POLL_S: Final = 0.1


async def serve_processes(
    what: Literal["frontend", "worker"], settings: Settings, print_line: Callable[[str], None]
) -> int:
    """Run ``settings.processes`` front ends on one port, or workers, until SIGINT or SIGTERM. Return the exit code.

    Raises StartupError if the front ends cannot listen on the port.
    """
    at_once = asyncio.Event()
    with stop_signals(on_second_interrupt=at_once.set) as stop, contextlib.ExitStack() as stack:
        if what == "frontend":
            _, members = stack.enter_context(_front_ends(settings, print_line))
        else:
            members = stack.enter_context(_workers(settings, settings.processes))
        stop_s = settings.drain_timeout_s + (settings.stop_delay_s if what == "frontend" else 0)
        children = Children(members, drain_timeout_s=stop_s, print_line=print_line, at_once=at_once)
        return await children.serve(stop)


class Supervisor:
    """``agentstream up``: the broker, workers and front ends as child processes that end together."""

    def __init__(
        self,
        settings: Settings,
        print_line: Callable[[str], None],
        watch: Watch | None = None,
        *,
        reload: bool = False,
    ) -> None:
        """Take the settings. ``print_line`` prints a line for the user.

        ``watch`` is awaited when the front ends are ready. It runs until the end. With ``reload``, the workers are
        replaced each time that a Python file of the working directory changes.
        """
        self._settings = settings
        self._reload = reload
        self._print_line = print_line
        self._watch = watch
        self._at_once = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGINT or SIGTERM. Return the exit code. Raises StartupError."""
        if not self._settings.routes and self._settings.queue not in self._settings.served_queues:
            message = (
                f"AGENTSTREAM_QUEUES lacks {self._settings.queue!r}, the queue of the front end: "
                "add it, or change AGENTSTREAM_QUEUE"
            )
            raise StartupError(message)
        check_port(self._settings.host, self._settings.port)
        if self._settings.metrics_port:
            check_port(self._settings.metrics_host, self._settings.metrics_port, setting=env_name("metrics_port"))
        with stop_signals(on_second_interrupt=self._at_once.set) as stop:
            async with contextlib.AsyncExitStack() as stack:
                settings = self._settings
                if settings.redis_url is None:
                    choice = find_server()
                    broker = await stack.enter_async_context(EmbeddedBroker(choice))
                    self._print_line(
                        f"broker    pid {broker.pid}  REDIS_URL={broker.url}  ({choice.origin}; private, in memory)"
                    )
                    if broker.warning:
                        self._print_line(f"warning   {broker.warning}")
                    settings = settings.model_copy(update={"redis_url": broker.url})
                    return await self._supervise(settings, stop, broker)
                return await self._supervise(settings, stop)

    async def _supervise(self, settings: Settings, stop: asyncio.Event, broker: EmbeddedBroker | None = None) -> int:
        with (
            _front_ends(settings, self._print_line) as (port, front_ends),
            # The user of `up` is usually the author of the agent, and needs the texts of its errors.
            _workers(settings.model_copy(update={"log_errors": True}), settings.workers) as workers,
        ):
            # The front ends end first: their streams can end while the workers still work.
            children = Children(
                front_ends,
                workers,
                drain_timeout_s=settings.drain_timeout_s + settings.stop_delay_s,
                print_line=self._print_line,
                at_once=self._at_once,
                reload=self._reload,
            )
            critical = [_raise_when_broker_ends(broker)] if broker is not None else []
            if self._reload:
                critical.append(self._replace_workers(children, workers))
            return await children.serve(stop, *critical, announce=lambda: self._announce(port, children))

    async def _replace_workers(self, children: Children, workers: Sequence[Child]) -> None:
        """Replace the workers each time that a file changes, and print which one."""
        others = [Path(self._settings.mcp_servers)] if self._settings.mcp_servers else []
        watch = await asyncio.to_thread(FileWatch, Path(), others)
        self._print_line(f"reload    watches {watch.count} files in the working directory")
        if watch.truncated:
            self._print_line("warning   the working directory has more files than --reload watches: start it elsewhere")
        async for changed in watch.changes():
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self._print_line(f"changed   {changed[0]}{more}: replacing the workers; runs may end on the old ones")
            children.reload(workers)

    async def _announce(self, port: int, children: Children) -> None:
        """Wait until the front ends are ready, then print what is served and where.

        Raises StartupError after 30 s and the time for which the processes wait for Redis. With ``reload`` it waits
        for ever: a change may let the workers start.
        """
        settings = self._settings
        url = settings.model_copy(update={"port": port}).url
        timeout = aiohttp.ClientTimeout(total=2)
        # The processes first wait for Redis, if REDIS_URL is set, and for agents that must be started. They exit
        # with an error if that takes too long.
        limit_s = READY_TIMEOUT_S + (settings.broker_wait_s if settings.redis_url else 0)
        limit_s += settings.agent_start_timeout_s if settings.agent or settings.routes else 0
        try:
            async with (
                asyncio.timeout(None if self._reload else limit_s),
                aiohttp.ClientSession(timeout=timeout) as session,
            ):
                while not await _is_ready(session, url, settings):  # noqa: ASYNC110 -- another process's state
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError as exc:
            message = f"the front end and its workers were not ready within {limit_s:g} s; see their log lines above"
            raise StartupError(message) from exc
        await children.print_pids()
        engine = (
            settings.engine
            or masked("openai_base_url", settings.openai_base_url)
            or "built-in demo (no model: set OPENAI_BASE_URL for one)"
        )
        for route in settings.routes:
            self._print_line(f"agent     {route.model}: {engine if route.agent == BUILTIN else route.agent}")
        if not settings.routes:
            self._print_line(f"agent     {settings.agent or engine}")
        self._print_line(f"serving   {url}  (playground there; API at {url}/v1)")
        where = "" if url == "http://127.0.0.1:8000" else f"--url {url} "
        where += f"--model {shlex.quote(settings.routes[0].model)} " if settings.routes else ""
        self._print_line(
            f'try       agentstream chat {where}"what is 17*23, and the time in Tokyo?"    ctrl-C ends everything'
        )
        if self._watch is not None:
            await self._watch(url, children)


async def _is_ready(session: aiohttp.ClientSession, url: str, settings: Settings) -> bool:
    try:
        async with session.get(f"{url}/health/ready") as response:
            queues = (await response.json())["queues"]
            return response.status == 200 and all(  # noqa: PLR2004
                queues[queue]["workers"] >= settings.workers for queue in settings.served_queues
            )
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
        return False


async def _raise_when_broker_ends(broker: EmbeddedBroker) -> None:
    """Wait until the broker ends, then raise StartupError: the broker's runs are lost with it."""
    code = await broker.wait()
    message = f"the broker ended with code {code}"
    raise StartupError(message)


@contextlib.contextmanager
def _front_ends(settings: Settings, print_line: Callable[[str], None]) -> Iterator[tuple[int, list[Child]]]:
    """Yield the port of the front ends and their processes. Raises StartupError."""
    if settings.processes == 1:
        port = settings.port or free_port()
        env = _env(settings.model_copy(update={"port": port}))
        yield port, [Child(name="frontend", command=_command("frontend"), env=env)]
        return
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(shared_port(settings.host, settings.port))
        if sys.platform != "linux":
            print_line("warning   this system may not spread connections evenly over processes that share a port")
        env = _env(settings.model_copy(update={"port": port}))
        yield port, stack.enter_context(_processes_sharing_metrics("frontend", settings.processes, env))


@contextlib.contextmanager
def _workers(settings: Settings, count: int) -> Iterator[list[Child]]:
    """Yield worker processes. They share one metrics port if the settings have one. Raises StartupError."""
    env = _env(settings.model_copy(update={"processes": 1}))
    if count == 1 or not settings.metrics_port:
        yield [Child(name=f"worker {number}", command=_command("worker"), env=env) for number in range(1, count + 1)]
        return
    with (
        shared_port(settings.metrics_host, settings.metrics_port, setting=env_name("metrics_port")),
        _processes_sharing_metrics("worker", count, env) as workers,
    ):
        yield workers


@contextlib.contextmanager
def _processes_sharing_metrics(
    what: Literal["frontend", "worker"], count: int, env: dict[str, str]
) -> Iterator[list[Child]]:
    """Yield processes that share a port and their metrics. Each of them reports the totals.

    Raises StartupError if there is no temporary folder.
    """
    try:
        shared = tempfile.TemporaryDirectory(prefix="agentstream-metrics-")
    except OSError as exc:
        message = (
            f"several processes of a {what} share their metrics in a temporary folder, and none can be made: "
            f"{exc.strerror or exc}; mount one, such as docker run --tmpfs /tmp, or set TMPDIR to one"
        )
        raise StartupError(message) from exc
    with shared as folder:
        yield [
            Child(
                name=f"{what} {number}",
                command=_command(what, "--number", str(number)),
                env=env | multiproc_env(folder),
                on_end=partial(remove_process_gauges, folder, number),
            )
            for number in range(1, count + 1)
        ]


def _env(settings: Settings) -> dict[str, str]:
    return os.environ | environment(settings)


def _command(*arguments: str) -> list[str]:
    """Return the command of a child process.

    ``-P`` keeps a folder ``agentstream`` in the working directory from replacing this package.
    """
    return die_with_parent(sys.executable, "-P", "-m", "agentstream", *arguments)
