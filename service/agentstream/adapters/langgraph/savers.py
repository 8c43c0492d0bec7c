"""Checkpointers for one run: LangGraph's checkpointer with a notice after each step, and one whose state the run keeps.

A checkpoint of LangGraph that ends a step is stored before the next step begins (durability "sync"). The notice comes
before it is stored. So all text of the step is stored with the run when LangGraph's checkpoint exists, and no text of
the next step.
"""

import asyncio
import base64
import copy
from collections.abc import Awaitable, Callable
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from agentstream.adapters.langgraph.progress import NAMESPACE_SEPARATOR

RUN_ID: Final = "agentstream_run"  # in the metadata of LangGraph's checkpoints: the run that wrote them
_TASK_SEPARATOR: Final = ":"  # between the name and the id of a task in a namespace

# Gets the namespace of the graph whose step has ended, and the id of LangGraph's checkpoint.
StepEnded = Callable[[str, str], Awaitable[None]]


def noticing(saver: BaseCheckpointSaver[Any], run_id: str, step_ended: StepEnded) -> BaseCheckpointSaver[Any]:
    """Return a copy of a checkpointer that marks the checkpoints of this run and calls ``step_ended`` after a step."""
    noticed = copy.copy(saver)
    one_at_a_time = asyncio.Lock()  # after a loss, only the checkpoint of the last notice may be missing

    async def aput(config: RunnableConfig, checkpoint: Any, metadata: Any, new_versions: Any) -> RunnableConfig:  # noqa: ANN401 -- LangGraph's
        marked: Any = {**metadata, RUN_ID: run_id}
        ends_step = metadata.get("source") == "loop"  # the input is stored while the first step already runs
        namespace = config["configurable"].get("checkpoint_ns", "")
        async with one_at_a_time:
            is_in_run = isinstance(saver, RunSaver)  # its state is a part of the checkpoint that step_ended makes
            if ends_step and not is_in_run:
                await step_ended(namespace, checkpoint["id"])
            stored = await saver.aput(config, checkpoint, marked, new_versions)
            if ends_step and is_in_run:
                await step_ended(namespace, checkpoint["id"])
        return stored

    noticed.aput = aput  # type: ignore[method-assign]
    return noticed


class RunSaver(InMemorySaver):
    """A checkpointer in memory that returns its last checkpoints as JSON, for the checkpoint of the run."""

    def __init__(self, thread_id: str, saved: list[Any]) -> None:
        """Restore the checkpoints in ``saved``, which is a value that ``as_json`` returned."""
        super().__init__()
        self._thread_id = thread_id
        for namespace, checkpoint, metadata, *rest in saved:
            loaded = self._loaded(checkpoint)
            stored = self.put(self._config(namespace), loaded, self._loaded(metadata), loaded["channel_versions"])
            key = (thread_id, namespace, stored["configurable"]["checkpoint_id"])
            for task_id, index, channel, (kind, content), path in rest[0] if rest else ():
                self.writes[key][task_id, index] = (task_id, channel, (kind, base64.b64decode(content)), path)

    def as_json(self) -> list[Any]:
        """Return the last checkpoint of each graph that has not ended. Raises what LangGraph's serializer raises."""
        saved = []
        for namespace in self.storage[self._thread_id]:
            found = self.get_tuple(self._config(namespace))
            if found is not None:
                checkpoint, metadata = self._dumped(found.checkpoint), self._dumped(found.metadata)
                key = (self._thread_id, namespace, found.checkpoint["id"])
                writes = [
                    [task_id, index, channel, [kind, base64.b64encode(content).decode()], path]
                    for (_, index), (task_id, channel, (kind, content), path) in self.writes.get(key, {}).items()
                ]
                saved.append([namespace, checkpoint, metadata, writes])
        return saved

    def forget_ended(self, namespace: str) -> None:
        """Forget the graphs inside the tasks of a step that has ended. Those that keep a history have no task ids."""
        inside = f"{namespace}{NAMESPACE_SEPARATOR}" if namespace else ""
        graphs = self.storage[self._thread_id]
        for name in [name for name in graphs if name.startswith(inside) and name != namespace]:
            if _TASK_SEPARATOR in name:
                del graphs[name]

    def _config(self, namespace: str) -> RunnableConfig:
        return {"configurable": {"thread_id": self._thread_id, "checkpoint_ns": namespace}}

    def _dumped(self, value: object) -> list[str]:
        kind, content = self.serde.dumps_typed(value)
        return [kind, base64.b64encode(content).decode()]

    def _loaded(self, dumped: list[str]) -> Any:  # noqa: ANN401 -- LangGraph's
        kind, content = dumped
        return self.serde.loads_typed((kind, base64.b64decode(content)))
