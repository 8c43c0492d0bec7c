"""Every value of the openai package's request types: it is accepted and kept, or refused by name."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextParams
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import ValidationError

from agentstream.errors import InvalidRequest
from agentstream.frontend.api.openapi import document
from agentstream.frontend.api.parsing import to_invalid_request
from agentstream.protocol.completions import CompletionRequest
from agentstream.protocol.older_forms import in_current_form
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.protocol.responses import ResponseRequest
from tests.unit.protocol.openai_types import fields_of, samples, texts_in

Body = dict[str, Any]
Accept = Callable[[Body], Any]

FUNCTION = {"name": "f"}
MESSAGE = {"role": "user", "content": "x"}
# Fields that make the value of another field valid.
CHAT_COMPANIONS: dict[str, Body] = {
    "function_call": {"functions": [FUNCTION]},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [{"type": "function", "function": FUNCTION}]},
}
RESPONSE_COMPANIONS: dict[str, Body] = {
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [{"type": "function", **FUNCTION}, {"type": "custom", "name": "g"}]},
}

# The only values that are refused, by the names in their errors.
CHAT_REFUSALS = {
    "audio",
    "logprobs",
    "messages[0].content[0]",  # input_audio and file
    "messages[0].tool_calls[0].type",  # custom
    "modalities",
    "store",
    "tool_choice",  # custom
    "tool_choice.allowed_tools.tools[0].function",
    "tools[0].type",  # custom
    "top_logprobs",
}
COMPLETION_REFUSALS = {"echo", "logprobs", "prompt", "suffix"}  # of prompts: tokens, and several
RESPONSE_REFUSALS = {
    "context_management",
    "conversation",
    "include",  # log probabilities
    "input[0].content[0]",  # input_file
    "input[0].content[0].image_url",  # an image without a URL
    "input[0].id",  # a reference to an item of another server
    "input[0].output[0]",  # input_file
    "input[0].output[0].image_url",
    "input[0].type",  # compaction_trigger
    "prompt",
    "tool_choice",  # tools that are not served
    "top_logprobs",
}
# Texts of input items that nobody gets: they have no meaning outside the server that wrote them.
LOST = {"id", "caller_id", "annotations", "logprobs", "encrypted_content"}


def accept_chat(body: Body) -> Any:
    """Return what the agent gets."""
    return in_current_form(ChatCompletionRequest.model_validate(body, strict=True)).model_dump(exclude_unset=True)


def accept_response(body: Body) -> Any:
    """Return what the agent gets, and what the response repeats."""
    request = ResponseRequest.model_validate(body, strict=True)
    history = [{"role": "user", "content": "x"}] if request.previous_response_id else []
    try:
        chat = request.as_chat({}, history)
    except ValidationError:
        raise
    except ValueError as exc:
        raise InvalidRequest(str(exc), param=str(exc).partition(":")[0]) from exc
    return [chat.model_dump(exclude_unset=True), request.echo()]


def accept_completion(body: Body) -> Any:
    """Return what the agent gets."""
    return CompletionRequest.model_validate(body, strict=True).as_chat().model_dump(exclude_unset=True)


def schema_of(name: str) -> Any:
    """Return the validator of a schema in the published OpenAPI document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    return jsonschema_rs.validator_for(schema)


CHAT = schema_of("ChatCompletionRequest")
COMPLETION = schema_of("CompletionRequest")
RESPONSE = schema_of("ResponseRequest")


def refusals(params: Any, companions: dict[str, Body], base: Body, accept: Accept, validator: Any) -> set[str]:
    """Return the params of all refusals. Assert that all other values are kept, and that the document agrees."""
    found = set()
    for field, kind in fields_of(params).items():
        for sample in samples(kind):
            value = [*sample, MESSAGE] if field == "input" and isinstance(sample, list) else sample
            body = json.loads(json.dumps({**base, **companions.get(field, {}), field: value}))
            try:
                kept = accept(body)
            except (ValidationError, InvalidRequest) as exc:
                error = exc if isinstance(exc, InvalidRequest) else to_invalid_request(exc, body)
                assert (error.param or "").startswith(field), error.message
                assert error.message.startswith(f"{error.param}: "), error.message
                assert not validator.is_valid(body), (sample, error.message)
                found.add(str(error.param))
            else:
                assert validator.is_valid(body), [str(problem) for problem in validator.iter_errors(body)][:3]
                assert lost_texts(sample, kept) == [], kept
    return found


def lost_texts(sample: Any, kept: Any) -> list[tuple[str, str]]:
    """Return the texts of an accepted sample that neither the agent nor the response has, without the known ones."""
    if isinstance(kept, list) and "ignored_tools" in kept[1]:  # tools that the response names
        assert all(tool["type"] in json.dumps(sample) for tool in kept[1]["ignored_tools"])
        return []
    text, known, sent = json.dumps(kept), LOST, json.dumps(sample)
    if '"tool_search_output"' in sent:
        known = LOST | {"call_id"}  # only its tools have a meaning
    elif '"reasoning"' in sent:
        known = LOST | {"summary", "content"}  # models do not see it again
    return [found for found in texts_in(sample) if found[1] not in text and known.isdisjoint(found[0].split("."))]


def test_every_value_of_a_chat_completion_request() -> None:
    """Each value that the openai package can send to chat completions reaches the agent or is refused by name."""
    base = {"model": "m1", "messages": [MESSAGE]}
    assert refusals(CompletionCreateParamsNonStreaming, CHAT_COMPANIONS, base, accept_chat, CHAT) == CHAT_REFUSALS


def test_every_value_of_a_completion_request() -> None:
    """Each value that the openai package can send to completions reaches the agent or is refused by name."""
    base = {"model": "m1", "prompt": "x"}
    companions: dict[str, Body] = {"stream_options": {"stream": True}}
    found = refusals(TextParams, companions, base, accept_completion, COMPLETION)
    assert found == COMPLETION_REFUSALS


def test_every_value_of_a_response_request() -> None:
    """Each value that the openai package can send to responses reaches the agent, or is named as ignored or refused."""
    base = {"model": "m1", "input": "x"}
    found = refusals(ResponseCreateParamsNonStreaming, RESPONSE_COMPANIONS, base, accept_response, RESPONSE)
    assert found == RESPONSE_REFUSALS
