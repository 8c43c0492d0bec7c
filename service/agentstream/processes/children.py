"""Child processes: start them together, start them again with back-off when they end, and end them together."""

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
# After a child has run for this time, its next restart begins with the first back-off again.
HEALTHY_AFTER_S: Final = 30.0
# Time after the drain timeout of a child before it is killed.
STOP_GRACE_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class Child:
    """One supervised process. ``on_end`` is called each time it has ended."""

    name: str
    command: list[str]
    env: Mapping[str, str]
    on_end: Callable[[], object] | None = None
    process: asyncio.subprocess.Process | None = None


class _RefusedError(StartupError):
    """A child refuses to start. Another start would not help."""


class Children:
    """The child processes that one process supervises."""

    def __init__(
        self, *stop_groups: Sequence[Child], drain_timeout_s: float, print_line: Callable[[str], None]
    ) -> None:
        """Take groups of children. The groups are ended in this order. ``print_line`` prints a line for the user."""
        self._stop_groups = stop_groups
        self._drain_timeout_s = drain_timeout_s
        self._print_line = print_line
        self._stopping = asyncio.Event()
        self.restarts = 0  # the number of restarts of all children

    def pids(self) -> list[tuple[str, int | None]]:
        """Return the name and process id of every child. The id is None while the child does not run."""
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
        """Keep the children running until ``stop`` is set, then end them all. Return the exit code.

        ``announce`` is awaited once after the start; by default it prints the process ids. All children are ended if it
        raises, if a ``critical`` coroutine raises, or if a child refuses its settings.
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
            errors = [error for task in done if (error := task.exception())]  # a child refused, or was never ready
            for error in errors:
                self._print_line(f"error: {error}")
            return EXIT_WRONG_SETTINGS if any(isinstance(error, _RefusedError) for error in errors) else EXIT_FAILED
        finally:
            self._stopping.set()
            for group in self._stop_groups:
                await self._end(group)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, *keeping, return_exceptions=True)  # they end because ``_stopping`` is set

    async def print_pids(self) -> None:
        """Print the process id of every child, in the order in which they are ended."""
        for child in self._all():
            self._print_pid(child)

    def _print_pid(self, child: Child) -> None:
        if child.process is not None:
            self._print_line(f"{child.name:<9} pid {child.process.pid}")

    def _all(self) -> list[Child]:
        return [child for group in self._stop_groups for child in group]

    async def _keep_running(self, child: Child) -> None:
        """Start a child again each time it ends, until everything stops.

        Raises _RefusedError if the child refuses its settings.
        """
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
                message = f"{child.name} refused to start; its error message is above"
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
            if self._stopping.is_set():  # ``serve`` ended the children before this one started
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
                    log.warning("the process with pid %d did not end in time; killing it", process.pid)
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
            await asyncio.wait(late)


async def _start(child: Child) -> None:
    """Start a process in its own session: ctrl-C in the terminal reaches only the parent, which then ends the child."""
    child.process = await asyncio.create_subprocess_exec(*child.command, env=dict(child.env), start_new_session=True)
