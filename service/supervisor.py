"""``agentstream up``: broker, workers and front end as child processes, ended together."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from service.broker import EmbeddedBroker, find_server
from service.child import tied
from service.config import Settings, environment
from service.errors import StartupError
from service.process import EXIT_FAILED, EXIT_WRONG_SETTINGS, free_port, stop_signals

log = logging.getLogger(__name__)

READY_TIMEOUT_S: Final = 30.0
READY_POLL_S: Final = 0.1
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 15.0
# A child that ran for so long was fine: its next death starts with the first back-off again.
HEALTHY_AFTER_S: Final = 30.0
# Beyond the child's own drain timeout, before it is killed.
STOP_GRACE_S: Final = 10.0


@dataclass(slots=True)
class _Child:
    """One supervised process."""

    name: str
    command: list[str]
    process: asyncio.subprocess.Process | None = None


class _RefusedError(StartupError):
    """A child refuses to start, and would again."""


class Supervisor:
    """Starts the children, starts a dead one again with back-off, ends all of them."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        """``say`` prints a line for the person at the terminal."""
        self._settings = settings
        self._say = say
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGINT or SIGTERM; returns the exit code."""
        with stop_signals() as stop:
            async with contextlib.AsyncExitStack() as stack:
                settings = self._settings
                if settings.redis_url is None:
                    choice = find_server()
                    broker = await stack.enter_async_context(EmbeddedBroker(choice))
                    self._say(f"broker    pid {broker.pid}  {broker.url}  ({choice.origin}; private, in memory)")
                    if choice.warning:
                        self._say(f"warning   {choice.warning}")
                    settings = settings.model_copy(update={"redis_url": broker.url})
                    return await self._supervise(settings, stop, broker)
                return await self._supervise(settings, stop)

    async def _supervise(self, settings: Settings, stop: asyncio.Event, broker: EmbeddedBroker | None = None) -> int:
        if settings.port == 0:
            settings = settings.model_copy(update={"port": free_port()})
        workers = [_Child(f"worker {number}", _command("worker")) for number in range(1, settings.workers + 1)]
        frontend = _Child("frontend", _command("frontend"))
        env = os.environ | environment(settings)
        watching = [asyncio.create_task(self._keep(child, env), name=child.name) for child in [*workers, frontend]]
        if broker is not None:
            watching.append(asyncio.create_task(_while_alive(broker), name="broker"))
        stopped = asyncio.create_task(stop.wait(), name="stop")
        announcing = asyncio.create_task(self._announce(settings, [frontend, *workers]), name="announce")
        try:
            done, _ = await asyncio.wait({stopped, announcing, *watching}, return_when=asyncio.FIRST_COMPLETED)
            if done == {announcing} and announcing.exception() is None:
                done, _ = await asyncio.wait({stopped, *watching}, return_when=asyncio.FIRST_COMPLETED)
            if stopped in done:
                self._say("stopping")
                return 0
            errors = [task.exception() for task in done]  # a child that cannot start, or never got ready
            for error in errors:
                self._say(f"error: {error}")
            return EXIT_WRONG_SETTINGS if any(isinstance(error, _RefusedError) for error in errors) else EXIT_FAILED
        finally:
            self._stopping.set()
            announcing.cancel()
            stopped.cancel()
            # The front end first: it lets its streams end while the workers still work.
            await self._stop([frontend])
            await self._stop(workers)
            for task in watching:
                task.cancel()
            await asyncio.gather(announcing, stopped, *watching, return_exceptions=True)

    async def _keep(self, child: _Child, env: dict[str, str]) -> None:
        """Run a child, again and again until we stop; raises StartupError if it refuses its settings."""
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        while True:
            started_s = loop.time()
            child.process = await asyncio.create_subprocess_exec(*child.command, env=env, start_new_session=True)
            code = await child.process.wait()
            if self._stopping.is_set():
                return
            if code == EXIT_WRONG_SETTINGS:
                message = f"{child.name} refused to start; its own message stands above"
                raise _RefusedError(message)
            if loop.time() - started_s > HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            self._say(
                f"{child.name} (pid {child.process.pid}) ended with code {code}; starting it again in {backoff_s:g} s"
            )
            await asyncio.sleep(backoff_s)
            if self._stopping.is_set():
                return
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _announce(self, settings: Settings, children: list[_Child]) -> None:
        """Say where and as what we serve, once we do; raises StartupError if that takes too long."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 -- every address
        url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
        timeout = aiohttp.ClientTimeout(total=2)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession(timeout=timeout) as session:
                while not await _serves_with_workers(session, url, settings.workers):  # noqa: ASYNC110 -- another process's state
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError as exc:
            message = f"not ready within {READY_TIMEOUT_S:g} s"
            raise StartupError(message) from exc
        for child in children:
            if child.process is not None:
                self._say(f"{child.name:<9} pid {child.process.pid}")
        engine = settings.agent or settings.openai_base_url or "built-in demo (no model: set OPENAI_BASE_URL for one)"
        self._say(f"agent     {engine}")
        self._say(f"serving   {url}  (playground there; API at {url}/v1)")
        where = "" if url == "http://127.0.0.1:8000" else f"--url {url} "
        self._say(
            f'try       agentstream chat {where}"what is 17*23, and the time in Tokyo?"    ctrl-C ends everything'
        )

    async def _stop(self, children: list[_Child]) -> None:
        running = [child.process for child in children if child.process and child.process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if not running:
            return
        waits = [asyncio.ensure_future(process.wait()) for process in running]
        _, late = await asyncio.wait(waits, timeout=self._settings.drain_timeout_s + STOP_GRACE_S)
        if late:
            for process in running:
                if process.returncode is None:
                    log.warning("pid %d did not end; killing it", process.pid)
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
            await asyncio.wait(late)


async def _serves_with_workers(session: aiohttp.ClientSession, url: str, workers: int) -> bool:
    try:
        async with session.get(f"{url}/health/ready") as response:
            body = await response.json()
            return response.status == 200 and body["workers"] >= workers  # noqa: PLR2004
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
        return False


async def _while_alive(broker: EmbeddedBroker) -> None:
    """Wait for the broker's end; raises StartupError then: its runs are gone with it."""
    code = await broker.wait()
    message = f"the broker ended with code {code}"
    raise StartupError(message)


def _command(process: str) -> list[str]:
    """Return how to start a process of ours. ``-P``: a user's own folder ``service`` must not stand in for us."""
    return tied(sys.executable, "-P", "-m", "service", process)
