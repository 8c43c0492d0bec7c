"""Takeovers that go wrong: states that cannot be stored or read, runs that kill workers, and brokers that lose data."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.counting_agents import GATES
from tests.faults.deployment import Deployment, error_of, freeze, kill_worker, said, terminate
from tests.faults.faults import Broker, outage
from tests.faults.resumed import AGENTS, GATE, LAST, attempts_of, check_whole, checkpoint_of, worker_of
from tests.helpers import TIMEOUT_S
from tests.processes import Process, Processes

SMALL_LOG = {"AGENTSTREAM_LOG_MAX_BYTES": str(64 << 10)}
NOTHING = {"checkpoint": None, "checkpoint_at": None, "state": None}


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend()
        yield opened


def failure_of(messages: list[Any]) -> tuple[str, str]:
    """Return the code and the message of the error with which a stream ends."""
    error = messages[-2][1]["agent_error"]
    return error["code"], error["message"]


# -- states that cannot be stored or read ------------------------------------------------------------------


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    ("script", "complaint"),
    [("not json", r"run\.checkpoint: the state is not JSON: .*object"), ("large", r"has 1048578 bytes .* is 1048576")],
)
async def test_a_state_that_cannot_be_stored_fails_the_run(
    deployment: Deployment, agent: str, script: str, complaint: str
) -> None:
    """A state that is not JSON or too large fails the run with a clear error, and nothing of it is stored."""
    worker = await worker_of(deployment, "a", agent)
    async with deployment.stream(f"{script} to {LAST}") as stream:
        messages = await stream.whole()
        code, message = failure_of(messages)
        assert code == "invalid_agent_output"
        assert re.search(complaint, message)
        assert len(message) < 500
        assert said(messages) == [f"{number} " for number in range(1, 6)]
        assert await checkpoint_of(deployment, stream.run_id) == NOTHING
        assert b"run_checkpoint" not in b"".join(fields[b"b"] for _, fields in await deployment.log_of(stream.run_id))
    assert attempts_of(worker) == [1]


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_superseded_worker_changes_no_checkpoint(deployment: Deployment, agent: str) -> None:
    """A frozen worker that wakes after a takeover stores no checkpoint: the state stays that of the newer attempt."""
    first = await worker_of(deployment, "a", agent)
    deployment.open_gate(GATES[0])
    async with deployment.stream(f"gates to {LAST}") as stream:
        await stream.until(f'"{GATES[1]} "')
        with freeze(first):
            second = await worker_of(deployment, "b", agent)
            await second.until(rf"counts from {GATES[1] + 1}\b")
            deployment.open_gate(GATES[1])
            await stream.until(f'"{GATES[2]} "')
            stored = await checkpoint_of(deployment, stream.run_id)
            log = await deployment.log_of(stream.run_id)
        await first.until(rf"(the lease of the run was lost|was superseded).*{stream.run_id}")
        assert await checkpoint_of(deployment, stream.run_id) == stored
        assert await deployment.log_of(stream.run_id) == log
        assert str(stored["checkpoint"]).startswith("2-")
        assert str(stored["state"]).endswith(f'"state":{GATES[2] - 2}}}')
        deployment.open_gate(GATES[2])
        check_whole(await stream.whole())
    assert len(attempts_of(second)) == 1


async def test_a_state_that_the_agent_cannot_read_is_not_tried_for_ever(deployment: Deployment) -> None:
    """If a newer version of the agent cannot read the state, the run fails with resume_failed after one try."""
    first = await worker_of(deployment, "a")
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        later = [await worker_of(deployment, name, "newer") for name in ("b", "c")]
        await kill_worker(first)
        messages = await stream.whole()
        code, message = failure_of(messages)
        assert code == "resume_failed"
        assert "the agent could not continue the run" in message
        assert await deployment.field_of(stream.run_id, "status") == "failed"
        assert await deployment.field_of(stream.run_id, "state") == ""
    assert sum(worker.output.count("the agent failed") for worker in later) == 1
    assert said(messages) == [f"{number} " for number in range(1, len(said(messages)) + 1)]
    async with deployment.stream("count to 5") as stream:
        check_whole(await stream.whole(), 5)


# -- runs that kill workers --------------------------------------------------------------------------------


@pytest.mark.timeout(6 * TIMEOUT_S)
async def test_a_run_that_kills_workers_without_progress_is_given_up(deployment: Deployment) -> None:
    """A run whose resumed attempts crash at once is given up after two of them, and the next worker survives."""
    workers = [await worker_of(deployment, name) for name in "abcd"]
    async with deployment.stream(f"poison to {LAST}") as stream:
        messages = await stream.whole()
    code, message = failure_of(messages)
    assert (code, said(messages)) == ("worker_lost", [f"{number} " for number in range(1, 11)])
    assert "2 workers were lost" in message
    called = [worker for worker in workers if attempts_of(worker)]
    assert len(called) == 3
    for worker in called:
        assert await worker.ended() == -signal.SIGSEGV


@pytest.mark.timeout(6 * TIMEOUT_S)
async def test_a_run_with_progress_is_not_given_up(deployment: Deployment) -> None:
    """A run whose worker is lost more often than MAX_ATTEMPTS completes if each attempt makes progress."""
    workers = [await worker_of(deployment, name, AGENTSTREAM_MAX_ATTEMPTS="1") for name in "abcde"]
    async with deployment.stream("crash to 38") as stream:
        check_whole(await stream.whole(), 38)
        assert await deployment.field_of(stream.run_id, "attempt") == "4"
    assert sorted(first for worker in workers for first in attempts_of(worker)) == [1, 11, 21, 31]


# -- workers with another agent ----------------------------------------------------------------------------


async def test_an_agent_that_cannot_continue_is_not_called_after_text(deployment: Deployment) -> None:
    """If the next worker's version of the agent is not resumable, a run that showed text ends as worker_lost."""
    first = await worker_of(deployment, "a")
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        second = await worker_of(deployment, "b", "not_resumable")
        await kill_worker(first)
        messages = await stream.whole()
        assert error_of(messages) == "worker_lost"
        assert await deployment.replay(stream.run_id) == messages
    assert said(messages) == [f"{number} " for number in range(1, len(said(messages)) + 1)]
    assert attempts_of(second) == []


