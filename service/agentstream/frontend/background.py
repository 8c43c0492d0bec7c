"""Background tasks that no request waits for, such as cancelling a run after its client has disconnected."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from agentstream.errors import AgentStreamError

log = logging.getLogger(__name__)

BACKGROUND_TASK_TIMEOUT_S: Final = 30.0
FINISH_TIMEOUT_S: Final = 3.0


class BackgroundTasks:
    """Named tasks with a time limit of BACKGROUND_TASK_TIMEOUT_S. It keeps a reference to each and logs its failure."""

    def __init__(self) -> None:
        """Start without tasks."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Run the coroutine in a background task; ``name`` appears in the log if it fails."""
        task = asyncio.create_task(self._run(coroutine, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait up to FINISH_TIMEOUT_S for the running tasks, then cancel the rest."""
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
