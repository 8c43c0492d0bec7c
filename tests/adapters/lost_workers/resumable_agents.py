"""Resumable agents of the tests. A worker process imports this module by name.

``OPENAI_BASE_URL`` is the model server, and ``TEST_FOLDER`` the folder that survives the workers.
"""

import os
import pickle
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentstream.adapters.langgraph import LangGraphAgent, continuing

FOLDER = Path(os.environ.get("TEST_FOLDER", "."))


class FileSaver(InMemorySaver):
    """A checkpointer that survives the worker: it keeps everything in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            storage, self.writes, self.blobs = pickle.loads(path.read_bytes())  # noqa: S301 -- the test wrote it
            self.storage = defaultdict(lambda: defaultdict(dict), storage)

    def put(self, *arguments: Any) -> Any:
        """Store a checkpoint."""
        return self._saved(super().put(*arguments))

    def put_writes(self, *arguments: Any) -> None:
        """Store the results of a task."""
        self._saved(super().put_writes(*arguments))

    def _saved(self, result: Any) -> Any:
        new = self._path.with_suffix(".new")
        storage = {thread: dict(graphs) for thread, graphs in self.storage.items()}
        new.write_bytes(pickle.dumps((storage, self.writes, self.blobs)))
        new.replace(self._path)
        return result


@tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


def weather_graph(**compiled: Any) -> Any:
    """Return a graph whose model calls a tool, and then counts."""
    model = continuing(ChatOpenAI(model_name="m", stream_usage=True).bind_tools([weather]))

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("think", think).add_node("tools", ToolNode([weather]))
    graph.add_edge(START, "think").add_conditional_edges("think", tools_condition).add_edge("tools", "think")
    return graph.compile(**compiled)


@asynccontextmanager
async def durable() -> AsyncIterator[LangGraphAgent]:
    """Yield an agent with a checkpointer that survives the worker."""
    yield LangGraphAgent(weather_graph(checkpointer=FileSaver(FOLDER / "checkpoints")))
