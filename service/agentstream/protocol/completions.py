"""OpenAI's older completions API: one prompt becomes one run, and the answer is one text.

The prompt becomes the only message of a chat completion request. The other fields keep their names.
"""

from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field

from agentstream.protocol.jobs import RUN_PREFIX
from agentstream.protocol.openai import ChatCompletionRequest, Refusals, SharedFields, TokenLimit

COMPLETION_PREFIX: Final = "cmpl-"


def completion_id(run_id: str) -> str:
    """Return the id of a run in this API: ``cmpl-`` and the run's 32 hex digits."""
    return COMPLETION_PREFIX + run_id.removeprefix(RUN_PREFIX)


def _one_prompt(value: object) -> object:
    """Return the prompt, or the only text of a list; raises ValueError for any other value."""
    if isinstance(value, list):
        if len(value) != 1:
            message = (
                f"expected one prompt, got a list of {len(value)} (several prompts, or tokens); "
                "send one request for each prompt, as text"
            )
            raise ValueError(message)
        value = value[0]
    if not isinstance(value, str):
        message = "must be text; tokens are not supported"
        raise ValueError(message)  # noqa: TRY004 -- pydantic reports ValueErrors only
    return value


_PROMPT_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
    ],
}
_OFF: Final = (None, False)


class CompletionRequest(SharedFields):
    """A validated ``POST /v1/completions`` body."""

    refused: ClassVar[Refusals] = {
        "best_of": ("only one answer is generated", (None, 1)),
        "echo": ("the prompt cannot be repeated in the answer", _OFF),
        "logprobs": ("log probabilities are not supported", (None,)),
        "suffix": ("insertion is not supported", (None, "")),
        "messages": ("use /v1/chat/completions", (None,)),
        "max_completion_tokens": ("use max_tokens", (None,)),
        "tools": ("use /v1/chat/completions", (None, [])),
        "tool_choice": ("use /v1/chat/completions", (None,)),
        "functions": ("use /v1/chat/completions", (None, [])),
        "function_call": ("use /v1/chat/completions", (None,)),
        "parallel_tool_calls": ("use /v1/chat/completions", (None,)),
        "response_format": ("use /v1/chat/completions", (None,)),
        "metadata": ("use /v1/chat/completions", (None,)),
        "reasoning_effort": ("use /v1/chat/completions", (None,)),
        "audio": ("use /v1/chat/completions", (None,)),
        "modalities": ("use /v1/chat/completions", (None,)),
        "top_logprobs": ("log probabilities are not supported", (None,)),
        "store": ("stored completions are not supported", _OFF),
        "background": ("use /v1/responses or /v1/chat/completions: a completion cannot be retrieved", _OFF),
    }

    prompt: Annotated[str, BeforeValidator(_one_prompt), Field(json_schema_extra=_PROMPT_SCHEMA)]
    max_tokens: TokenLimit | None = None

    def as_chat(self) -> ChatCompletionRequest:
        """Return the request as agents see it. Only fields that the client sent are set."""
        fields = self.model_dump(exclude_unset=True, exclude={"prompt", *self.refused})
        fields["messages"] = [{"role": "user", "content": self.prompt}]
        return ChatCompletionRequest.model_validate(fields, strict=True)


def text_completion_body(  # noqa: PLR0913 -- the fields of the wire object
    *, run_id: str, created: int, model: str, text: str, finish_reason: str | None, usage: dict[str, int]
) -> dict[str, Any]:
    """Return a ``text_completion`` object."""
    return {
        "id": completion_id(run_id),
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}],
        "usage": usage,
    }
