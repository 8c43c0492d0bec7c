"""Turns ctrl-C into an exception that a command can handle."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from agentstream.cli.exits import Interrupted
from agentstream.processes.stopping import stop_signals

T = TypeVar("T")


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


def _ignore() -> None:
    """Do nothing."""
