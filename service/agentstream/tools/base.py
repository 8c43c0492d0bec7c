"""What a tool is."""

from typing import Any, Protocol

from agentstream.errors import AgentError


class ToolError(AgentError):
    """A tool could not do what was asked; the message goes back to the model as the result."""


class Tool(Protocol):
    """A named function with JSON-schema parameters."""

    @property
    def name(self) -> str:
        """What the model calls it."""
        ...

    @property
    def description(self) -> str:
        """What it does, in words for the model."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON schema, of type object, of its arguments."""
        ...

    async def run(self, arguments: dict[str, Any]) -> str:
        """Return the result as text; raises ToolError with words for the model."""
        ...
