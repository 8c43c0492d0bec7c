"""``agentstream chat``: one question, its answer apart from all else, and an exit code that tells how it went."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Deployment, agentstream, eventually, exists
from tests.faults.clients import Step
from tests.faults.resume_agents import cancelled_at


def question(*steps: Step) -> str:
    """Return what makes the scripted agent take these steps."""
    return json.dumps(steps)


async def test_the_answer_is_apart_from_all_else(deployment: Deployment) -> None:
    """The answer alone is on standard output, what the agent does on standard error, and the exit code is 0."""
    ended = await deployment.command("chat", question(["tool"], ["answer", "well done"]))
    assert (ended.code, ended.out) == (0, "well done\n")
    assert "echo -> 1 2" in ended.err


async def test_a_piped_question_is_one_question(deployment: Deployment) -> None:
    """Without QUESTION the whole of standard input is asked."""
    ended = await deployment.command("chat", stdin=question(["answer", "fine"]) + "\n")
    assert (ended.code, ended.out) == (0, "fine\n")


async def test_a_piped_question_has_a_bound(deployment: Deployment) -> None:
    """More than a front end takes is refused before it is sent, with 2."""
    ended = await deployment.command("chat", stdin="x" * ((10 << 20) + 1))
    assert ended.code == 2
    assert "longer than 10485760 bytes" in ended.err


async def test_a_failed_run_is_told(deployment: Deployment) -> None:
    """A run that fails ends the command with 1 and its reason, none of it among the answer."""
    ended = await deployment.command("chat", question(["say", 1], ["fail", "the roof fell in"]))
    assert ended.code == 1
    assert ended.err.endswith("error: Sorry, an error occurred: the roof fell in\n")
    assert "roof" not in ended.out


async def test_ctrl_c_cancels_the_run(deployment: Deployment, tmp_path: Path) -> None:
    """ctrl-C ends the run in its worker, says so, and the exit code is 130."""
    gate = tmp_path / "gate"
    process = await deployment.begin("chat", question(["say", 1], ["gate", str(gate)]))
    await process.until("0 ü")
    process.send_signal(signal.SIGINT)
    assert await process.ended() == 130
    assert "cancelled chatcmpl-" in process.output
    await eventually(exists(cancelled_at(gate)))


async def test_a_wrong_key_is_refused(deployment: Deployment) -> None:
    """What the front end refuses ends with 4 and its own words."""
    url = await deployment.processes.frontend(AGENTSTREAM_API_KEYS="right")
    for key, code in (("wrong", 4), ("right", 0)):
        ended = await deployment.command("chat", question(["answer", "in"]), "--url", url, AGENTSTREAM_API_KEY=key)
        assert ended.code == code, ended
    refused = await deployment.command("chat", "hello", "--url", url)
    assert "no API key" in refused.err


async def test_a_front_end_that_is_not_there(unused_tcp_port: int) -> None:
    """Where nothing answers, it says where it looked and what to start, and ends with 3."""
    ended = await agentstream("chat", "hello", "--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert ended.code == 3
    assert f"nothing answers at http://127.0.0.1:{unused_tcp_port}" in ended.err
    assert "agentstream up" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [["", "--url", "http://127.0.0.1:1"], ["hello", "--url", "nonsense"], ["hello", "--no-such-flag"]],
    ids=["no question", "no URL", "no such flag"],
)
async def test_wrong_arguments_are_refused(arguments: list[Any]) -> None:
    """An argument that cannot be meant ends with 2, as a wrong setting does, and without a traceback."""
    ended = await agentstream("chat", *arguments)
    assert ended.code == 2
    assert "rror:" in ended.err
    assert "Traceback" not in ended.err


async def test_escape_sequences_do_not_reach_what_the_agent_does(deployment: Deployment) -> None:
    """A tool's name or a run's error cannot govern the terminal: control characters are shown as replaced."""
    ended = await deployment.command("chat", question(["fail", "\x1b[2J\x07gone"]))
    assert "\x1b[2J" not in ended.err
    assert "gone" in ended.err


async def test_what_is_no_front_end_is_told(deployment: Deployment) -> None:
    """An address where something else listens is told, and ends with 3."""
    redis = deployment.redis_url.rpartition("@")[2].partition("/")[0]
    ended = await deployment.command("chat", "hello", "--url", f"http://{redis}")
    assert ended.code == 3
    assert "no answer from" in ended.err
    assert "Traceback" not in ended.err
