"""``agentstream ps``, ``tail`` and ``cancel``, and the completion of run ids."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from agentstream.cli import following
from agentstream.cli.api_client import ApiClient
from agentstream.cli.exits import Unreachable
from agentstream.cli.terminal.display import Display
from tests.cli.conftest import CommandResult, Deployment, agentstream, eventually, exists
from tests.faults.clients import request
from tests.faults.resume_agents import cancelled_at
from tests.processes import ROOT


async def started(deployment: Deployment, *steps: Any, **fields: Any) -> str:
    """Start a background run and return its id."""
    status, run = await deployment.client.post(deployment.url, request(*steps, background=True, **fields))
    assert status == 200, run
    return str(run["id"])


def listed(ended: CommandResult) -> dict[str, dict[str, Any]]:
    """Return the runs in the output of ``ps --json``, by run id."""
    assert ended.code == 0, ended
    return {run["run"]: run for run in json.loads(ended.out)["runs"]}


# ps


async def test_ps_lists_open_runs(deployment: Deployment, tmp_path: Path) -> None:
    """``ps`` lists each open run with state, age, model, agent, tokens, events and worker, and no ended runs."""
    gate = tmp_path / "gate"
    ended_run = await started(deployment, ["answer", "done"])
    running = await started(deployment, ["say", 3], ["gate", str(gate)], model="org/model")

    async def listed_with_counts() -> bool:
        runs = listed(await deployment.command("ps", "--json"))
        return set(runs) == {running} and runs[running]["events"] == 4 and runs[running]["tokens"] == 3

    await eventually(listed_with_counts)
    run = listed(await deployment.command("ps", "--json"))[running]
    assert (run["state"], run["model"], run["attempt"]) == ("running", "org/model", 1)
    assert run["agent"] == "scripted"
    assert run["queue"] == deployment.processes.queue
    assert 0 <= run["age_s"] < 60
    assert run["worker"]
    table = (await deployment.command("ps")).out
    assert running in table
    assert "running" in table
    assert ended_run not in table


async def test_ps_without_runs_says_so(deployment: Deployment) -> None:
    """For an empty queue, ``ps`` prints the name of the queue, and the exit code is 0."""
    ended = await deployment.command("ps")
    assert (ended.code, ended.out) == (0, f"no open runs (queue {deployment.processes.queue})\n")


async def test_ps_shows_queue_and_state(deployment: Deployment) -> None:
    """``ps`` lists the runs of several queues; a run that no worker has claimed is queued with attempt 0."""
    agents = f"a=builtin@{deployment.processes.queue}-a,b=builtin@{deployment.processes.queue}-b"
    url = await deployment.processes.frontend(AGENTSTREAM_AGENTS=agents)
    runs = {}
    for model in ("a", "b"):
        _, run = await deployment.client.post(url, request(["say", 1], model=model, background=True))
        runs[run["id"]] = model
    found = listed(await deployment.command("ps", "--json", AGENTSTREAM_AGENTS=agents))
    assert {run: fields["queue"][-1] for run, fields in found.items()} == runs
    assert {(fields["state"], fields["attempt"], fields["events"]) for fields in found.values()} == {("queued", 0, 0)}


@pytest.mark.parametrize("command", ["ps", "doctor"])
@pytest.mark.parametrize(("redis_url", "code"), [("", 2), ("redis://127.0.0.1:1", 3), ("nonsense://", 2)])
async def test_ps_and_doctor_need_redis(command: str, redis_url: str, code: int) -> None:
    """Without a valid REDIS_URL the exit code is 2, and with an unreachable Redis 3, each with an explanation."""
    ended = await agentstream(command, REDIS_URL=redis_url)
    assert ended.code == code
    assert "Redis" in ended.err or "REDIS_URL" in ended.err
    assert "Traceback" not in ended.err


# tail


async def test_tail_shows_a_run_from_its_beginning_to_its_end(deployment: Deployment, tmp_path: Path) -> None:
    """``tail`` shows the text from before and after it attached as one answer, and also shows an ended run."""
    gate = tmp_path / "gate"
    run = await started(deployment, ["say", 2], ["gate", str(gate)], ["say", 1])
    process = await deployment.begin("tail", run)
    await process.until("1 ü")
    gate.touch()
    assert await process.ended() == 0
    assert process.output.count("0 ü") == 2
    again = await deployment.command("tail", run)
    assert (again.code, again.out) == (0, process.output)


async def test_tail_resumes_after_a_lost_connection(
    deployment: Deployment, tmp_path: Path, unused_tcp_port: int
) -> None:
    """When the front end is killed and restarted, ``tail`` loses no word and repeats none."""
    gate = tmp_path / "gate"
    settings = {"AGENTSTREAM_PORT": str(unused_tcp_port)}
    first = await deployment.processes.start("frontend", **settings)
    await first.until("serving on")
    run = await started(deployment, ["say", 3], ["gate", str(gate)], ["say", 2])
    process = await deployment.begin("tail", run, AGENTSTREAM_URL=f"http://127.0.0.1:{unused_tcp_port}")
    await process.until("2 ü")
    first.kill()
    await process.until("reconnecting")
    gate.touch()
    second = await deployment.processes.start("frontend", **settings)
    await second.until("serving on")
    assert await process.ended() == 0
    words = [line[0] for line in process.output.splitlines() if "ü" in line]
    assert words == ["0", "1", "2", "0", "1"]


async def test_tail_gives_up(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After too long without data, ``tail`` raises Unreachable, but only after a retry."""
    monkeypatch.setattr(following, "GIVE_UP_S", 0.6)
    frontend = await deployment.processes.start("frontend", AGENTSTREAM_PORT="0")
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    run = await started(deployment, ["say", 1], ["gate", str(tmp_path / "gate")])
    async with ApiClient(url, None) as api:
        task = asyncio.create_task(following.follow(api, run, display := Display(), wait_for_people=True))

        async def shown() -> bool:
            return bool(display.answer)

        await eventually(shown)
        frontend.kill()
        with pytest.raises(Unreachable, match="cannot connect"):
            await task


