"""The command line when an agent asks people: chat, answer, tail, ps and cancel."""

import json
import re
import signal
from collections.abc import AsyncIterator

import pytest

from tests.cli.conftest import CommandResult, Deployment
from tests.cli.terminals import terminal
from tests.faults.clients import http_client
from tests.processes import ROOT, Processes


@pytest.fixture
async def asking(processes: Processes, broker_url: str) -> AsyncIterator[Deployment]:
    """A front end and a worker with the agent of tests/faults/asking_agents.py that can be put down."""
    url = await processes.frontend(AGENTSTREAM_LEASE_S="1")
    await processes.worker("tests.faults.asking_agents:asking", AGENTSTREAM_LEASE_S="1", PYTHONPATH=str(ROOT))
    async with http_client() as client:
        yield Deployment(url, broker_url, processes, client)


async def parked(deployment: Deployment, script: str = "once") -> str:
    """Start a run that waits for people; return its id."""
    result = await deployment.command("chat", script)
    assert result.code == 5, result.err
    return result.err.strip().rpartition(" ")[2]


async def listed(deployment: Deployment) -> dict[str, object]:
    """Return the only run of ``ps --json``."""
    (run,) = json.loads((await deployment.command("ps", "--json")).out)["runs"]
    return dict(run)


async def answered(deployment: Deployment, run: str, *arguments: str) -> CommandResult:
    """Answer a run."""
    return await deployment.command("answer", run, *arguments)


async def test_chat_asks_on_the_terminal_and_goes_on(asking: Deployment) -> None:
    """Chat asks whether a tool may run, takes the answer and its reason, and shows the rest of the answer."""
    async with terminal("chat", "once", "--url", asking.url) as screen:
        await screen.until_text(r"may I run send_mail")
        await screen.until_text(r"Approve\? \[y/n\]")
        screen.type("perhaps\n")
        await screen.until_text(r"answer y or n")
        screen.type("y\n")
        await screen.until_text(r"Reason \(optional\):")
        screen.type("\n")
        await screen.until_text(r"approved=True")
        assert await screen.ended() == 0
    assert "another worker" not in screen.output


async def test_chat_asks_for_the_fields_of_a_form(asking: Deployment) -> None:
    """Chat asks for each field of a form, says what is wrong with a value, and leaves optional fields out."""
    async with terminal("chat", "form", "--url", asking.url) as screen:
        await screen.until_text(r"city \(string\):")
        screen.type("O\n")
        await screen.until_text(r"expected at least 2 characters")
        screen.type("Oslo\n")
        await screen.until_text(r"days \(integer, optional\):")
        screen.type("soon\n")
        await screen.until_text(r"invalid literal")
        screen.type("\n")
        await screen.until_text(r"\{'city': 'Oslo'\}")
        assert await screen.ended() == 0


async def test_chat_asks_question_after_question(asking: Deployment) -> None:
    """Chat asks a second question of the same run, and takes free text."""
    async with terminal("chat", "twice", "--url", asking.url) as screen:
        for number, text in enumerate(("yes", "no")):
            await screen.until_text(rf"number {number}\?[^$]*Your answer:")
            screen.type(f"{text}\n")
            await screen.until_text(rf"(?m)^{text} ?$")
        assert await screen.ended() == 0


async def test_ctrl_c_at_a_question_leaves_the_run_open(asking: Deployment) -> None:
    """ctrl-C at a question says how to answer later; the run still waits, and can be answered."""
    async with terminal("chat", "once", "--url", asking.url) as screen:
        await screen.until_text(r"Approve\? \[y/n\]")
        screen.type("\x03")
        assert await screen.ended() == 130
    run = str((await listed(asking))["run"])
    assert f"agentstream answer {run}" in screen.output.replace("\r\n", " ").replace("  ", " ")
    result = await answered(asking, run, "--approve", "--tail")
    assert (result.code, result.out.split()[-2:]) == (0, ["before", "approved=True"])


