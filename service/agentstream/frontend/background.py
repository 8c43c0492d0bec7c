"""Small things to do that no request waits for, such as cancelling the run of a client that went away."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from agentstream.errors import AgentStreamError

log = logging.getLogger(__name__)

BACKGROUND_TASK_TIMEOUT_S: Final = 30.0
FINISH_TIMEOUT_S: Final = 3.0


class BackgroundTasks:
    """Named tasks with a time limit, none of them lost or silent."""

    def __init__(self) -> None:
        """Start with none."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Do it in the background."""
        task = asyncio.create_task(self._run(coroutine, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Give what is under way a little time, then drop it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FINISH_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()

    async def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        try:
            async with asyncio.timeout(BACKGROUND_TASK_TIMEOUT_S):
                await coroutine
        except (AgentStreamError, TimeoutError) as exc:
            log.warning("%s failed: %s", name, exc)
        except Exception:
            log.exception("%s failed", name)
