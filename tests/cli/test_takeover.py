"""A run that another worker continues, on the command line: ``ps`` shows its checkpoint, and ``tail`` the takeover."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentstream.cli.terminal.display import Display
from agentstream.stream.sse import ReceivedFrame
from tests.cli.conftest import Deployment, eventually
from tests.faults.clients import http_client
from tests.processes import Process, Processes

AGENT = "tests.cli.cli_agents:teller"
SETTINGS = {"AGENTSTREAM_LEASE_S": "1"}


@pytest.fixture
async def resumable(processes: Processes, broker_url: str) -> AsyncIterator[Deployment]:
    """A front end without a worker."""
    url = await processes.frontend(**SETTINGS)
    async with http_client() as client:
        yield Deployment(url, broker_url, processes, client)


async def telling(deployment: Deployment, gate: Path) -> tuple[Process, str]:
    """Start a worker, and a run of its agent that waits until the gate is there; return both."""
    worker = await deployment.processes.worker(AGENT, GATE=str(gate), **SETTINGS)
    message = {"role": "user", "content": "tell"}
    status, run = await deployment.client.post(
        deployment.url, {"model": "agentstream", "messages": [message], "background": True}
    )
    assert status == 200, run
    return worker, str(run["id"])


async def listed(deployment: Deployment) -> dict[str, Any]:
    """Return the only run in the output of ``ps --json``."""
    (run,) = json.loads((await deployment.command("ps", "--json")).out)["runs"]
    return dict(run)


async def test_ps_shows_attempts_and_the_last_checkpoint(resumable: Deployment, tmp_path: Path) -> None:
    """``ps`` shows the position and the age of the last checkpoint, also while another worker continues the run."""
    worker, run = await telling(resumable, tmp_path / "gate")

    async def has_checkpoint() -> bool:
        return bool((await listed(resumable))["checkpoint"] == "1-3")  # after run_started and one text

    await eventually(has_checkpoint)
    found = await listed(resumable)
    assert found["run"] == run
    assert found["checkpoint_age_s"] in range(60)
    headings, row = (await resumable.command("ps")).out.splitlines()
    place = headings.index("CHECKPOINT")
    assert row[place:].split()[0].endswith("s")
    worker.kill()
    await resumable.processes.worker(AGENT, GATE=str(tmp_path / "gate"), **SETTINGS)

    async def continued() -> bool:
        return bool((await listed(resumable))["attempt"] == 2)

    await eventually(continued)
    assert (await listed(resumable))["checkpoint"] == "1-3"


async def test_ps_shows_a_run_without_a_checkpoint(resumable: Deployment) -> None:
    """Without a checkpoint, ``ps`` shows a dash, and null with ``--json``."""
    await resumable.client.post(
        resumable.url, {"model": "agentstream", "messages": [{"role": "user", "content": "x"}], "background": True}
    )
    found = await listed(resumable)
    assert (found["checkpoint"], found["checkpoint_age_s"]) == (None, None)
    headings, row = (await resumable.command("ps")).out.splitlines()
    assert row[headings.index("CHECKPOINT") :].split()[0] == "-"


async def test_tail_shows_that_another_worker_continues(resumable: Deployment, tmp_path: Path) -> None:
    """When the worker of a run is killed, ``tail`` says that another one continues it, and shows a whole answer."""
    gate = tmp_path / "gate"
    worker, run = await telling(resumable, gate)
    process = await resumable.begin("tail", run)
    await process.until("two")
    worker.kill()
    await resumable.processes.worker(AGENT, GATE=str(gate), **SETTINGS)
    gate.touch()
    assert await process.ended() == 0
    assert "another worker continues the run" in process.output
    again = await resumable.command("tail", run)
    assert again.out.split() == ["one", "two", "three"]
    assert again.err.count("another worker continues the run") == 1


def frame(position: str, delta: dict[str, Any], **fields: Any) -> ReceivedFrame:
    body = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **fields}
    return ReceivedFrame("message", json.dumps(body), position)


def test_only_an_agent_makes_a_takeover(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the first attempt nor the end of a run by another worker is shown as a run that goes on."""
    display = Display()
    display.receive(frame("0-0", {"role": "assistant"}))
    display.receive(frame("1-2", {"content": "a"}))
    display.receive(frame("2-2.1", {"content": "\n\n"}))
    display.receive(frame("2-2.2", {"content": "Sorry"}, agent_error={"code": "worker_lost"}))
    assert "another worker" not in capsys.readouterr().err
    display.receive(frame("3-2", {"content": "b"}))
    assert "another worker continues the run" in capsys.readouterr().err
