"""``agentstream chat`` without QUESTION: a conversation in a terminal."""

from tests.cli.conftest import Deployment
from tests.cli.terminals import terminal
from tests.processes import ROOT, Processes

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


async def test_a_conversation_keeps_its_history(processes: Processes) -> None:
    """Each request has the earlier messages, ctrl-C stops only the answer, ctrl-D ends, and Up recalls a question."""
    url = await processes.frontend()
    await processes.worker("tests.cli.cli_agents:listener", PYTHONPATH=str(ROOT))
    async with terminal("chat", "--url", url) as shown:
        await shown.until_text(r"ctrl-D ends the conversation\.\n>$")
        shown.type("one\n")
        await shown.until_text(r"(?m)^heard one\n>$")
        shown.type("two\n")
        await shown.until_text(r"(?m)^heard one and two\n>$")
        shown.type("wait\n")
        await shown.until_text(r"heard one and two and wait")
        shown.type(CTRL_C)
        await shown.until_text(r"cancelled chatcmpl-\w+\n>$")
        shown.type("three\n")
        await shown.until_text(r"heard one and two and wait and three\n>$")
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
        await shown.until_text(r"(?m)^fine\n>$")
        shown.type(CTRL_D)
        assert await shown.ended() == 0


async def test_an_answer_cannot_control_the_terminal(deployment: Deployment) -> None:
    """Escape sequences in an answer are replaced, so they do not clear the screen or set its title."""
    async with terminal("chat", "--url", deployment.url) as shown:
        await shown.until_text(r"ctrl-D ends the conversation\.\n>$")
        shown.type('[["answer", "\\u001b[2J\\u001b]0;title\\u0007\\u009b2Jstill here"]]\n')
        await shown.until_text(r"still here\n>$")
        assert "\x1b[2J" not in shown.output
        assert "\x1b]0;" not in shown.output
        shown.type(CTRL_D)
        assert await shown.ended() == 0