async def test_an_agent_that_cannot_continue_begins_a_silent_run_again(deployment: Deployment) -> None:
    """If a run stored a checkpoint but showed nothing, a version that is not resumable is called from the beginning."""
    first = await worker_of(deployment, "a", "silent")
    async with deployment.stream("count to 20") as stream:
        await first.until("counts from 1")
        second = await worker_of(deployment, "b", "not_resumable")
        await kill_worker(first)
        check_whole(await stream.whole(), 20)
        log = b"".join(fields[b"b"] for _, fields in await deployment.log_of(stream.run_id))
    assert b"resumes" not in log
    assert attempts_of(second) == [1]


async def test_an_agent_that_is_not_resumable_keeps_its_rule(deployment: Deployment) -> None:
    """Checkpoints of an agent that is not resumable change nothing: after text its run ends as worker_lost."""
    first = await worker_of(deployment, "a", "not_resumable")
    async with deployment.stream(f"gate to {LAST}") as stream:
        await stream.until(f'"{GATE} "')
        second = await worker_of(deployment, "b", "not_resumable")
        await kill_worker(first)
        assert error_of(await stream.whole()) == "worker_lost"
    assert attempts_of(second) == []
    assert first.output.count("makes checkpoints, but is not resumable") == 1


# -- brokers that forget -----------------------------------------------------------------------------------


async def padded(deployment: Deployment, script: str, **settings: str) -> tuple[list[Any], Process]:
    """Return the stream of a run whose worker was killed when the log was trimmed, and the next worker."""
    first = await worker_of(deployment, "a", **settings)
    async with deployment.stream(f"{script} to {LAST}") as stream:
        await stream.until(f'"{GATE}.')
        log = b"".join(fields[b"b"] for _, fields in await deployment.log_of(stream.run_id))
        assert b'"5.' not in log
        second = await worker_of(deployment, "b", **settings)
        await kill_worker(first)
        deployment.open_gate(GATE)
        return await stream.whole(), second


async def test_a_trimmed_log_is_continued_at_its_checkpoint(deployment: Deployment) -> None:
    """If the log lost the beginning of a run, its last checkpoint is enough to continue the run."""
    messages, second = await padded(deployment, "padded", **SMALL_LOG)
    assert error_of(messages) is None
    assert [int(piece.rstrip(". ")) for piece in said(messages)] == list(range(1, LAST + 1))
    assert attempts_of(second) == [GATE + 1]


