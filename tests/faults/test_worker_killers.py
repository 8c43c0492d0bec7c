"""Agents that try to end or silence their worker: only their own run fails, and the log names them."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import Client, http_client
from tests.faults.worker_killers import ATTACKS
from tests.helpers import TIMEOUT_S, decode, texts
from tests.processes import Process, Processes

MODULE = "tests.faults.worker_killers"
# These attacks do not raise in the agent, so its run completes.
SURVIVED = {
    "stray_task_exit", "callback_exit", "generator_exit", "stop_loop_from_thread", "replace_executor",
    "cancel_all_tasks", "replace_signal_handlers", "disable_logging", "replace_logging", "replace_stderr",
    "warnings_as_errors", "disable_gc", "starve_interpreter", "change_policy", "change_folder", "block_exit",
    "fork_child",
}  # fmt: skip
# These change nothing that the worker must restore or refuse, so no line names them.
HARMLESS = {"warnings_as_errors", "change_folder", "block_exit", "fork_child", "replace_stderr", "cancel_all_tasks"}


def chat(model: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client with a time limit."""
    async with http_client() as opened:
        yield opened


@contextlib.asynccontextmanager
async def attacked(processes: Processes, client: Client, folder: Path) -> AsyncIterator[tuple[str, Process]]:
    """Yield the URL of a front end and a worker that runs a neighbour all the time; the neighbour must not notice."""
    gate = folder / "gate"
    agents = f"killer={MODULE}:killer, thread={MODULE}:killer_in_a_thread, neighbour={MODULE}:neighbour"
    url = await processes.frontend(AGENTSTREAM_AGENTS=agents)
    worker = await processes.worker(AGENTSTREAM_AGENTS=agents, GATE=str(gate))
    running = asyncio.create_task(client.whole(url, chat("neighbour", "", stream=True)))
    yield url, worker
    assert not running.done()
    gate.touch()
    async with asyncio.timeout(TIMEOUT_S):
        messages = decode(await running)
    assert messages[-2][1]["choices"][0]["finish_reason"] == "stop"
    assert "agent_error" not in messages[-2][1]
    numbers = [int(text) for text in texts(messages)]
    assert numbers == list(range(len(numbers)))


async def attack(client: Client, url: str, model: str, name: str) -> tuple[int, str]:
    """Return the status and the answer, or the error, of a run that attacks its worker."""
    async with asyncio.timeout(TIMEOUT_S):
        status, answer = await client.post(url, chat(model, name))
    if status == 200:
        return status, str(answer["choices"][0]["message"]["content"])
    return status, f"{answer['error']['code']}: {answer['error']['message']}"


async def test_an_agent_cannot_end_or_silence_its_worker(processes: Processes, client: Client, tmp_path: Path) -> None:
    """After each attack only the attacker's run has failed, the log names the agent, and SIGTERM still drains."""
    async with attacked(processes, client, tmp_path) as (url, worker):
        for name in ATTACKS:
            seen = len(worker.output)
            status, said = await attack(client, url, "killer", name)
            assert (status == 200) == (name in SURVIVED), f"{name}: {status} {said}\n{worker.output[seen:]}"
            if status != 200:
                assert status == 500, f"{name}: {said}"
                assert said.startswith("agent_error: "), f"{name}: {said}"
            if name not in HARMLESS:
                await worker.until(rf"(?s).{{{seen}}}.*(WARNING|ERROR)[^\n]*killer")
            assert await attack(client, url, "killer", "change_folder") == (200, "survived"), name
    worker.send_signal(signal.SIGTERM)
    assert await worker.ended(2 * TIMEOUT_S) == 0
    assert "an exit handler of an agent keeps it from its end" in worker.output


@pytest.mark.parametrize("name", ["exit", "os exit", "interrupt", "odd", "own loop", "kill"])
async def test_an_agent_in_a_thread_cannot_end_its_worker(
    processes: Processes, client: Client, tmp_path: Path, name: str
) -> None:
    """A plain agent that exits, raises or sends a signal to its worker fails only its own run."""
    async with attacked(processes, client, tmp_path) as (url, worker):
        status, said = await attack(client, url, "thread", name)
        assert (status, said.partition(":")[0]) == (500, "agent_error"), said
        await worker.until(r"ERROR.*agent")
        assert await attack(client, url, "thread", "thread") == (200, "survived")
