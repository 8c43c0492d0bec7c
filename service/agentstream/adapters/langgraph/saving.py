"""The checkpoints of a run of a graph: after each step, and before and after a question to people."""

from typing import Any

from agentstream.adapters.langgraph.progress import Progress
from agentstream.adapters.langgraph.savers import RunSaver
from agentstream.adapters.resuming import keep
from agentstream.adapters.run_reporter import RunReporter
from agentstream.agents import Run


class Saving:
    """Stores the state of a run. Before ``begin`` it stores nothing, because the graph is not resumable."""

    def __init__(self, run: Run, adapter: str, reporter: RunReporter, progress: Progress) -> None:
        """Note ``reporter`` and ``progress``, which are a part of the state."""
        self._run = run
        self._adapter = adapter
        self._reporter = reporter
        self._progress = progress
        self._saver: RunSaver | None = None
        self._is_on = False

    def begin(self, saver: RunSaver | None) -> None:
        """Store the state from now on. ``saver`` is a part of it if the graph has no checkpointer of its own."""
        self._saver = saver
        self._is_on = True

    async def step_ended(self, namespace: str, checkpoint_id: str) -> None:
        """Make a checkpoint after a step."""
        self._progress.step_ended(namespace, checkpoint_id)
        if self._saver is not None:
            self._saver.forget_ended(namespace)
        await self._save(self._progress.as_json())

    async def asks(self) -> None:
        """Make a checkpoint before people are asked."""
        self._progress.asks()
        await self._save(self._progress.as_json())

    async def answered(self) -> None:
        """Make a checkpoint after people have answered. From now on, no other attempt repeats the tools that asked."""
        await self._save(self._progress.as_json(answered=self._reporter.interrupted))

    async def _save(self, progress: dict[str, Any]) -> None:
        if not self._is_on:
            return
        state: dict[str, Any] = {"progress": progress, "reporter": self._reporter.saved()}
        if self._saver is not None:
            state["saver"] = self._saver.as_json()
        await keep(self._run, self._adapter, state)
