"""Workers that are killed, frozen and stopped in the middle of a run."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.deployment import (
    LOSS_BOUND_S,
    SAID_BY_A,
    SAID_BY_B,
    Deployment,
    begun,
    ended,
    error_of,
    freeze,
    kill_worker,
    said,
    terminate,
)
from tests.processes import Processes


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


# -- killed ---------------------------------------------------------------------------------------------


async def test_run_is_tried_again_if_nothing_was_shown(deployment: Deployment) -> None:
    """If a worker is killed before its run showed anything, another worker completes the run, with each word once."""
    first = await deployment.worker("a")
    async with deployment.stream("silent on a") as stream:
        await begun(first, "silent")
        await stream.until("agent_turn_start")
        await deployment.worker("b")
        await kill_worker(first)
        messages = await stream.whole()
    assert error_of(messages) is None
    assert said(messages) == SAID_BY_B
    assert messages[-2][1]["usage"]["total_tokens"] == 8


async def test_killed_after_text_ends_with_an_error_in_time(deployment: Deployment) -> None:
    """If a worker is killed after its run showed text, the run ends as worker_lost in time, and no text is repeated."""
    first = await deployment.worker("a")
    async with deployment.stream("text on a") as stream:
        await stream.until(SAID_BY_A[-1])
        second = await deployment.worker("b")
        await kill_worker(first)
        async with asyncio.timeout(LOSS_BOUND_S):
            messages = await stream.whole()
        assert said(messages) == SAID_BY_A
        assert error_of(messages) == "worker_lost"
        assert await deployment.replay(stream.run_id) == messages
    assert "begins" not in second.output


async def test_tool_is_not_run_twice(deployment: Deployment) -> None:
    """If a worker is killed after its run called a tool, the run ends as worker_lost, and no agent is called again."""
    first = await deployment.worker("a")
    async with deployment.stream("tool on a") as stream:
        await stream.until("tool_call_start")
        second = await deployment.worker("b")
        await kill_worker(first)
        async with asyncio.timeout(LOSS_BOUND_S):
            messages = await stream.whole()
    assert error_of(messages) == "worker_lost"
    assert said(messages) == []
    assert [name for name, _ in messages].count("tool_call_start") == 1
    assert "begins" not in second.output


async def test_tool_is_run_again_with_retry_after_tools(deployment: Deployment) -> None:
    """With RETRY_AFTER_TOOLS another worker completes a run whose worker was killed after a tool call, before text."""
    first = await deployment.worker("a")
    async with deployment.stream("tool on a") as stream:
        await stream.until("tool_call_start")
        await deployment.worker("b", AGENTSTREAM_RETRY_AFTER_TOOLS="true")
        await kill_worker(first)
        messages = await stream.whole()
    assert error_of(messages) is None
    assert said(messages) == SAID_BY_B
    assert [name for name, _ in messages].count("tool_call_start") == 2


async def test_text_is_not_repeated_with_retry_after_tools(deployment: Deployment) -> None:
    """With RETRY_AFTER_TOOLS, too, a run that showed text is not tried again."""
    first = await deployment.worker("a")
    async with deployment.stream("text on a") as stream:
        await stream.until(SAID_BY_A[-1])
        await deployment.worker("b", AGENTSTREAM_RETRY_AFTER_TOOLS="true")
        await kill_worker(first)
        messages = await stream.whole()
    assert error_of(messages) == "worker_lost"
    assert said(messages) == SAID_BY_A


async def test_poison_job_kills_only_two_workers(deployment: Deployment) -> None:
    """A run that kills its workers is given up after two attempts, and the other run in the queue completes."""
    async with deployment.stream("poison") as poison, deployment.stream("answer") as innocent:
        workers = [await deployment.worker(name) for name in ("a", "b", "c")]
        assert error_of(poisoned := await poison.whole()) == "worker_lost"
        answered = await innocent.whole()
        assert "2 workers" in poisoned[-2][1]["agent_error"]["message"]
        assert (
            await deployment.field_of(poison.run_id, "attempt") == "3"
        )  # the third attempt stored the end and called no agent
    assert error_of(answered) is None
    assert said(answered) in (SAID_BY_A, SAID_BY_B, [f"c:{number} " for number in range(5)])
    begins = [worker.output.count("begins poison") for worker in workers]
    assert sorted(begins) == [0, 1, 1]
    survivor = workers[begins.index(0)]
    for worker in workers:
        if worker is not survivor:
            assert await worker.ended() == -signal.SIGSEGV
    again = await deployment.complete("answer")
    assert again["choices"][0]["finish_reason"] == "stop"
    await begun(survivor, "answer")


# -- frozen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "script", "stopped_by", "end"),
    [
        ("scripted", "ticks on a", "CancelledError|RunCancelled", "worker_lost"),
        ("scripted_in_a_thread", "ticks on a", "RunCancelled", "worker_lost"),
        ("scripted", "text on a", "CancelledError|RunCancelled", "worker_lost"),
        ("scripted", "silent on a", "CancelledError", None),
        ("scripted_in_a_thread", "silent on a", "RunCancelled", None),
    ],
)
async def test_frozen_worker_publishes_nothing_after_a_takeover(
    deployment: Deployment, agent: str, script: str, stopped_by: str, end: str | None
) -> None:
    """A worker that continues after a takeover publishes nothing, stops its agent, logs this, and takes new jobs."""
    first = await deployment.worker("a", f"loss_agents:{agent}")
    async with deployment.stream(script) as stream:
        run_id = await begun(first, script.removesuffix(" on a"))
        await stream.until("agent_turn_start" if script.startswith("silent") else "a:3 ")
        second = await deployment.worker("b")
        with freeze(first):
            messages = await stream.whole()
            log = await deployment.log_of(run_id)
    assert error_of(messages) == end
    assert await ended(first, run_id) in stopped_by.split("|")  # it depends on which comes first
    await first.until(rf"(the lease of the run was lost|attempt 1 of \S* was superseded).* run_id={run_id}")
    assert await deployment.log_of(run_id) == log
    assert await deployment.replay(run_id) == messages
    assert await terminate(second) == 0
    async with deployment.stream("answer") as stream:
        assert said(await stream.whole()) == SAID_BY_A


async def test_frozen_worker_does_not_disturb_the_next_attempt(deployment: Deployment) -> None:
    """A worker that continues while another worker runs its job does not disturb that attempt."""
    first = await deployment.worker("a")
    async with deployment.stream("gate") as stream:
        run_id = await begun(first, "gate")
        second = await deployment.worker("b")
        with freeze(first):
            await begun(second, "gate")
        assert await ended(first, run_id) == "CancelledError"
        await first.until(f"the lease of the run was lost run_id={run_id}")
        deployment.open_gate()
        messages = await stream.whole()
    assert error_of(messages) is None
    assert said(messages) == ["b", " passed"]
    assert await ended(second, run_id) == "completed"


# -- stopped --------------------------------------------------------------------------------------------


async def test_stopped_worker_hands_back_runs_that_showed_nothing(deployment: Deployment) -> None:
    """After the drain timeout a run that showed nothing goes to another worker, and a run with text ends."""
    first = await deployment.worker("a", AGENTSTREAM_DRAIN_TIMEOUT_S="0.2")
    async with deployment.stream("silent on a") as silent, deployment.stream("text on a") as shown:
        run_id = await begun(first, "silent")
        await shown.until(SAID_BY_A[-1])
        await deployment.worker("b", AGENTSTREAM_MAX_ATTEMPTS="1")
        assert await terminate(first) == 0
        cut, completed = await shown.whole(), await silent.whole()
    assert error_of(cut) == "worker_shutdown"
    assert said(cut) == SAID_BY_A
    assert error_of(completed) is None
    assert said(completed) == SAID_BY_B
    assert await deployment.field_of(run_id, "handed_back") == "1"


@pytest.mark.parametrize("script", ["gate", "text gate"])
async def test_stopped_worker_lets_its_runs_end(deployment: Deployment, script: str) -> None:
    """A run that ends within the drain timeout completes normally, and then the worker exits with 0."""
    worker = await deployment.worker("a", AGENTSTREAM_DRAIN_TIMEOUT_S="20")
    async with deployment.stream(script) as stream:
        await begun(worker, script)
        worker.send_signal(signal.SIGTERM)
        await worker.until("draining: 1 runs")
        deployment.open_gate()
        messages = await stream.whole()
    assert error_of(messages) is None
    assert said(messages) == (["a", " passed"] if script == "gate" else SAID_BY_A)
    assert await worker.ended() == 0


async def test_worker_whose_side_task_dies_exits_loudly(deployment: Deployment) -> None:
    """A worker whose heartbeat fails with an unexpected error prints the error, and exits with a failure code."""
    worker = await deployment.worker("a", TEST_BREAK_BEAT="1")
    assert await worker.ended() not in (0, 2)
    assert re.search(r"in broken\n.*\n +ValueError\n", worker.output)
