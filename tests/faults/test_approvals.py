"""The built-in agent with real processes: people approve its tools, and send it messages while its tools run."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.counting_model import CountingModel, counting_model
from tests.faults.deployment import Deployment, Message, error_of, kill_worker
from tests.faults.test_inputs import send, send_when_running
from tests.faults.test_interrupts import completed, resume
from tests.helpers import texts
from tests.processes import Process, Processes

QUESTION = "approval-call_1"
LAST = 20


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


@pytest.fixture
async def model() -> AsyncIterator[CountingModel]:
    """Serve a model."""
    async with counting_model() as served:
        yield served


async def worker_of(deployment: Deployment, model: CountingModel, folder: Path, **settings: str) -> Process:
    """Start a worker with the built-in agent and the tools."""
    tools = {"AGENTSTREAM_TOOLS": "losing_tools:tools", "TEST_TOOL_FOLDER": str(folder)}
    return await deployment.worker("w", None, OPENAI_BASE_URL=model.url, OPENAI_API_KEY="sk-test", **tools, **settings)


def check_numbers(messages: list[Message]) -> None:
    """Check that a stream has every number once."""
    assert error_of(messages) is None
    assert [int(number) for number in "".join(texts(messages)).split()] == list(range(1, LAST + 1))


def names_of(messages: list[Message]) -> list[str | None]:
    """Return the names of the events of tools and people, in order; None stands for the rest."""
    shown = {"interrupt", "tool_call_start", "tool_call_end", "input_applied"}
    return [name for name, _ in messages if name in shown]


@pytest.mark.parametrize("killed", [False, True], ids=["one worker", "another worker"])
@pytest.mark.parametrize("approve", [True, False], ids=["approved", "denied"])
async def test_a_tool_runs_only_if_a_person_approves_it(
    deployment: Deployment, model: CountingModel, tmp_path: Path, approve: bool, killed: bool
) -> None:
    """The run waits for an answer without a worker; then the tool runs, or the model reads that it was denied."""
    worker = await worker_of(deployment, model, tmp_path)
    async with deployment.stream(f"count to {LAST} with pay") as stream:
        first = await stream.whole()
    assert [asked["id"] for asked in first[-2][1]["interrupts"]] == [QUESTION]
    assert names_of(first) == ["interrupt"]
    assert not (tmp_path / "pay").exists()
    if killed:
        await kill_worker(worker)
        await worker_of(deployment, model, tmp_path)
    answer = {"approve": True} if approve else {"approve": False, "reason": "too dear"}
    status, rest = await resume(deployment, stream.run_id, {QUESTION: answer}, stream=True)
    assert (status, error_of(rest)) == (200, None)
    whole = await deployment.replay(stream.run_id)
    check_numbers(whole)
    assert names_of(whole) == ["interrupt", "tool_call_start", "tool_call_end"]
    assert (tmp_path / "pay").exists() is approve
    (result,) = [message for message in model.conversations[-1] if message["role"] == "tool"]
    denied = "Error: pay was not run: a person denied it, and wrote: too dear"
    assert result["content"] == ("pay 1 is done" if approve else denied)
    assert len(model.conversations) == 2, "an inference was repeated"
    usage = whole[-2][1]["usage"]
    assert usage == {"prompt_tokens": 10, "completion_tokens": LAST, "total_tokens": 10 + LAST}


async def test_a_tool_does_not_run_if_nobody_answers(
    deployment: Deployment, model: CountingModel, tmp_path: Path
) -> None:
    """When the question expires, the run goes on without the tool."""
    await worker_of(deployment, model, tmp_path, AGENTSTREAM_INTERRUPT_TIMEOUT_S="1")
    async with deployment.stream(f"count to {LAST} with pay") as stream:
        await stream.whole()
        await completed(deployment, stream.run_id)
    whole = await deployment.replay(stream.run_id)
    check_numbers(whole)
    assert not (tmp_path / "pay").exists()
    assert "nobody approved it in time" in str(model.conversations[-1])


async def test_a_deployment_asks_for_every_tool(deployment: Deployment, model: CountingModel, tmp_path: Path) -> None:
    """With the setting a tool that declares nothing needs approval, too."""
    await worker_of(deployment, model, tmp_path, AGENTSTREAM_APPROVE_TOOLS="on*")
    async with deployment.stream(f"count to {LAST} with once") as stream:
        assert names_of(await stream.whole()) == ["interrupt"]
    assert not (tmp_path / "once").exists()


async def test_a_message_during_a_tool_is_taken_in_the_next_turn(
    deployment: Deployment, model: CountingModel, tmp_path: Path
) -> None:
    """The model reads a message that came while a tool ran in its next turn, and two readers see it at one place."""
    await worker_of(deployment, model, tmp_path)
    async with deployment.stream(f"count to {LAST} with wait") as stream:
        await stream.until("event: tool_call_start")
        assert (await send_when_running(deployment, stream.run_id, "in a hurry"))[0] == 200
        async with asyncio.TaskGroup() as group:
            second = group.create_task(deployment.replay(stream.run_id))
            (tmp_path / "go").touch()
            messages = await stream.whole()
    assert second.result() == messages
    check_numbers(messages)
    assert names_of(messages) == ["tool_call_start", "tool_call_end", "input_applied"]
    names = [name for name, _ in messages]
    assert names.index("input_applied") < next(n for n, m in enumerate(messages) if " 4" in texts([m]))
    assert model.conversations[-1][-1] == {"role": "user", "content": "in a hurry"}


async def test_messages_for_a_killed_worker_are_applied_once(
    deployment: Deployment, model: CountingModel, tmp_path: Path
) -> None:
    """Messages that came before and after a worker was killed in a tool are applied once, by the next worker."""
    first = await worker_of(deployment, model, tmp_path)
    async with deployment.stream(f"count to {LAST} with look") as stream:
        await first.until("note look runs")
        assert (await send(deployment, stream.run_id, "one"))[0] == 200
        await kill_worker(first)
        assert (await send(deployment, stream.run_id, "two"))[0] == 200
        await worker_of(deployment, model, tmp_path)
        messages = await stream.whole()
    check_numbers(messages)
    assert names_of(messages) == ["tool_call_start", "tool_call_end", "input_applied"]
    applied: list[dict[str, Any]] = next(data for name, data in messages if name == "input_applied")["inputs"]
    assert [item["id"] for item in applied] == ["input-1", "input-2"]
    assert [message["content"] for message in model.conversations[-1][-2:]] == ["one", "two"]