async def test_ctrl_c_on_tail_leaves_the_run_alone(deployment: Deployment, tmp_path: Path) -> None:
    """ctrl-C ends the command with exit code 130, and the run continues to its end."""
    gate = tmp_path / "gate"
    run = await started(deployment, ["say", 1], ["gate", str(gate)], ["say", 1])
    process = await deployment.begin("tail", run)
    await process.until("0 ü")
    process.send_signal(signal.SIGINT)
    assert await process.ended() == 130
    gate.touch()
    ended = await deployment.command("tail", run)
    assert (ended.code, ended.out.count("0 ü")) == (0, 2)


@pytest.mark.parametrize("command", ["tail", "cancel"])
async def test_an_unknown_run_is_refused(deployment: Deployment, command: str) -> None:
    """An unknown run id gives exit code 4 and an error with the id."""
    run = "chatcmpl-" + 32 * "0"
    ended = await deployment.command(command, run)
    assert ended.code == 4
    assert run in ended.err


async def test_tail_of_a_failed_run_exits_with_1(deployment: Deployment) -> None:
    """For a failed run, ``tail`` prints the reason, and the exit code is 1."""
    run = await started(deployment, ["fail", "no luck"])
    ended = await deployment.command("tail", run)
    assert ended.code == 1
    assert "no luck" in ended.err


# cancel


async def test_cancel_ends_a_run(deployment: Deployment, tmp_path: Path) -> None:
    """``cancel`` returns after the run has ended in its worker, prints this, and can be repeated."""
    gate = tmp_path / "gate"
    run = await started(deployment, ["say", 1], ["gate", str(gate)])
    process = await deployment.begin("tail", run)
    await process.until("0 ü")
    for _ in range(2):
        ended = await deployment.command("cancel", run)
        assert (ended.code, ended.out.split()[:2]) == (0, ["cancelled", run])
    await eventually(exists(cancelled_at(gate)))
    assert await process.ended() == 1
    assert "cancelled" in process.output


# completion


async def test_open_runs_are_completed(deployment: Deployment, tmp_path: Path) -> None:
    """Completion of `tail chatcmpl-` offers the open runs; without Redis it offers nothing and prints no error."""
    run = await started(deployment, ["gate", str(tmp_path / "gate")])
    words = {
        "_AGENTSTREAM_COMPLETE": "bash_complete",
        "COMP_WORDS": "agentstream tail chatcmpl-",
        "COMP_CWORD": "2",
        "PYTHONPATH": str(ROOT),
    }
    assert run in (await deployment.command(**words)).out
    assert (await deployment.command(**{**words, "REDIS_URL": "redis://127.0.0.1:1"})).out.strip() == ""
