"""Turns ctrl-C into an exception that a command can handle."""

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

from agentstream.cli.exits import Interrupted
from agentstream.processes.stopping import stop_signals

T = TypeVar("T")

_LOOK_FOR_SIGNALS_S: Final = 0.1  # a person does not notice this delay


async def until_interrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` and return its result. On ctrl-C or SIGTERM, cancel it and raise Interrupted."""
    with stop_signals(on_second_interrupt=_ignore) as stop:  # the first one already ends the work
        working = asyncio.create_task(work, name="work")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            message = "interrupted"
            raise Interrupted(message)
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)


def read_line(prompt: str) -> str:
    """Read a line of the person at the terminal, as ``input`` does. Raises KeyboardInterrupt and EOFError.

    A ctrl-C that comes after the prompt is shown, but before the read begins, does not end the read of ``input``: the
    person would have to press another key. So a timer wakes the read, and Python then looks for signals.
    """
    if not hasattr(signal, "setitimer"):  # Windows, where no signal has to end a read
        return input(prompt)
    before = signal.signal(signal.SIGALRM, _ignore)
    try:
        signal.setitimer(signal.ITIMER_REAL, _LOOK_FOR_SIGNALS_S, _LOOK_FOR_SIGNALS_S)
        return input(prompt)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ignore(_number: int = 0, _frame: FrameType | None = None) -> None:
    """Do nothing."""
