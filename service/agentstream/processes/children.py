"""Child processes: started together, started again with back-off when they die, ended together."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentstream.errors import StartupError
from agentstream.processes.runtime import EXIT_FAILED, EXIT_WRONG_SETTINGS

log = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 15.0
# A child that ran for so long was fine: its next death starts with the first back-off again.
HEALTHY_AFTER_S: Final = 30.0
# Beyond the child's own drain timeout, before it is killed.
STOP_GRACE_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class Child:
    """One supervised process; ``on_end`` is called whenever it has ended."""

    name: str
    command: list[str]
    env: Mapping[str, str]
    on_end: Callable[[], object] | None = None
    process: asyncio.subprocess.Process | None = None


class _RefusedError(StartupError):
    """A child refuses to start, and would again."""


class Children:
    """What one process supervises."""

    def __init__(
        self, *stop_groups: Sequence[Child], drain_timeout_s: float, print_line: Callable[[str], None]
    ) -> None:
        """Take the children in the order in which they are ended, group by group; ``print_line`` is for people."""
        self._stop_groups = stop_groups
        self._drain_timeout_s = drain_timeout_s
        self._print_line = print_line
        self._stopping = asyncio.Event()
        self.restarts = 0  # how often one was started again

    def pids(self) -> list[tuple[str, int | None]]:
        """Return every child's name and process id; None while it does not run."""
        return [
            (child.name, child.process.pid if child.process and child.process.returncode is None else None)
            for child in self._all()
        ]

    async def serve(
        self,
        stop: asyncio.Event,
        *critical: Coroutine[Any, Any, None],
        announce: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> int:
        """Keep them running until ``stop`` is set, then end them all; returns the exit code.

        ``announce`` is awaited once they are started (by default their pids are said). Whatever cannot go on ends
        everything: it raising, a ``critical`` wait that raises, or a child that refuses its settings.
        """
        stopped = asyncio.create_task(stop.wait(), name="stop")
        others: list[asyncio.Task[Any]] = [stopped, *(asyncio.create_task(wait, name="critical") for wait in critical)]
        keeping: list[asyncio.Task[None]] = []
        try:
            for child in self._all():
                await _start(child)
                keeping.append(asyncio.create_task(self._keep_running(child), name=child.name))
            announcing = asyncio.create_task((announce or self.print_pids)(), name="announce")
            others.append(announcing)
            done, _ = await asyncio.wait({*others, *keeping}, return_when=asyncio.FIRST_COMPLETED)
            if done == {announcing} and announcing.exception() is None:
                others.remove(announcing)
                done, _ = await asyncio.wait({*others, *keeping}, return_when=asyncio.FIRST_COMPLETED)
            if stopped in done:
                self._print_line("stopping")
                return 0
            errors = [error for task in done if (error := task.exception())]  # of one that refuses, or is never ready
            for error in errors:
                self._print_line(f"error: {error}")
            return EXIT_WRONG_SETTINGS if any(isinstance(error, _RefusedError) for error in errors) else EXIT_FAILED
        finally:
            self._stopping.set()
            for rank in self._stop_groups:
                await self._end(rank)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, *keeping, return_exceptions=True)  # the keepers end by themselves

    async def print_pids(self) -> None:
        """Say every child's pid, those that are ended first at the top."""
        for child in self._all():
            self._print_pid(child)

    def _print_pid(self, child: Child) -> None:
        if child.process is not None:
            self._print_line(f"{child.name:<9} pid {child.process.pid}")

    def _all(self) -> list[Child]:
        return [child for rank in self._stop_groups for child in rank]

    async def _keep_running(self, child: Child) -> None:
        """Start a child again whenever it ends, until we stop; raises StartupError if it refuses its settings."""
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        while child.process is not None:
            started_s = loop.time()
            code = await child.process.wait()
            if child.on_end is not None:
                child.on_end()
            if self._stopping.is_set():
                return
            if code == EXIT_WRONG_SETTINGS:
                message = f"{child.name} refused to start; its own message stands above"
                raise _RefusedError(message)
            if loop.time() - started_s > HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            self._print_line(
                f"{child.name} (pid {child.process.pid}) ended with code {code}; starting it again in {backoff_s:g} s"
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            await _start(child)
            self.restarts += 1
            self._print_pid(child)
            if self._stopping.is_set():  # too late for those who end what runs
                await self._end([child])

    async def _end(self, children: Sequence[Child]) -> None:
        running = [child.process for child in children if child.process and child.process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if not running:
            return
        waits = [asyncio.ensure_future(process.wait()) for process in running]
        _, late = await asyncio.wait(waits, timeout=self._drain_timeout_s + STOP_GRACE_S)
        if late:
            for process in running:
                if process.returncode is None:
                    log.warning("pid %d did not end; killing it", process.pid)
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
            await asyncio.wait(late)


async def _start(child: Child) -> None:
    """Start a process in a session of its own: a terminal's ctrl-C reaches us alone, and we tell it."""
    child.process = await asyncio.create_subprocess_exec(*child.command, env=dict(child.env), start_new_session=True)