async def test_a_trimmed_log_without_a_checkpoint_cannot_be_continued(deployment: Deployment) -> None:
    """If the log lost the beginning of a run that made no checkpoint, the run ends as worker_lost, and says why."""
    messages, second = await padded(deployment, "unsaved", **SMALL_LOG)
    code, message = failure_of(messages)
    assert code == "worker_lost"
    assert "was trimmed" in message
    assert attempts_of(second) == []


@pytest.fixture
async def lasting(tmp_path: Path) -> AsyncIterator[Broker]:
    """Run a broker that keeps its data over a restart."""
    async with Broker(tmp_path, append_only=True) as broker:
        yield broker


@pytest.fixture
async def forgetful(tmp_path: Path) -> AsyncIterator[Broker]:
    """Run a broker that comes back with its last snapshot, or empty."""
    async with Broker(tmp_path, append_only=False) as broker:
        yield broker


async def test_a_checkpoint_survives_a_restart_of_the_broker(lasting: Broker, tmp_path: Path) -> None:
    """If the broker is restarted between the loss of a worker and the takeover, the run continues."""
    async with (
        Processes(lasting.url, tmp_path) as processes,
        Deployment.open(processes, lasting.url, tmp_path) as deployment,
    ):
        await deployment.frontend()
        first = await worker_of(deployment, "a")
        async with deployment.stream(f"gate to {LAST}") as stream:
            await stream.until(f'"{GATE} "')
            await kill_worker(first)
            async with outage(lasting):
                pass
            second = await worker_of(deployment, "b")
            deployment.open_gate(GATE)
            check_whole(await stream.whole())
        assert attempts_of(second) == [GATE + 1]


async def test_a_worker_stores_lost_checkpoints_again(forgetful: Broker, tmp_path: Path) -> None:
    """If the broker falls back to an older snapshot, the worker stores log and checkpoint again for its successor."""
    async with (
        Processes(forgetful.url, tmp_path) as processes,
        Deployment.open(processes, forgetful.url, tmp_path) as deployment,
    ):
        await deployment.frontend()
        first = await worker_of(deployment, "a")
        async with deployment.stream(f"gates to {LAST}") as stream:
            await stream.until(f'"{GATES[0]} "')
            await forgetful.admin.save()
            deployment.open_gate(GATES[0])
            await stream.until(f'"{GATES[1]} "')
            run_id = stream.run_id
            stored = await checkpoint_of(deployment, run_id)
            async with outage(forgetful):
                pass
            async with asyncio.timeout(TIMEOUT_S):  # the worker stores it again when it has reconnected
                while not str((await checkpoint_of(deployment, run_id))["state"]).endswith('"state":40}'):  # noqa: ASYNC110 -- it is in Redis
                    await asyncio.sleep(0.05)
            deployment.open_gate(GATES[1])
            await stream.until(f'"{GATES[2]} "')
            assert str((await checkpoint_of(deployment, run_id))["state"]).endswith('"state":60}')
            assert str(stored["state"]).endswith('"state":40}')
            second = await worker_of(deployment, "b")
            await kill_worker(first)
            deployment.open_gate(GATES[2])
            messages = await stream.whole()
            check_whole(messages)
            assert await deployment.replay(run_id) == messages
        assert attempts_of(second) == [GATES[2] + 1]


async def test_a_run_whose_job_the_broker_lost_ends_when_its_worker_stops(forgetful: Broker, tmp_path: Path) -> None:
    """If the broker lost the job of a run, no worker can continue it: a stop of its worker ends it with an error."""
    async with (
        Processes(forgetful.url, tmp_path) as processes,
        Deployment.open(processes, forgetful.url, tmp_path) as deployment,
    ):
        await deployment.frontend()
        first = await worker_of(deployment, "a")
        async with deployment.stream(f"gate to {LAST}") as stream:
            await stream.until(f'"{GATE} "')
            async with outage(forgetful):
                pass
            assert await terminate(first) == 0
            messages = await stream.whole()
        assert error_of(messages) == "worker_shutdown"
        assert said(messages) == [f"{number} " for number in range(1, GATE + 1)]
