"""Tools of the user's own: functions and objects that a model can call."""

import asyncio
import contextvars
import threading
from typing import Any, ClassVar, Literal

import pytest

from agentstream.tools.base import ToolError, idempotent, read_only
from agentstream.tools.own_tools import PythonTool, as_tools
from agentstream.tools.toolbox import Toolbox, default_tools
from tests.helpers import TIMEOUT_S


async def weather(city: str, days: int = 1, unit: Literal["c", "f"] = "c") -> str:
    """Return the weather of a city.

    The city is a name.
    """
    await asyncio.sleep(0)
    return f"{city} {days} {unit}"


def plain(text: str) -> str:
    """Return a text and the thread."""
    return f"{text} in {threading.current_thread().name}"


def failing(text: str) -> str:
    message = f"no {text}"
    raise ValueError(message)


def exiting() -> str:
    raise SystemExit(3)


class Clock:
    """A tool written by hand."""

    name = "clock"
    description = "Returns the time."
    parameters: dict[str, Any] = {"type": "object", "properties": {}}  # noqa: RUF012 -- as users write it

    async def run(self, arguments: dict[str, Any]) -> str:
        """Return the time."""
        return f"noon {arguments}"


class Plain(Clock):
    def run(self, arguments: dict[str, Any]) -> str:  # type: ignore[override]  # the mistake of a user
        raise NotImplementedError


async def call(tool: object, arguments: str) -> tuple[str, bool]:
    """Call a tool through a toolbox; return its content and whether it succeeded."""
    (found,) = as_tools(tool)
    outcome = await Toolbox([found], timeout_s=TIMEOUT_S).call(found.name, arguments)
    return outcome.content, outcome.success


def test_a_function_describes_itself_to_the_model() -> None:
    """The name, the docstring and the type hints of a function become the description of its tool."""
    tool = PythonTool(weather)
    assert tool.name == "weather"
    assert tool.description == "Return the weather of a city.\n\nThe city is a name."
    assert tool.parameters["required"] == ["city"]
    assert {name: field["type"] for name, field in tool.parameters["properties"].items()} == {
        "city": "string",
        "days": "integer",
        "unit": "string",
    }


async def test_functions_are_called_with_the_arguments_of_the_model() -> None:
    """An async function runs on the event loop, and a plain function in a thread; defaults apply."""
    assert await call(weather, '{"city": "Oslo", "days": 2}') == ("Oslo 2 c", True)
    assert await call(plain, '{"text": "x"}') == ("x in tool plain", True)


async def test_a_plain_function_sees_the_context_of_its_caller() -> None:
    """Context variables of the caller reach a plain function, as they reach an async one."""
    user = contextvars.ContextVar("user", default="nobody")

    def asking() -> str:
        return user.get()

    user.set("ada")
    assert await call(asking, "{}") == ("ada", True)


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        (weather, "{}", "city is required"),
        (weather, '{"city": "Oslo", "planet": "Mars"}', "planet is unknown"),
        (weather, '{"city": "Oslo", "days": "many"}', "days must be integer"),
        (weather, '{"city": "Oslo", "unit": "k"}', 'unit must be one of ["c","f"]'),
        (failing, '{"text": "sun"}', "failing failed: ValueError: no sun"),
        (exiting, "{}", "exiting failed: RuntimeError: the tool raised SystemExit: 3"),
    ],
)
async def test_wrong_arguments_and_failures_are_told_to_the_model(tool: object, arguments: str, reason: str) -> None:
    """Wrong arguments and the errors of a function are the result of the call."""
    content, success = await call(tool, arguments)
    assert reason in content
    assert not success


async def test_arguments_inside_others_are_checked() -> None:
    """Wrong types inside an argument are refused before the function runs."""

    def total(prices: list[float]) -> str:
        raise NotImplementedError

    with pytest.raises(ToolError, match=r"wrong arguments: prices.1: Input should be a valid number"):
        await PythonTool(total).run({"prices": [1, "free"]})


async def test_objects_and_lists_are_tools() -> None:
    """An object with the methods of a tool is a tool, and a list of functions and objects is a list of tools."""
    assert await call(Clock(), "{}") == ("noon {}", True)
    assert await call(Clock().run, '{"arguments": {}}') == ("noon {}", True)
    assert [tool.name for tool in as_tools([weather, (Clock(), plain)])] == ["weather", "clock", "plain"]


def positional(text: str, /, *, other: str) -> None: ...


def many(*texts: str) -> None: ...


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Clock, "is the class Clock; name an object of it"),
        (Plain(), "has a method `run` that is not async"),
        (3, "is a int; write a function with type hints and a docstring"),
        ([weather, 3], "has a member that is a int"),
        (lambda text: text, "has the name '<lambda>'"),
        (positional, "parameters cannot be described to a model"),
        (many, "parameters that have no name"),
    ],
)
def test_what_is_no_tool_is_refused(found: object, reason: str) -> None:
    """An object that a model cannot call is refused with the reason."""
    with pytest.raises(TypeError, match=reason):
        as_tools(found)


# Calls that may be repeated


class Register:
    """A tool written by hand, which declares itself."""

    name = "register"
    description = "Register."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}}
    idempotent = True

    async def run(self, arguments: dict[str, Any]) -> str:
        return f"registered {arguments}"


class Library:
    """An object with a method that is a tool."""

    @read_only
    def find(self, title: str) -> str:
        """Find a book."""
        return f"{title} by {self}"


def truthy(text: str) -> str:
    """Return a text; its declaration is no bool."""
    return text


truthy.read_only = "no"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("tool", "repeatable"),
    [
        (plain, False),
        (read_only(lambda text: text), True),
        (idempotent(lambda text: text), True),
        (Library().find, True),
        (Register(), True),
        (Clock(), False),
        (truthy, False),
    ],
    ids=["undeclared", "read-only", "idempotent", "method", "object", "undeclared object", "no bool"],
)
def test_a_tool_declares_that_its_calls_may_be_repeated(tool: Any, repeatable: bool) -> None:
    """A call may be repeated only if the tool declares that it is read-only or idempotent."""
    if getattr(tool, "__name__", "") == "<lambda>":
        tool.__name__ = "named"
    (found,) = as_tools(tool)
    toolbox = Toolbox([found], TIMEOUT_S)
    assert toolbox.is_repeatable(found.name) is repeatable
    assert not toolbox.is_repeatable("unknown")


@pytest.mark.parametrize("tool", default_tools(read_url=True), ids=lambda tool: tool.name)
def test_the_built_in_tools_change_nothing(tool: Any) -> None:
    """Every built-in tool declares that it is read-only."""
    assert tool.read_only is True
