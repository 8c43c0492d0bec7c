"""Agents of real frameworks with a fake model server, through a worker, a front end and the openai client."""

import asyncio
import importlib.util
from contextlib import aclosing
from typing import Any

import pytest

from tests.adapters.conftest import EXAMPLES, StreamingClient, user
from tests.adapters.model_server import ModelServer
from tests.helpers import TIMEOUT_S
from tests.processes import Process, Processes

pytestmark = pytest.mark.timeout(180)  # each test starts workers, which import a framework

STREAMING = ["langgraph_agent", "pydantic_ai_agent", "openai_agents_agent"]
needs_openjarvis = pytest.mark.skipif(
    importlib.util.find_spec("openjarvis") is None, reason="openjarvis is not made for this version of Python"
)
OPENJARVIS = pytest.param("openjarvis_agent", marks=needs_openjarvis)
TURN = ["agent_turn_start", "inference_start", "inference_end", "tool_call_start", "tool_call_end"]


async def started(processes: Processes, model: ModelServer, example: str) -> tuple[StreamingClient, Process]:
    """Start a front end, and a worker with an example."""
    url, worker = await asyncio.gather(
        processes.frontend(),
        processes.worker(
            f"{example}:agent",
            OPENAI_BASE_URL=f"{model.url}/v1",
            OPENAI_API_KEY="none",
            OPENAI_COMPAT_HOST=model.url,
        ),
    )
    return StreamingClient(url), worker


@pytest.mark.parametrize("example", [*STREAMING, OPENJARVIS])
async def test_an_agent_streams_its_tools_its_text_and_its_usage(
    processes: Processes, model: ModelServer, example: str
) -> None:
    """The client receives the events in order, the text while the model writes, the tool's result and the usage."""
    client, _ = await started(processes, model, example)
    streams = example in STREAMING
    if not streams:
        model.go.set()
    history = [{"role": "system", "content": "Be brief."}, user("hello"), {"role": "assistant", "content": "Hello."}]
    got: list[tuple[str, Any]] = []
    async for kind, data in client.stream(*history, user("the weather in Oslo?")):
        got.append((kind, data))
        if data == "It is ":
            model.go.set()  # the model waits for this before it writes the rest
    kinds = [kind for kind, _ in got if kind not in {"text", "tool_results", "usage"}]
    assert kinds == [*TURN, "inference_start", "inference_end"]
    events = dict(got)
    assert "usage" in events["inference_end"]
    start, end = events["tool_call_start"], events["tool_call_end"]
    assert (start["tool"], start["arguments"].replace(" ", "")) == ("weather", '{"city":"Oslo"}')
    assert (end["tool"], end["success"], end["result"]) == ("weather", True, "sunny in Oslo")
    assert end["latency"] >= 0
    if streams:
        assert start["tool_call_id"] == end["tool_call_id"] == "call-oslo"
    (result,) = events["tool_results"]["results"]
    assert (result["tool_name"], result["success"], result["output"]) == ("weather", True, "sunny in Oslo")
    text = "".join(data for kind, data in got if kind == "text")
    assert text == ("Let me look. \n\n" if streams else "") + "It is sunny in Oslo."
    assert events["usage"].completion_tokens == 12
    reported = [data["usage"]["prompt_tokens"] for kind, data in got if kind == "inference_end"]
    assert events["usage"].prompt_tokens == sum(reported)
    if streams:  # OpenJarvis counts prompt tokens itself
        assert reported == [10, 20]
    sent = [(m["role"], m["content"]) for m in model.bodies[0]["messages"]]
    assert [(role, text if isinstance(text, str) else text[0]["text"]) for role, text in sent] == [
        ("system", "Be brief."), ("user", "hello"), ("assistant", "Hello."), ("user", "the weather in Oslo?"),
    ]  # fmt: skip


@pytest.mark.parametrize("example", [*STREAMING, OPENJARVIS])
async def test_an_exception_of_a_framework_ends_the_run_with_an_error(
    processes: Processes, model: ModelServer, example: str
) -> None:
    """If the model server refuses, the run fails with the server's message, and the worker serves the next run."""
    client, _ = await started(processes, model, example)
    model.go.set()
    got = [(kind, data) async for kind, data in client.stream(user("please refuse"))]
    assert got[-1][0] == "error"
    assert "400" in got[-1][1]["message"]
    assert got[-1][1]["code"] == "model_error"
    assert "error" not in [kind async for kind, _ in client.stream(user("the weather in Oslo?"))]


@pytest.mark.parametrize("example", STREAMING)
async def test_a_cancelled_run_closes_the_model_request(processes: Processes, model: ModelServer, example: str) -> None:
    """If the client disconnects while the model writes, the agent closes its request to the model server."""
    client, _ = await started(processes, model, example)
    async with aclosing(client.stream(user("hang"))) as stream:
        async for kind, _data in stream:
            if kind == "text":
                break
    async with asyncio.timeout(TIMEOUT_S):
        await model.client_gone.wait()


@needs_openjarvis
async def test_a_cancelled_openjarvis_run_publishes_nothing_more(processes: Processes, model: ModelServer) -> None:
    """The run ends at once and its thread at the next event, so that no tool runs and the worker goes on."""
    client, worker = await started(processes, model, "openjarvis_agent")
    async with aclosing(client.stream(user("hang, then the weather"))) as stream:
        async for kind, _data in stream:
            if kind == "inference_start":
                break
    await worker.until(r"its agent still runs")
    model.go.set()
    got = [kind async for kind, _ in client.stream(user("the weather in Oslo?"))]
    assert "tool_call_end" in got
    assert len(model.bodies) == 3


@needs_openjarvis
async def test_concurrent_openjarvis_runs_never_see_each_others_events(
    processes: Processes, model: ModelServer
) -> None:
    """Each of several concurrent runs gets only the events of its own agent."""
    client, _ = await started(processes, model, "openjarvis_agent")

    async def ask(number: int) -> list[str]:
        return [kind async for kind, _ in client.stream(user(f"weather {number}"))]

    runs = [asyncio.create_task(ask(number)) for number in range(5)]
    async with asyncio.timeout(TIMEOUT_S):
        while len(model.bodies) < 10:  # noqa: ASYNC110 -- all runs wait for the model's second answer
            await asyncio.sleep(0.01)
    model.go.set()
    for run in runs:
        got = [kind for kind in await run if kind not in {"text", "usage", "tool_results"}]
        assert got == [*TURN, "inference_start", "inference_end"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*_agent.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Any) -> None:
    """An example has fewer than 20 lines of code, without comments and blank lines."""
    code = path.read_text().partition('"""\n')[2]
    assert 0 < len([line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]) < 20
