"""A fake model server, and engines that use it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentstream.engines.openai import OpenAIEngine
from tests.helpers import TIMEOUT_S
from tests.model_server import FakeModelServer, model_server
from tests.unit.engines.openai_engine import MakeEngine


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with model_server() as fake:
        yield fake


@pytest.fixture
async def engine_for(server: FakeModelServer) -> AsyncIterator[MakeEngine]:
    engines: list[OpenAIEngine] = []

    def make(**options: Any) -> OpenAIEngine:
        engines.append(
            OpenAIEngine(server.url, "sk-secret-key", **{"max_retries": 0, "timeout_s": TIMEOUT_S, **options})
        )
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()
