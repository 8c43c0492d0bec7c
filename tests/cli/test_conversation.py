"""``agentstream chat`` without QUESTION: a conversation in a terminal."""

import json
from pathlib import Path

from tests.cli.conftest import Deployment
from tests.cli.terminals import terminal
from tests.processes import ROOT, Processes

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


async def test_a_conversation_keeps_its_history(processes: Processes) -> None:
    """Requests have the earlier messages, answers their time; ctrl-C stops an answer, ctrl-D ends, Up recalls."""
    url = await processes.frontend()
    await processes.worker("tests.cli.cli_agents:listener", PYTHONPATH=str(ROOT))
    async with terminal("chat", "--url", url) as shown:
        await shown.until_text(r"ctrl-D ends the conversation\.\n>$")
        shown.type("one\n")
        await shown.until_text(r"(?m)^heard one\n  · \d+\.\d s, first text after \d+\.\d s\n>$")
        shown.type("two\n")
        await shown.until_text(r"(?m)^heard one and two\n  · .*\n>$")
        shown.type("wait\n")
        await shown.until_text(r"heard one and two and wait")
        shown.type(CTRL_C)
        await shown.until_text(r"cancelled chatcmpl-\w+\n>$")
        shown.type("three\n")
        await shown.until_text(r"heard one and two and wait and three\n  · .*\n>$")
        shown.type(UP)
        await shown.until_text(r"> three$")
        shown.type(CTRL_C)
        await shown.until_text(r"> three\S*\n>$")
        shown.type(CTRL_D)
        assert await shown.ended() == 0
    assert "Traceback" not in shown.output


async def test_a_conversation_continues_after_a_failed_question(deployment: Deployment) -> None:
    """A failed question prints its error, and the next request does not contain it."""
    async with terminal("chat", "--url", deployment.url) as shown:
        await shown.until_text(r"ctrl-D ends the conversation\.\n>$")
        shown.type('[["fail", "no luck"]]\n')
        await shown.until_text(r"error: Sorry, an error occurred: no luck\n>$")
        shown.type('[["answer", "fine"]]\n')
        await shown.until_text(r"(?m)^fine\n  · .*\n>$")
        shown.type(CTRL_D)
        assert await shown.ended() == 0


async def test_an_answer_cannot_control_the_terminal(deployment: Deployment) -> None:
    """Escape sequences in an answer are replaced, so they do not clear the screen or set its title."""
    async with terminal("chat", "--url", deployment.url) as shown:
        await shown.until_text(r"ctrl-D ends the conversation\.\n>$")
        shown.type('[["answer", "\\u001b[2J\\u001b]0;title\\u0007\\u009b2Jstill here"]]\n')
        await shown.until_text(r"still here\n  · .*\n>$")
        assert "\x1b[2J" not in shown.output
        assert "\x1b]0;" not in shown.output
        shown.type(CTRL_D)
        assert await shown.ended() == 0


async def test_the_commands_of_a_conversation(processes: Processes) -> None:
    """/help lists the commands, /new forgets the earlier messages, a mistyped command is no question, /exit ends."""
    url = await processes.frontend()
    await processes.worker("tests.cli.cli_agents:listener", PYTHONPATH=str(ROOT))
    async with terminal("chat", "--url", url) as shown:
        await shown.until_text(r"/help lists the commands[^>]*>$")
        shown.type("/help\n")
        await shown.until_text(r"(?m)^/new +forget the conversation(.*\n)+>$")
        shown.type("one\n")
        await shown.until_text(r"(?m)^heard one\n  · .*\n>$")
        shown.type("/hepl\n")
        await shown.until_text(r"there is no command /hepl; /help lists the commands\n>$")
        shown.type("/new\n")
        await shown.until_text(r"a new conversation\n>$")
        shown.type("/etc/two\n")
        await shown.until_text(r"(?m)^heard /etc/two\n  · .*\n>$")
        shown.type("/exit\n")
        assert await shown.ended() == 0


async def test_an_answer_is_wrapped_between_words(deployment: Deployment) -> None:
    """A streamed answer breaks between words at the width of the terminal, also after a resize."""
    async with terminal("chat", "--url", deployment.url, columns=60, rows=60) as shown:
        await shown.until_text(r">$")
        for word, columns in (("word", 60), ("item", 40)):
            shown.resize(60, columns)
            text = " ".join(f"{word}{number}" for number in range(30))
            shown.type(json.dumps([["answer", text]]) + "\n")
            await shown.until_text(rf"{word}29\n  · .*\n>$")
            question_end = max(number for number, line in enumerate(shown.lines) if '"]]' in line)
            answer = [line for line in shown.lines[question_end + 1 :] if line.startswith(word)]
            assert " ".join(answer) == text
            assert all(columns - 10 < len(line) < columns for line in answer[:-1])
        shown.type(CTRL_D)
        assert await shown.ended() == 0


async def test_a_run_that_somebody_cancels_is_no_error(deployment: Deployment, tmp_path: Path) -> None:
    """If the run is cancelled elsewhere, the conversation says so without an error and keeps the text so far."""
    gate = tmp_path / "gate"
    async with terminal("chat", "--url", deployment.url) as shown:
        await shown.until_text(r">$")
        shown.type(json.dumps([["say", 1], ["gate", str(gate)]]) + "\n")
        await shown.until_text(r"0 ü")
        (run,) = json.loads((await deployment.command("ps", "--json")).out)["runs"]
        assert (await deployment.command("cancel", run["run"])).code == 0
        await shown.until_text(r"(?m)^the run was cancelled\n>$")
        assert "rror" not in shown.output
        shown.type(CTRL_D)
        assert await shown.ended() == 0
