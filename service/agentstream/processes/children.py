"""Child processes: start them together, start them again with back-off when they end, and end them together."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentstream.errors import StartupError
from agentstream.processes.runtime import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREACHABLE, EXIT_WRONG_SETTINGS
from agentstream.processes.stopping import StopPipe

log = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 15.0
# After a child has run for this time, its next restart begins with the first back-off again.
HEALTHY_AFTER_S: Final = 30.0
# A child that ends this soon has failed at its start: loading an agent and connecting takes less time.
START_S: Final = 10.0
# So many failed starts in the same way, with the back-off about 8 s apart, are no accident.
MAX_FAILED_STARTS: Final = 5
# Time after the drain timeout of a child before it is killed.
STOP_GRACE_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class Child:
    """One supervised process. ``on_end`` is called each time it has ended.

    ``changed`` is set to start it again at once, because its program has changed.
    """

    name: str
    command: list[str]
    env: Mapping[str, str]
    on_end: Callable[[], object] | None = None
    process: asyncio.subprocess.Process | None = None
    pipe: StopPipe | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def runs(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.returncode is None


class _RefusedError(StartupError):
    """A child refuses to start. Another start would not help."""


class _UnreachableError(StartupError):
    """A child cannot reach Redis, before all children were ready."""


class _FailedStarts:
    """Recognises a child that fails in the same way at each start."""

    def __init__(self) -> None:
        self._codes: list[int] = []
        self._has_worked = False

    def again(self, code: int, ran_s: float) -> bool:
        """Record the end of a child. Return whether another start can help.

        A child that has worked once can work again. Redis may come back, and a kill came from outside.
        """
        self._has_worked |= ran_s > HEALTHY_AFTER_S
        if ran_s > START_S or code in {EXIT_UNREACHABLE, -signal.SIGKILL, -signal.SIGTERM}:
            self._codes.clear()
        else:
            self._codes = [*self._codes, code][-MAX_FAILED_STARTS:]
        return self._has_worked or len(self._codes) < MAX_FAILED_STARTS or len(set(self._codes)) > 1


class Children:
    """The child processes that one process supervises."""

    def __init__(
        self,
        *stop_groups: Sequence[Child],
        drain_timeout_s: float,
        print_line: Callable[[str], None],
        at_once: asyncio.Event,
        reload: bool = False,
    ) -> None:
        """Take groups of children. The groups are ended in this order. ``print_line`` prints a line for the user.

        When ``at_once`` is set, the end does not wait for the drain. With ``reload``, a child that refuses to start
        waits for the next ``reload`` instead of ending all children.
        """
        self._stop_groups = stop_groups
        self._drain_timeout_s = drain_timeout_s
        self._print_line = print_line
        self._at_once = at_once
        self._reloads = reload
        self._leaving: set[asyncio.Task[None]] = set()  # the ends of processes that a newer one has replaced
        self._stopping = asyncio.Event()
        self._were_ready = False
        self.restarts = 0  # the number of restarts of all children

    def pids(self) -> list[tuple[str, int | None]]:
        """Return the name and process id of every child. The id is None while the child does not run."""
        return [(child.name, child.process.pid if child.process and child.runs else None) for child in self._all()]

    @property
    def stopping(self) -> bool:
        """Whether the children are being ended."""
        return self._stopping.is_set()

    def reload(self, children: Sequence[Child]) -> None:
        """Replace these children by new processes. The old ones drain at the same time."""
        for child in children:
            child.changed.set()

    async def serve(
        self,
        stop: asyncio.Event,
        *critical: Coroutine[Any, Any, None],
        announce: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> int:
        """Keep the children running until ``stop`` is set, then end them all. Return the exit code.

        The exit code is EXIT_INTERRUPTED if ``at_once`` was set.

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
            code = self._reason(stopped, done)
        finally:
            await self._end_all()
            for task in others:
                task.cancel()
            await asyncio.gather(*others, *keeping, return_exceptions=True)  # they end because ``_stopping`` is set
        return EXIT_INTERRUPTED if self._at_once.is_set() else code

    def _reason(self, stopped: asyncio.Task[Any], done: set[asyncio.Task[Any]]) -> int:
        """Print why the children are ended, and return the exit code."""
        if stopped in done:
            self._print_line(
                f"stopping  each process waits up to {self._drain_timeout_s:g} s for its open runs; "
                "a second ctrl-C ends everything now"
            )
            return 0
        errors = [
            error for task in done if (error := task.exception())
        ]  # a child did not start, or was not ready in time
        for error in errors:
            self._print_line(f"error: {error}")
        kinds = {type(error) for error in errors}
        if _RefusedError in kinds:
            return EXIT_WRONG_SETTINGS
        return EXIT_UNREACHABLE if _UnreachableError in kinds else EXIT_FAILED

    async def _end_all(self) -> None:
        self._stopping.set()
        for child in self._all():
            if child.pipe is not None:
                child.pipe.wait()
        for group in self._stop_groups:
            await self._end(group)
        await asyncio.gather(*self._leaving)

    async def print_pids(self) -> None:
        """Print the process id of every child, in the order in which they are ended. Call it when all are ready."""
        self._were_ready = True
        for child in self._all():
            self._print_pid(child)

    def _print_pid(self, child: Child) -> None:
        if child.process is not None:
            self._print_line(f"{child.name:<9} pid {child.process.pid}")

    def _all(self) -> list[Child]:
        return [child for group in self._stop_groups for child in group]

    async def _keep_running(self, child: Child) -> None:
        """Start a child again each time it ends or its program has changed, until everything stops.

        Raises StartupError if the child refuses its settings, fails in the same way at each start, or cannot reach
        Redis before all children were ready.
        """
        loop = asyncio.get_running_loop()
        failed_starts = _FailedStarts()
        backoff_s = FIRST_BACKOFF_S
        while child.process is not None:
            started_s = loop.time()
            await _first_of(child.process.wait(), child.changed.wait())
            ended = child.process.returncode is not None
            if not ended:
                await self._replace(child)
            elif child.on_end is not None:
                child.on_end()
            if self._stopping.is_set():
                return
            if not child.changed.is_set():
                ran_s = loop.time() - started_s
                if ran_s > HEALTHY_AFTER_S:
                    backoff_s = FIRST_BACKOFF_S
                may_help = failed_starts.again(child.process.returncode or 0, ran_s)
                await self._wait_before_restart(child, backoff_s, may_help=may_help)
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            if self._stopping.is_set():
                return
            child.changed.clear()
            await _start(child)
            self.restarts += ended
            self._print_pid(child)
            if self._stopping.is_set():  # ``serve`` ended the children before this one started
                await self._end([child])

    async def _wait_before_restart(self, child: Child, backoff_s: float, *, may_help: bool) -> None:
        """Print why a child ended. Then wait until its restart is due or all children stop.

        Raises StartupError if no restart and no change of its program can help.
        """
        assert child.process is not None  # noqa: S101 -- narrows the type
        code = child.process.returncode
        timeout_s: float | None = backoff_s
        if code == EXIT_UNREACHABLE and not self._were_ready:
            message = f"{child.name} cannot reach Redis; its error message is above"
            raise _UnreachableError(message)
        if may_help and code != EXIT_WRONG_SETTINGS:
            self._print_line(
                f"{child.name} (pid {child.process.pid}) ended with code {code}; starting it again in {backoff_s:g} s"
            )
        elif self._reloads:
            self._print_line(
                f"{child.name} does not start; its error message is above. The next change starts it again"
            )
            timeout_s = None
        elif not may_help:
            message = (
                f"{child.name} ended with code {code} right after each of its last {MAX_FAILED_STARTS} starts, so it "
                "is not started again; its error message is above"
            )
            raise StartupError(message)
        else:
            message = f"{child.name} refused to start; its error message is above"
            raise _RefusedError(message)
        await _first_of(self._stopping.wait(), child.changed.wait(), timeout_s=timeout_s)

    async def _replace(self, child: Child) -> None:
        """Begin to end the process of a child, whose successor starts meanwhile."""
        leaving = asyncio.create_task(self._end([replace(child)]), name=f"end of {child.name}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        if child.on_end is not None:  # the successor uses the same number and metric files
            await asyncio.wait({leaving})
            child.on_end()

    async def _end(self, children: Sequence[Child]) -> None:
        running = [child.process for child in children if child.process and child.runs]
        for child in children:
            if child.pipe is not None:
                child.pipe.stop()
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if not running:
            return
        ends = asyncio.gather(*(process.wait() for process in running))
        await _first_of(asyncio.shield(ends), self._at_once.wait(), timeout_s=self._drain_timeout_s + STOP_GRACE_S)
        for process in running:
            if process.returncode is None:
                if not self._at_once.is_set():
                    log.warning("the process with pid %d did not end in time; killing it", process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await ends


async def _first_of(*waits: Awaitable[Any], timeout_s: float | None = None) -> None:
    """Wait until one of these is done or the time is up. Cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _start(child: Child) -> None:
    """Start a process in its own session: ctrl-C in the terminal reaches only the parent, which then ends the child."""
    if child.pipe is not None:
        child.pipe.stop()
    with StopPipe() as child.pipe:
        child.process = await asyncio.create_subprocess_exec(
            *child.command,
            "--parent",
            str(child.pipe.child_end),
            env=dict(child.env),
            start_new_session=True,
            pass_fds=[child.pipe.child_end],
        )
