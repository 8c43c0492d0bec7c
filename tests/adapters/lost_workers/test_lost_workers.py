"""Workers that are killed in the middle of an answer of a framework's agent: another worker goes on."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.adapters.counting_model import LAST, CountingModel, numbers, run_counting_model
from tests.faults.deployment import Deployment, Message, error_of, kill_worker, said
from tests.processes import ROOT, Process, Processes

pytestmark = pytest.mark.timeout(180)  # each test starts workers, which import a framework

TESTS = Path(__file__).parent
EXAMPLES = ["langgraph_agent:agent", "pydantic_ai_agent:agent", "openai_agents_agent:agent"]


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


@pytest.fixture
async def counting() -> AsyncIterator[CountingModel]:
    """A model server that stops after 12 until its event ``go`` is set."""
    async with run_counting_model(stops_at=12) as model:
        yield model


async def worker(deployment: Deployment, name: str, agent: str, folder: Path, model_url: str = "") -> Process:
    """Start a worker with an agent of the examples or of this folder."""
    return await deployment.worker(
        name,
        agent,
        PYTHONPATH=os.pathsep.join((str(ROOT), str(TESTS))),
        OPENAI_BASE_URL=model_url,
        OPENAI_API_KEY="none",
        TEST_FOLDER=str(folder),
    )


def events_of(messages: list[Message], kind: str) -> list[str]:
    """Return the names of the tools of the events of one type."""
    return [data["tool"] for name, data in messages if name == kind]


@pytest.mark.parametrize("agent", [*EXAMPLES, "resumable_agents:durable"])
async def test_another_worker_continues_the_answer_of_a_framework(
    deployment: Deployment, counting: CountingModel, tmp_path: Path, agent: str
) -> None:
    """If a worker is killed in mid-answer, another one continues it: each word once, in order, and no tool twice."""
    first = await worker(deployment, "a", agent, tmp_path, counting.url)
    async with deployment.stream("the weather, then count") as stream:
        await stream.until('"12 "')
        await kill_worker(first)
        counting.go.set()
        await worker(deployment, "b", agent, tmp_path, counting.url)
        messages = await stream.whole()
        assert error_of(messages) is None
        assert "".join(said(messages)).replace("\n\n", "") == "Let me look. " + numbers()
        for kind in ("tool_call_start", "tool_call_end"):
            assert events_of(messages, kind) == ["weather"]
        assert await deployment.replay(stream.run_id) == messages
    assert len(counting.bodies) == 3  # the call of the tool, the answer that was cut, and its rest
    final = messages[-2][1]
    assert final["usage"]["completion_tokens"] == 2 + LAST - 12  # the cut inference reported none


async def test_another_worker_continues_the_answer_of_a_program(deployment: Deployment, tmp_path: Path) -> None:
    """If a worker is killed in mid-answer, the program starts again elsewhere and continues after its last word."""
    first = await worker(deployment, "a", "resumable_program:program", tmp_path)
    async with deployment.stream("count") as stream:
        await stream.until('"13 "')
        await kill_worker(first)
        await worker(deployment, "b", "resumable_program:program", tmp_path)
        messages = await asyncio.wait_for(stream.whole(), 60)
    assert error_of(messages) is None
    assert "".join(said(messages)) == numbers()