async def test_chat_without_a_terminal_says_what_is_waited_for(asking: Deployment) -> None:
    """Without a terminal chat prints the answer so far and the question, and exits with 5."""
    result = await asking.command("chat", "once")
    assert (result.code, result.out) == (5, "before ")
    assert "may I run send_mail" in result.err
    assert "to answer: agentstream answer chatcmpl-" in result.err


async def test_answer_takes_json_and_text(asking: Deployment) -> None:
    """Answer sends JSON, or text that is not JSON as a string, and prints the state of the run."""
    run = await parked(asking, "both")
    result = await answered(asking, run, "a=42")
    assert result.out == f"requires_action  {run}  1 open question\n"
    result = await answered(asking, run, "b=green grass")
    assert (result.code, result.out.split()[1]) == (0, run)
    result = await asking.command("tail", run)
    assert result.out == "42+green grass \n"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nothing=1"], 4, "no interrupt 'nothing'"),
        (["form-1=Oslo"], 4, "expected an object"),
        (["form-1"], 2, "write ID=ANSWER"),
        (["--approve"], 2, "waits for no approval"),
        (["--reason", "x"], 2, "--reason needs"),
        ([], 5, "agentstream answer"),
    ],
)
async def test_wrong_answers_are_refused(asking: Deployment, arguments: list[str], code: int, expected: str) -> None:
    """A wrong answer gives an error that says why, and the run still waits."""
    run = await parked(asking, "form")
    result = await answered(asking, run, *arguments)
    assert (result.code, expected in result.err) == (code, True), result.err
    assert (await listed(asking))["state"] == "requires_action"


async def test_tail_waits_until_somebody_answers(asking: Deployment) -> None:
    """Tail shows the question and how to answer it, and shows the rest when the run goes on."""
    run = await parked(asking)
    tail = await asking.begin("tail", run)
    await tail.until(f"to answer it: agentstream answer {run}")
    assert (await answered(asking, run, "--deny", "--reason", "no")).code == 0
    assert await tail.ended() == 0
    assert "approved=False" in tail.output
    assert "another worker" not in tail.output


async def test_ps_shows_what_a_run_asks(asking: Deployment) -> None:
    """Ps lists a run that waits for people with its questions and the time that is left; a cancel removes it."""
    run = await parked(asking, "both")
    found = await listed(asking)
    assert (found["run"], found["state"], found["asks"]) == (run, "requires_action", ["question", "question"])
    assert isinstance(found["answer_by"], int)
    table = (await asking.command("ps")).out
    assert "requires_action" in table
    assert re.search(r"2 question \((23h59m|24h00m)\)", table)
    assert json.loads((await asking.command("ps", "--json")).out)["parked"] == {asking.processes.queue: 1}
    result = await asking.command("cancel", run)
    assert (result.code, result.out.split()[0]) == (0, "cancelled")
    assert json.loads((await asking.command("ps", "--json")).out)["parked"] == {asking.processes.queue: 0}


async def test_ctrl_c_on_tail_leaves_a_waiting_run(asking: Deployment) -> None:
    """ctrl-C ends tail while the run waits for people, and the run waits on."""
    run = await parked(asking)
    tail = await asking.begin("tail", run)
    await tail.until("to answer it")
    tail.send_signal(signal.SIGINT)
    assert await tail.ended() == 130
    assert (await listed(asking))["state"] == "requires_action"


async def test_chat_says_how_to_answer_an_agent_that_waits_in_its_worker(processes: Processes, broker_url: str) -> None:
    """If the agent cannot be put down, its stream stays open; chat says which command answers, and goes on."""
    url = await processes.frontend()
    await processes.worker("tests.faults.asking_agents:waiting_in_place", PYTHONPATH=str(ROOT))
    async with http_client() as client, terminal("chat", "once", "--url", url, columns=160) as screen:
        hint = await screen.until_text(r"to answer it: agentstream answer (chatcmpl-\w{32})")
        result = await Deployment(url, broker_url, processes, client).command("answer", hint[1], "--approve")
        assert (result.code, result.out.split()[0] in {"in_progress", "completed"}) == (0, True)  # it goes on at once
        await screen.until_text(r"approved=True")
        assert await screen.ended() == 0
