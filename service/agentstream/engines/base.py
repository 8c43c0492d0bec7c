"""What the orchestrator needs of a language model."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from agentstream.errors import AgentError
from agentstream.protocol.openai import ChatCompletionRequest, Usage

# What the orchestrator says in the user's place; engines that are no language model know it by these words.
CONTINUE_PROMPT: Final = "Your answer was cut off. Go on exactly where it stops, without repeating any of it."
SUMMARY_PROMPT: Final = (
    "You cannot call any more tools. Answer now with what you have: say what was found, what was tried, and what is "
    "still missing."
)


class EngineError(AgentError):
    """The model could not answer. The text keeps the upstream status and words: clients' texts depend on it."""


@dataclass(frozen=True, slots=True)
class EngineToolCall:
    """A tool the model wants called. ``arguments`` is the model's JSON text, possibly malformed."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class EngineToolCallDelta:
    """A piece of a tool call as it comes. ``position`` counts the turn's calls from 0.

    ``name`` is there with a call's first part, and so is ``id`` if the model server gives one; empty later.
    """

    position: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDelta:
    """A part of a streamed answer: what comes as it comes; on the last piece also what the turn came to.

    ``tool_call_deltas`` are pieces of what ``tool_calls`` holds whole, in the same order; an engine may leave them out.
    ``echo`` are fields that the model server wants to see again in the turn's message when it is asked on.
    """

    text: str = ""
    reasoning: str = ""
    tool_call_deltas: Sequence[EngineToolCallDelta] = ()
    tool_calls: Sequence[EngineToolCall] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    echo: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool as the model is told of it. ``parameters`` is a JSON schema of type object.

    ``definition`` is a client's own tool as the client sent it, to be passed on as it is.
    """

    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    definition: dict[str, Any] | None = None

    def in_openai_form(self) -> dict[str, Any]:
        """Return the tool as a request's ``tools`` holds it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return self.definition or {"type": "function", "function": function}


ToolChoice = str | dict[str, Any]


class Engine(Protocol):
    """A language model, one turn at a time."""

    name: str

    def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None = None,
    ) -> AsyncIterator[EngineDelta]:
        """Yield the model's answer to ``messages`` (OpenAI form, earlier turns of this run included).

        ``request`` gives the model name and sampling parameters; ``tools`` and ``tool_choice`` (OpenAI form) hold
        for this turn. The last piece carries ``finish_reason``, the ``tool_calls`` and, if known, the ``usage``.
        Raises EngineError. Closing the iterator closes the upstream request.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
