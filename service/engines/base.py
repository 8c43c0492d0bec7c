"""What the orchestrator needs of a language model."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from service.errors import AgentError
from service.protocol.openai import ChatCompletionRequest, Usage


class EngineError(AgentError):
    """The model could not answer. The text keeps the upstream status and words: clients' texts depend on it."""


@dataclass(frozen=True, slots=True)
class EngineToolCall:
    """A tool the model wants called. ``arguments`` is the model's JSON text, possibly malformed."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a streamed answer: text as it comes; on the last piece also what the turn came to."""

    text: str = ""
    tool_calls: Sequence[EngineToolCall] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool as the model is told of it. ``parameters`` is a JSON schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


class Engine(Protocol):
    """A language model, one turn at a time."""

    name: str

    def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
    ) -> AsyncIterator[Piece]:
        """Yield the model's answer to ``messages`` (OpenAI form, earlier turns of this run included).

        ``request`` gives the model name and sampling parameters. Text pieces come first; the last piece
        carries ``finish_reason``, the ``tool_calls`` and, if known, the ``usage``. Raises EngineError.
        Closing the iterator closes the upstream request.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
