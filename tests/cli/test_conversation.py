"""``agentstream chat`` without a question: a conversation in a terminal."""

from tests.cli.conftest import Deployment
from tests.cli.terminals import terminal
from tests.processes import ROOT, Processes

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


async def test_a_conversation_is_remembered(processes: Processes) -> None:
    """Each question comes with what was said before; ctrl-C stops an answer only, ctrl-D ends, the up key recalls."""
    url = await processes.frontend()
    await processes.worker("tests.cli.cli_agents:listener", PYTHONPATH=str(ROOT))
    async with terminal("chat", "--url", url) as shown:
        await shown.until_text(r"ctrl-D ends\.\n>$")
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


async def test_what_fails_is_told_and_the_conversation_goes_on(deployment: Deployment) -> None:
    """A question that fails is told and forgotten, and the next one is answered without it."""
    async with terminal("chat", "--url", deployment.url) as shown:
        await shown.until_text(r"ctrl-D ends\.\n>$")
        shown.type('[["fail", "no luck"]]\n')
        await shown.until_text(r"error: Sorry, an error occurred: no luck\n>$")
        shown.type('[["answer", "fine"]]\n')
        await shown.until_text(r"(?m)^fine\n>$")
        shown.type(CTRL_D)
        assert await shown.ended() == 0


async def test_an_answer_does_not_govern_the_terminal(deployment: Deployment) -> None:
    """Escape sequences in an answer are shown as replaced: they neither clear the screen nor ring the bell."""
    async with terminal("chat", "--url", deployment.url) as shown:
        await shown.until_text(r"ctrl-D ends\.\n>$")
        shown.type('[["answer", "\\u001b[2J\\u001b]0;title\\u0007\\u009b2Jstill here"]]\n')
        await shown.until_text(r"still here\n>$")
        assert "\x1b[2J" not in shown.output
        assert "\x1b]0;" not in shown.output
        shown.type(CTRL_D)
        assert await shown.ended() == 0
