"""The examples that ask people: real processes, answers through any front end, and workers that are lost meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.adapters.model_server import ModelServer
from tests.faults.deployment import COMPLETIONS, Deployment, Message, error_of, kill_worker, said
from tests.helpers import TIMEOUT_S
from tests.processes import Process, Processes

pytestmark = pytest.mark.timeout(180)  # each test starts workers, which import a framework

EXAMPLES = ["langgraph_approval", "pydantic_ai_approval", "openai_agents_approval"]
QUESTION = "send_mail to bob"


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


@pytest.fixture(autouse=True)
def _the_model_sends(model: ModelServer) -> None:
    """Let the model call the tool of the examples."""
    model.tool, model.arguments = "send_mail", '{"to": "bob"}'
    model.go.set()


async def worker(deployment: Deployment, name: str, example: str, model: ModelServer, **settings: str) -> Process:
    """Start a worker with an example."""
    return await deployment.worker(
        name, f"{example}:agent", OPENAI_BASE_URL=f"{model.url}/v1", OPENAI_API_KEY="none", **settings
    )


async def asked(deployment: Deployment) -> tuple[str, dict[str, Any], list[Message]]:
    """Start a run that asks; return its id, its question and its stream, which ends when the run is put down."""
    async with deployment.stream(QUESTION) as stream:
        messages = await stream.whole()
        assert messages[-2][1].get("status") == "requires_action", messages
        (question,) = messages[-2][1]["interrupts"]
        return stream.run_id, question, messages


async def answer(deployment: Deployment, run_id: str, question: dict[str, Any], **decision: Any) -> dict[str, Any]:
    """Answer the question of a run, and return the completed run."""
    url = f"{deployment.url}{COMPLETIONS}/{run_id}/resume"
    timeout = aiohttp.ClientTimeout(3 * TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url, json={"answers": {question["id"]: decision}}) as response,
    ):
        assert response.status == 200, await response.text()
        completed: dict[str, Any] = await response.json()
        assert completed["status"] == "completed"
        return completed


def ends_of(messages: list[Message]) -> list[bool]:
    """Return whether the tools of a stream succeeded."""
    return [data["success"] for name, data in messages if name == "tool_call_end"]


def starts_of(messages: list[Message]) -> list[str]:
    """Return the names of the tools of a stream."""
    return [data["tool"] for name, data in messages if name == "tool_call_start"]


@pytest.mark.parametrize("example", EXAMPLES)
async def test_a_run_is_approved_after_its_worker_was_killed(
    deployment: Deployment, model: ModelServer, example: str
) -> None:
    """Approved on another front end after its worker was killed, the run goes on: each text and tool call once."""
    first = await worker(deployment, "a", example, model)
    run_id, question, begun = await asked(deployment)
    assert (question["kind"], question["payload"]["tool"]) == ("approval", "send_mail")
    assert "bob" in question["payload"]["arguments"]
    await kill_worker(first)
    await deployment.frontend()  # another one
    await worker(deployment, "b", example, model)
    completed = await answer(deployment, run_id, question, approve=True)
    whole = await deployment.replay(run_id)
    assert error_of(whole) is None
    text = "".join(said(whole)).replace("\n\n", "")
    assert text == completed["choices"][0]["message"]["content"].replace("\n\n", "")
    if example == "langgraph_approval":
        assert text == f"I sent: {QUESTION}"
        return
    assert text == "Let me look. It is sent to bob."
    assert "".join(said(begun)).startswith("Let me look. ")
    assert (starts_of(whole), ends_of(whole)) == (["send_mail"], [True])
    assert len(model.bodies) == 2  # nothing was asked twice
    assert completed["usage"] == {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}


@pytest.mark.parametrize("example", EXAMPLES)
async def test_a_denial_reaches_the_agent_with_its_reason(
    deployment: Deployment, model: ModelServer, example: str
) -> None:
    """After a denial the tool does not run, the agent reads the reason, and clients see that the call failed."""
    await worker(deployment, "a", example, model)
    run_id, question, _ = await asked(deployment)
    completed = await answer(deployment, run_id, question, approve=False, reason="bob is away")
    content = completed["choices"][0]["message"]["content"]
    assert "bob is away" in content
    assert "sent to bob" not in content
    if example != "langgraph_approval":
        assert ends_of(await deployment.replay(run_id)) == [False]


@pytest.mark.parametrize("example", EXAMPLES)
async def test_nobody_answers_in_time(deployment: Deployment, model: ModelServer, example: str) -> None:
    """If nobody answers in time, the agent goes on as after a denial, and reads why."""
    await worker(deployment, "a", example, model, AGENTSTREAM_INTERRUPT_TIMEOUT_S="1")
    run_id, _, _ = await asked(deployment)
    async with asyncio.timeout(2 * TIMEOUT_S):
        while (run := await deployment.retrieve(run_id))["status"] != "completed":  # noqa: ASYNC110 -- no event tells it
            await asyncio.sleep(0.1)
    assert "nobody answered in time" in run["choices"][0]["message"]["content"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_short(example: str) -> None:
    """An example has fewer than 20 lines of code, without comments and blank lines."""
    path = Path(__file__).parents[3] / "deploy" / "examples" / f"{example}.py"
    code = path.read_text().partition('"""\n')[2]
    assert 0 < len([line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]) < 20
