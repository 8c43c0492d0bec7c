"""The built-in agent with a model server: its worker is killed or stopped, and the same answer goes on."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agentstream.engines.base import CONTINUE_PROMPT
from tests.faults.counting_model import CountingModel, counting_model
from tests.faults.deployment import COMPLETIONS, Deployment, chat, error_of, kill_worker, terminate
from tests.helpers import TIMEOUT_S, texts
from tests.processes import Process, Processes

LAST = 40
PAUSE_AT = 12
QUESTION = f"count to {LAST}"
REQUESTS: dict[str, dict[str, Any]] = {
    COMPLETIONS: chat(QUESTION),
    "/v1/completions": {"model": "m1", "prompt": QUESTION},
    "/v1/responses": {"model": "m1", "input": QUESTION},
}


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


async def worker_of(deployment: Deployment, model: CountingModel, **settings: str) -> Process:
    """Start a worker with the built-in agent."""
    return await deployment.worker("w", None, OPENAI_BASE_URL=model.url, OPENAI_API_KEY="sk-test", **settings)


def pieces(stream: bytes) -> list[str]:
    """Return the pieces of text in a stream of any of the three APIs."""
    data = [line.removeprefix("data: ") for line in stream.decode().splitlines() if line.startswith("data: {")]
    found: list[str] = []
    for event in map(json.loads, data):
        if event.get("type") == "response.output_text.delta":
            found.append(event["delta"])
        found += [choice.get("text") or choice.get("delta", {}).get("content") for choice in event.get("choices") or ()]
    return [piece for piece in found if piece]


@pytest.mark.parametrize(("path", "streamed"), [*((path, True) for path in REQUESTS), ("/v1/responses", False)])
async def test_an_answer_goes_on_when_its_worker_is_killed(deployment: Deployment, path: str, streamed: bool) -> None:
    """The model continues an answer whose worker was killed: the client gets every token once, in every API."""
    timeout = aiohttp.ClientTimeout(total=3 * TIMEOUT_S)
    async with counting_model(PAUSE_AT) as model, aiohttp.ClientSession(timeout=timeout) as session:
        first = await worker_of(deployment, model)
        request = REQUESTS[path] | {"stream": streamed}
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(_body_of(session, deployment.url + path, request))
            await model.paused.wait()
            await worker_of(deployment, model)
            await kill_worker(first)
        body = answer.result()
    expected = "".join(f" {number}" for number in range(1, LAST + 1))
    if streamed:
        assert "".join(pieces(body)) == expected
    else:
        assert expected in body.decode()
    asked = model.conversations[1]
    assert asked[-1] == {"role": "user", "content": CONTINUE_PROMPT}
    assert asked[-2]["role"] == "assistant"
    assert len(model.conversations) == 2


async def _body_of(session: aiohttp.ClientSession, url: str, request: dict[str, Any]) -> bytes:
    async with session.post(url, json=request) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def test_an_answer_is_continued_by_prefill(deployment: Deployment) -> None:
    """With AGENTSTREAM_ENGINE_PREFILL the shown text is the last message, which the server is told to continue."""
    async with counting_model(PAUSE_AT) as model:
        first = await worker_of(deployment, model, AGENTSTREAM_ENGINE_PREFILL="vllm")
        async with deployment.stream(QUESTION) as stream:
            await stream.until(f'" {PAUSE_AT}"')
            await worker_of(deployment, model, AGENTSTREAM_ENGINE_PREFILL="vllm")
            await kill_worker(first)
            assert numbers_of(await stream.whole()) == list(range(1, LAST + 1))
    shown = "".join(f" {number}" for number in range(1, PAUSE_AT + 1))
    assert model.conversations[1][-1] == {"role": "assistant", "content": shown}
    assert model.bodies[1]["continue_final_message"] is True
    assert model.bodies[1]["add_generation_prompt"] is False
    assert "continue_final_message" not in model.bodies[0]


async def test_the_demo_engine_goes_on_exactly(deployment: Deployment) -> None:
    """Without a model server the demo engine continues its answer at the number where its worker was killed."""
    slow = {"AGENTSTREAM_DEMO_TOKEN_DELAY_MS": "20"}
    first = await deployment.worker("a", None, **slow)
    async with deployment.stream("count to 300") as stream:
        await stream.until(f'" {PAUSE_AT}"')
        await deployment.worker("b", None)
        await kill_worker(first)
        assert numbers_of(await stream.whole()) == list(range(1, 301))


async def test_an_answer_goes_on_when_its_worker_is_stopped(deployment: Deployment) -> None:
    """A worker that is told to stop during an inference hands the run over at once, and the answer goes on."""
    async with counting_model(PAUSE_AT) as model:
        first = await worker_of(deployment, model, AGENTSTREAM_DRAIN_TIMEOUT_S="600")
        async with deployment.stream(QUESTION) as stream:
            await stream.until(f'" {PAUSE_AT}"')
            await worker_of(deployment, model)
            assert await terminate(first) == 0
            messages = await stream.whole()
            assert numbers_of(messages) == list(range(1, LAST + 1))
            assert await deployment.replay(stream.run_id) == messages


@pytest.mark.parametrize(("tool", "calls"), [("once", 1), ("look", 2)])
async def test_a_tool_is_repeated_only_if_that_is_harmless(
    deployment: Deployment, tmp_path: Path, tool: str, calls: int
) -> None:
    """After a kill during a tool a read-only tool runs again; any other is reported to the model as interrupted."""
    settings = {"AGENTSTREAM_TOOLS": "losing_tools:tools", "TEST_TOOL_FOLDER": str(tmp_path)}
    async with counting_model() as model:
        first = await worker_of(deployment, model, **settings)
        async with deployment.stream(f"count to {LAST} with {tool}") as stream:
            await first.until(f"note {tool} runs")
            await worker_of(deployment, model, **settings)
            await kill_worker(first)
            messages = await stream.whole()
    assert numbers_of(messages) == list(range(1, LAST + 1))
    assert (tmp_path / tool).read_text() == "1\n" * calls
    named = [(name, data) for name, data in messages if name in {"tool_call_start", "tool_call_end"}]
    assert [name for name, _ in named] == ["tool_call_start", "tool_call_end"]
    (result,) = [message for message in model.conversations[-1] if message["role"] == "tool"]
    if calls == 1:
        assert result["content"].startswith(f"Error: the call of {tool} was interrupted")
    else:
        assert result["content"] == f"{tool} 1 is done"


def numbers_of(messages: list[Any]) -> list[int]:
    """Return the numbers of a stream that ends well."""
    assert error_of(messages) is None
    return [int(number) for number in "".join(texts(messages)).split()]
