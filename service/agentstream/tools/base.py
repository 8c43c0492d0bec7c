"""The interface of a tool, and its error."""

from typing import Any, Protocol

from agentstream.errors import AgentError


class ToolError(AgentError):
    """A tool call failed. The message is the result of the call: the model reads it."""


class Tool(Protocol):
    """A function that the model can call."""

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
