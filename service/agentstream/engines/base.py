"""The interface between the orchestrator and a language model."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from agentstream.errors import CONTEXT_LENGTH, MODEL_ERROR, UPSTREAM_FAILED, AgentError, mentions_context_length
from agentstream.protocol.openai import ChatCompletionRequest, Usage

# User messages that the orchestrator adds. The demo engine recognises SUMMARY_PROMPT by its exact text.
# CONTINUE_PROMPT follows an answer that was cut off, if the engine cannot continue an assistant's message.
CONTINUE_PROMPT: Final = "Your answer was cut off. Continue exactly where it stops. Do not repeat any of it."
REST_PROMPT: Final = "You were cut off. Continue exactly after these characters, and do not repeat them:"
SUMMARY_PROMPT: Final = (
    "You cannot call any more tools. Answer now with the results you have: say what you found, what you tried, and "
    "what is still missing."
)


class EngineError(AgentError):
    """The model could not answer. The message has the text of the model server.

    Without ``code`` it is a ``model_error`` with status 502. If the message says that the conversation is too long for
    the context window, the code is ``context_length_exceeded``.
    """

    def __init__(self, message: str = "", *, code: str | None = None, status: int | None = None) -> None:
        """``code`` and ``status`` are those of ``AgentError``; ``errors.upstream_failure`` gives both."""
        if code is None:
            too_long = mentions_context_length(message)
            code, status = (CONTEXT_LENGTH, status) if too_long else (MODEL_ERROR, status or UPSTREAM_FAILED)
        super().__init__(message, code=code, status=status)


@dataclass(frozen=True, slots=True)
class EngineToolCall:
    """A complete tool call of the model. ``arguments`` is JSON text as the model wrote it; it may be malformed."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class EngineToolCallDelta:
    """A piece of a tool call while the model writes it. ``position`` is the call's number in the turn, from 0.

    The first piece of a call has its ``name``, and its ``id`` if the model server sends one. Both are empty in later
    pieces. ``arguments`` is the next piece of the JSON text.
    """

    position: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDelta:
    """A piece of a streamed answer. The last piece has the ``finish_reason`` and the results of the whole turn.

    ``tool_calls`` are the complete calls. ``tool_call_deltas`` are pieces of the same calls, in the same order; an
    engine may omit them. ``echo`` are fields that the model server requires in the assistant's message of the next
    request.
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
    """The description of a tool for the model. ``parameters`` is a JSON schema of type object.

    ``definition`` is set for a client's tool: the definition that the client sent. It is passed on unchanged.
    """

    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    definition: dict[str, Any] | None = None

    def in_openai_form(self) -> dict[str, Any]:
        """Return the tool as an entry of ``tools`` in an OpenAI request."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return self.definition or {"type": "function", "function": function}


ToolChoice = str | dict[str, Any]


class Engine(Protocol):
    """A language model that answers one turn at a time.

    An engine may have an attribute ``supports_prefill``. If it is True, and the last of the ``messages`` is an
    assistant's message, then ``stream`` continues this message: it yields only the text that comes after it. Without
    the attribute, the orchestrator asks the model in words to continue an answer that was cut off.
    """

    name: str

    def stream(
        self,
        request: ChatCompletionRequest,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[ToolSchema],
        tool_choice: ToolChoice | None = None,
    ) -> AsyncIterator[EngineDelta]:
        """Yield the model's answer to ``messages``, which have OpenAI's form and include the run's earlier turns.

        ``request`` has the model name and the sampling parameters. ``tools`` and ``tool_choice`` (OpenAI's form) are
        for this turn. The last piece has the ``finish_reason``, the ``tool_calls`` and, if known, the ``usage``.
        Raises EngineError if the model fails. Closing the iterator closes the request to the model server.
        """
        ...

    async def close(self) -> None:
        """Close the connections to the model server."""
