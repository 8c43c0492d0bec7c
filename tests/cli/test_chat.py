"""``agentstream chat`` with one question: output, errors and exit codes."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Deployment, agentstream, eventually, exists
from tests.faults.clients import Step
from tests.faults.resume_agents import cancelled_at


def question(*steps: Step) -> str:
    """Return the question that makes the scripted agent execute these steps."""
    return json.dumps(steps)


async def test_standard_output_has_only_the_answer(deployment: Deployment) -> None:
    """The answer goes to standard output, the agent's events to standard error, and the exit code is 0."""
    ended = await deployment.command("chat", question(["tool"], ["answer", "well done"]))
    assert (ended.code, ended.out) == (0, "well done\n")
    assert "echo -> 1 2" in ended.err


async def test_a_piped_question_is_one_question(deployment: Deployment) -> None:
    """Without QUESTION, the whole standard input is one question."""
    ended = await deployment.command("chat", stdin=question(["answer", "fine"]) + "\n")
    assert (ended.code, ended.out) == (0, "fine\n")


async def test_a_piped_question_has_a_size_limit(deployment: Deployment) -> None:
    """A question above the body limit of front ends is not sent, and the exit code is 2."""
    ended = await deployment.command("chat", stdin="x" * ((10 << 20) + 1))
    assert ended.code == 2
    assert "longer than 10485760 bytes" in ended.err


async def test_a_failed_run_is_an_error(deployment: Deployment) -> None:
    """A failed run gives exit code 1, with the reason on standard error and not in the answer."""
    ended = await deployment.command("chat", question(["say", 1], ["fail", "the roof fell in"]))
    assert ended.code == 1
    assert ended.err.endswith("error: Sorry, an error occurred: the roof fell in\n")
    assert "roof" not in ended.out


async def test_ctrl_c_cancels_the_run(deployment: Deployment, tmp_path: Path) -> None:
    """ctrl-C cancels the run in its worker, prints this, and gives exit code 130."""
    gate = tmp_path / "gate"
    process = await deployment.begin("chat", question(["say", 1], ["gate", str(gate)]))
    await process.until("0 ü")
    process.send_signal(signal.SIGINT)
    assert await process.ended() == 130
    assert "cancelled chatcmpl-" in process.output
    await eventually(exists(cancelled_at(gate)))


async def test_a_wrong_key_is_refused(deployment: Deployment) -> None:
    """A request that the front end refuses gives exit code 4 and the message of the front end."""
    url = await deployment.processes.frontend(AGENTSTREAM_API_KEYS="right")
    for key, code in (("wrong", 4), ("right", 0)):
        ended = await deployment.command("chat", question(["answer", "in"]), "--url", url, AGENTSTREAM_API_KEY=key)
        assert ended.code == code, ended
    refused = await deployment.command("chat", "hello", "--url", url)
    assert "no API key" in refused.err


async def test_an_unreachable_front_end(unused_tcp_port: int) -> None:
    """If it cannot connect, it prints the address and the command to start, and the exit code is 3."""
    ended = await agentstream("chat", "hello", "--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert ended.code == 3
    assert f"cannot connect to http://127.0.0.1:{unused_tcp_port}" in ended.err
    assert "agentstream up" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [["", "--url", "http://127.0.0.1:1"], ["hello", "--url", "nonsense"], ["hello", "--no-such-flag"]],
    ids=["no question", "no URL", "no such flag"],
)
async def test_wrong_arguments_are_refused(arguments: list[Any]) -> None:
    """A wrong argument gives exit code 2, as a wrong setting does, and no traceback."""
    ended = await agentstream("chat", *arguments)
    assert ended.code == 2
    assert "rror:" in ended.err
    assert "Traceback" not in ended.err


async def test_escape_sequences_do_not_reach_standard_error(deployment: Deployment) -> None:
    """The error of a run cannot control the terminal: control characters are replaced."""
    ended = await deployment.command("chat", question(["fail", "\x1b[2J\x07gone"]))
    assert "\x1b[2J" not in ended.err
    assert "gone" in ended.err


async def test_an_address_of_another_server(deployment: Deployment) -> None:
    """If another kind of server listens at the address, the command prints an error and the exit code is 3."""
    redis = deployment.redis_url.rpartition("@")[2].partition("/")[0]
    ended = await deployment.command("chat", "hello", "--url", f"http://{redis}")
    assert ended.code == 3
    assert "no answer from" in ended.err
    assert "Traceback" not in ended.err
