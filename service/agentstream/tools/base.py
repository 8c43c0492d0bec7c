"""The interface of a tool, its error, and its declarations: calls may be repeated, or need a person's approval."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from agentstream.errors import AgentError

T = TypeVar("T", bound=Callable[..., Any])


class ToolError(AgentError):
    """A tool call failed. The message is the result of the call: the model reads it."""


class Tool(Protocol):
    """A function that the model can call.

    A tool may have the attributes ``read_only`` (it changes nothing) and ``idempotent`` (two calls with the same
    arguments have the same effect as one). Their meaning is that of ``readOnlyHint`` and ``idempotentHint`` in MCP. If
    a worker is lost during a call, the call is repeated only if one of them is True. With the attribute
    ``needs_approval`` a person is asked before each call.
    """

    @property
    def name(self) -> str:
        """The name that the model uses in its calls."""
        ...

    @property
    def description(self) -> str:
        """The description of the tool for the model."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments; its type is object."""
        ...

    async def run(self, arguments: dict[str, Any]) -> object:
        """Return the result for the model: text, or a value that is sent as JSON (see ``protocol.plain_json``).

        Raises ToolError, with a message for the model, if it fails.
        """
        ...


def read_only(tool: T) -> T:
    """Declare that a tool changes nothing: its calls may be repeated. A decorator for a function or a class."""
    tool.read_only = True  # type: ignore[attr-defined]
    return tool


def idempotent(tool: T) -> T:
    """Declare that repeated calls of a tool with the same arguments have the effect of one. A decorator."""
    tool.idempotent = True  # type: ignore[attr-defined]
    return tool


def needs_approval(tool: T) -> T:
    """Declare that a person must approve each call of a tool. A decorator for a function or a class."""
    tool.needs_approval = True  # type: ignore[attr-defined]
    return tool


def is_repeatable(tool: object) -> bool:
    """Return whether a call may be repeated after the loss of a worker: the tool is read-only or idempotent."""
    return getattr(tool, "read_only", False) is True or getattr(tool, "idempotent", False) is True
