"""Runs the agents of deploy/examples as their README describes: with a worker process in that folder."""

import gc
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.adapters.model_server import ModelServer, run_model_server
from tests.helpers import TIMEOUT_S

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


@pytest.fixture(autouse=True)
def _in_the_examples_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes in the folder of the examples."""
    monkeypatch.setattr("tests.processes.AGENTS", EXAMPLES)


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect what a test with cancelled agents leaves behind, so that its warnings do not fail the next test."""
    yield
    gc.collect()


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    """A fake model server."""
    async with run_model_server() as server:
        yield server


class StreamingClient:
    """The openai client, with the parts of its streams as pairs."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1"

    async def stream(self, *messages: dict[str, Any]) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield the parts in order: ("text", delta), (event type, fields), ("error", error) and ("usage", usage)."""
        conversation: Any = list(messages)
        async with openai.AsyncOpenAI(base_url=self._url, api_key="none", timeout=TIMEOUT_S, max_retries=0) as sdk:
            chunks = await sdk.chat.completions.create(
                model="m1", messages=conversation, stream=True, extra_headers={"X-Agent-Events": "chunk"}
            )
            async with chunks:
                async for chunk in chunks:
                    extra = chunk.model_extra or {}
                    if event := extra.get("agent_event"):
                        yield event["type"], event
                    if error := extra.get("agent_error"):
                        yield "error", error
                    elif chunk.choices and chunk.choices[0].delta.content:
                        yield "text", chunk.choices[0].delta.content
                    if chunk.usage:
                        yield "usage", chunk.usage


def user(text: str) -> dict[str, Any]:
    """Return a user message."""
    return {"role": "user", "content": text}
