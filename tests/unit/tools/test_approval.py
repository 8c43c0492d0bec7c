"""The rule which tools need a person's approval, and the toolbox that keeps to it."""

from typing import Any

import pytest

from agentstream.tools.approval import ApprovalRule
from agentstream.tools.base import needs_approval
from agentstream.tools.own_tools import as_tools
from agentstream.tools.postcard import Postcard
from agentstream.tools.toolbox import Toolbox
from tests.helpers import TIMEOUT_S
from tests.unit.agents.losing_runs import Effects


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ((), []),
        (("mail__send",), ["mail__send"]),
        (("mail__*", "look"), ["mail__send", "mail__list", "look"]),
        (("mail__?end",), ["mail__send"]),
        (("all",), ["mail__send", "mail__list", "look"]),
        (("destructive",), ["mail__send"]),
        (("MAIL__SEND",), []),
    ],
)
def test_the_rule_names_tools(entries: tuple[str, ...], named: list[str]) -> None:
    """An entry is a name, a pattern, or one of the two words."""
    tools = [Effects("mail__send"), Effects("mail__list"), Effects("look")]
    tools[0].destructive = True  # type: ignore[attr-defined]
    rule = ApprovalRule(entries)
    assert [tool.name for tool in tools if rule.needs_approval(tool)] == named


def test_a_tool_declares_that_it_needs_approval() -> None:
    """The declaration of a function or an object counts with every rule."""

    @needs_approval
    def delete(name: str) -> str:
        """Delete."""
        return name

    tools = as_tools([delete, Effects("pay", needs_approval=True), len_of])
    assert [ApprovalRule().needs_approval(tool) for tool in tools] == [True, True, False]
    assert ApprovalRule().needs_approval(Postcard())


def len_of(text: str) -> int:
    """Return a length."""
    return len(text)


async def test_the_toolbox_runs_no_tool_without_its_approval() -> None:
    """Whoever calls it, a tool that needs approval runs only if the call says that it was approved."""
    tool = Effects("pay")
    toolbox = Toolbox([tool], TIMEOUT_S, approval=ApprovalRule(["pay"]))
    refused = await toolbox.call("pay", '{"n": 1}')
    assert (refused.success, tool.calls) == (False, [])
    assert "needs the approval of a person" in refused.content
    assert (await toolbox.call("pay", '{"n": 1}', approved=True)).success
    assert tool.calls == [1]


def test_misspelt_names_are_found() -> None:
    """The toolbox knows which entries of the rule name none of its tools."""
    rule = ApprovalRule(["pay", "pya", "x__*", "all", "destructive"])
    assert Toolbox([Effects("pay")], TIMEOUT_S, approval=rule).unknown_in_approval() == ["pya", "x__*"]


async def test_the_demo_tool_sends_nothing() -> None:
    """The postcard of the demo engine says that nothing was sent."""
    arguments: dict[str, Any] = {"to": "Ada", "text": "hi"}
    assert "nothing was sent" in await Postcard().run(arguments)
