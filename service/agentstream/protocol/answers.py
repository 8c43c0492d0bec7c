"""The requests that people send to a run: answers to its interrupts, and messages while it works."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agentstream.protocol.openai import ChatMessage


class ResumeRequest(BaseModel):
    """A validated ``POST /v1/chat/completions/{id}/resume`` body.

    ``stream`` asks for the rest of the run as a stream. ``background`` asks for its state at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: dict[str, Any] = Field(
        min_length=1, max_length=100, description="the answers, each under the id of its interrupt; any JSON"
    )
    stream: bool | None = None
    background: bool | None = None


class InputRequest(BaseModel):
    """A validated ``POST /v1/chat/completions/{id}/input`` body: messages for a run that is going on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: list[ChatMessage] = Field(min_length=1, max_length=20, description="messages of the role `user`")
