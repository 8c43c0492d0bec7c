"""A thread that notices when code blocks the event loop, and says which agent it is and where it blocks.

The thread asks the loop to answer, several times per second. It also lets the guard look for changes of the process.
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from agentstream.telemetry.log_context import AGENT_ERROR, LogContext
from agentstream.worker.current_agent import owner_of
from agentstream.worker.process_guard import ProcessGuard

log = logging.getLogger(__name__)

CHECK_S: Final = 0.5
# A loop that does not answer for this long is blocked. A busy loop answers within milliseconds.
BLOCKED_S: Final = 1.0
MAX_STACK_FRAMES: Final = 20  # the innermost
_LOOP_FUNCTIONS: Final = frozenset({"run_until_complete", "run_forever"})
REMEDY: Final = "write the agent as a plain def, or call the blocking function with asyncio.to_thread"


class LoopWatch:
    """Watches the running event loop from its own thread."""

    def __init__(self, guard: ProcessGuard, on_blocked: Callable[[float], None]) -> None:
        """``on_blocked`` is called with the duration in seconds, on the loop, after it was blocked."""
        self._guard = guard
        self._on_blocked = on_blocked
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._answered = threading.Event()
        self._stop = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs."""
        thread = threading.Thread(target=self._watch, name="loop watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(CHECK_S):
            asked_s = time.monotonic()
            self._answered.clear()
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop has closed
                return
            try:
                if not self._answered.wait(BLOCKED_S):
                    self._report()
                    self._wait_for_answer(asked_s)
                self._guard.check()
            except Exception:
                log.exception("cannot watch the event loop")

    def _answer(self) -> None:
        self._answered.set()
        self._guard.check_signals()

    def _wait_for_answer(self, asked_s: float) -> None:
        while not self._answered.wait(BLOCKED_S):
            if self._stop.is_set():
                return
        seconds = time.monotonic() - asked_s
        log.warning("the event loop runs again; it was blocked for %.1f s", seconds)
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._on_blocked, seconds)

    def _report(self) -> None:
        """Log where the loop is blocked, and by which agent."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 -- the only way to see another thread
        agent = owner_of(asyncio.current_task(self._loop))
        name = f"the agent {agent.name}" if agent else "code outside of a run"
        message = (
            f"{name} blocks the event loop for more than {BLOCKED_S:g} s, and all runs of this worker wait: {REMEDY}; "
            f"it is at {_place(frame)}"
        )
        stack = "".join(_stack(frame))
        record = log.makeRecord(
            log.name, logging.WARNING, __file__, 0, message, (), None, "_report", AGENT_ERROR, stack.rstrip() or None
        )
        record.log_context = agent.log_context if agent else LogContext()
        log.handle(record)


def _stack(frame: FrameType | None) -> list[str]:
    """Return the innermost lines of the stack, without those of the process before its event loop."""
    if frame is None:
        return []
    frames = traceback.extract_stack(frame)
    begin = next((at for at in range(len(frames), 0, -1) if frames[at - 1].name in _LOOP_FUNCTIONS), 0)
    return traceback.format_list(frames[begin:][-MAX_STACK_FRAMES:])


def _place(frame: FrameType | None) -> str:
    """Return the innermost line. The frame of a running loop without Python code is that of the loop itself."""
    return "an unknown place" if frame is None else f"{frame.f_code.co_filename}, line {frame.f_lineno}"
