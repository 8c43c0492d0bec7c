"""The OpenAPI document at ``/openapi.json``: made from the models that validate, so it cannot say something else."""

from typing import Any, Final, get_args

from aiohttp import web

from agentstream import __version__
from agentstream.errors import (
    BodyTimeout,
    BodyTooLarge,
    BrokerUnavailable,
    Conflict,
    ForbiddenHost,
    Gone,
    InvalidRequest,
    LimitReached,
    NotFound,
    RequestError,
    RunFailed,
    RunNotEnded,
    Unauthenticated,
    UnsupportedMediaType,
)
from agentstream.frontend.api.parsing import MAX_IDEMPOTENCY_KEY
from agentstream.protocol.completions import COMPLETION_PREFIX, CompletionRequest
from agentstream.protocol.events import CURSOR
from agentstream.protocol.jobs import RUN_ID
from agentstream.protocol.openai import ChatCompletionRequest, FinishReason
from agentstream.protocol.responses import ITEM_ID, RESPONSE_ID, SEQUENCE_NUMBER, ResponseRequest

_COMPONENTS: Final = "#/components/schemas/{model}"
_JSON: Final = "application/json"
# Printable ASCII; space around a header's value is no part of it.
_IDEMPOTENCY_KEY: Final = {"type": "string", "maxLength": MAX_IDEMPOTENCY_KEY, "pattern": "^[!-~]([ -~]*[!-~])?$"}
_POSITION: Final = {"type": "string", "pattern": f"^{CURSOR.pattern}$"}
# OpenAPI 3.1 cannot say that a body is a sequence; as in 3.2's itemSchema, this is one event of it.
_EVENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "one server-sent event: a chunk, an agent's event, [DONE], or a response's typed event",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}, "id": {"type": "string"}},
}
_NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
_STREAM: Final = {"text/event-stream": {"schema": _EVENT_SCHEMA}}

_ERROR_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        },
    },
}
_USAGE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
_MESSAGE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"], "description": "null if the message only calls tools of the client's"},
        "refusal": {"type": "null"},
        "reasoning_content": {"type": "string"},
        "tool_calls": {"type": "array", "minItems": 1, "items": {"$ref": _COMPONENTS.format(model="ToolCall")}},
    },
}
_CHOICE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["index", "message", "finish_reason"],
    "properties": {
        "index": {"const": 0},
        "message": _MESSAGE_SCHEMA,
        "logprobs": {"type": "null"},
        "finish_reason": {"enum": [*get_args(FinishReason), None]},
    },
}
_COMPLETION_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "status", "choices", "usage"],
    "properties": {
        "id": {"type": "string", "pattern": f"^{RUN_ID.pattern}$"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "status": {"enum": ["queued", "in_progress", "completed", "failed", "cancelled"]},
        "choices": {"type": "array", "minItems": 1, "items": _CHOICE_SCHEMA},
        "usage": {"$ref": _COMPONENTS.format(model="Usage")},
        "error": {"type": "object", "required": ["code", "message"]},
    },
}
_TEXT_COMPLETION_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string", "pattern": f"^{COMPLETION_PREFIX}[0-9a-f]{{32}}$"},
        "object": {"const": "text_completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "usage": {"$ref": _COMPONENTS.format(model="Usage")},
    },
}
_RESPONSE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "error", "incomplete_details", "model", "output", "usage"],
    "properties": {
        "id": {"type": "string", "pattern": f"^{RESPONSE_ID.pattern}$"},
        "object": {"const": "response"},
        "created_at": {"type": "integer"},
        "status": {"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
        "error": {"type": ["object", "null"], "required": ["code", "message"]},
        "incomplete_details": {"type": ["object", "null"], "required": ["reason"]},
        "model": {"type": "string"},
        "output": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "type", "status"],
                "properties": {
                    "id": {"type": "string", "pattern": f"^{ITEM_ID.pattern}$"},
                    "type": {"enum": ["message", "reasoning", "function_call"]},
                    "status": {"enum": ["in_progress", "completed", "incomplete"]},
                },
            },
        },
        "usage": {
            "type": ["object", "null"],
            "required": ["input_tokens", "output_tokens", "total_tokens"],
        },
    },
}
_RUN_ID: Final = {
    "name": "run_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{RUN_ID.pattern}$"},
}
_FORMAT: Final = {
    "name": "agent_events",
    "in": "query",
    "description": "how agent events are sent; also as header X-Agent-Events",
    "schema": {"enum": ["named", "raw", "chunk", "off"]},
}


def document() -> dict[str, Any]:
    """Return the document."""
    response_request = ResponseRequest.model_json_schema(ref_template=_COMPONENTS)
    request = ChatCompletionRequest.model_json_schema(ref_template=_COMPONENTS)
    text_request = CompletionRequest.model_json_schema(ref_template=_COMPONENTS)
    text_request["properties"]["prompt"].pop("type")  # it may be a list of one as well
    schemas = request.pop("$defs", {}) | text_request.pop("$defs", {}) | response_request.pop("$defs", {})
    schemas |= {
        "ChatCompletionRequest": request,
        "CompletionRequest": text_request,
        "ResponseRequest": response_request,
        "Response": _RESPONSE_SCHEMA,
        "Completion": _TEXT_COMPLETION_SCHEMA,
        "ChatCompletion": _COMPLETION_SCHEMA,
        "Usage": _USAGE_SCHEMA,
        "Error": _ERROR_SCHEMA,
    }
    run_errors = (InvalidRequest, Unauthenticated, BrokerUnavailable)
    own_run_errors = (*run_errors, NotFound)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentstream",
            "version": __version__,
            "description": "OpenAI-compatible chat completions, answered by agents in other processes.",
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/chat/completions": {
                "post": _operation(
                    "createChatCompletion",
                    "Run an agent; stream its answer, or wait for it",
                    {"200": _answer("ChatCompletion", streamed=True)},
                    _CREATE_ERRORS,
                    parameters=_CREATE_PARAMETERS,
                    body="ChatCompletionRequest",
                    extra_statuses=("504",),
                ),
            },
            "/v1/completions": {
                "post": _operation(
                    "createCompletion",
                    "The same for a prompt",
                    {"200": _answer("Completion", streamed=True)},
                    _CREATE_ERRORS,
                    parameters=_CREATE_PARAMETERS,
                    body="CompletionRequest",
                    extra_statuses=("504",),
                ),
            },
            "/v1/chat/completions/{run_id}": {
                "get": _operation(
                    "retrieveChatCompletion",
                    "The run as far as it is; with stream=true its stream from a position on",
                    {"200": _answer("ChatCompletion", streamed=True)},
                    (*own_run_errors, Gone),
                    parameters=[
                        _RUN_ID,
                        _FORMAT,
                        {"name": "stream", "in": "query", "schema": {"enum": ["true", "false"]}},
                        {"name": "starting_after", "in": "query", "schema": _POSITION},
                        _header("Last-Event-ID", _POSITION),
                    ],
                ),
            },
            "/v1/chat/completions/{run_id}/cancel": {
                "post": _operation(
                    "cancelChatCompletion",
                    "End a run; answers when it has ended",
                    {"200": _answer("ChatCompletion")},
                    (*own_run_errors, Gone, RunNotEnded),
                    parameters=[_RUN_ID],
                ),
            },
            **_responses_paths(),
            "/v1/models": {
                "get": _operation(
                    "listModels",
                    "The models that have a live worker",
                    {"200": _answer(None)},
                    (Unauthenticated, BrokerUnavailable),
                ),
            },
            "/v1/models/{model}": {
                "get": _operation(
                    "retrieveModel",
                    "One of them",
                    {"200": _answer(None)},
                    (Unauthenticated, NotFound, BrokerUnavailable),
                    parameters=[{**_RUN_ID, "name": "model", "schema": {"type": "string", "minLength": 1}}],
                ),
            },
            "/health/live": {"get": _operation("live", "The process answers", {"200": _answer(None)}, ())},
            "/health/ready": {
                "get": _operation("ready", "Requests can be taken", {"200": _answer(None), "503": _answer(None)}, ()),
            },
        },
    }


def _responses_paths() -> dict[str, Any]:
    run_errors = (InvalidRequest, Unauthenticated, BrokerUnavailable, NotFound, Gone)
    response_id = {
        **_RUN_ID,
        "name": "response_id",
        "schema": {"type": "string", "pattern": f"^{RESPONSE_ID.pattern}$"},
    }
    answer = {"200": _answer("Response", streamed=True)}
    return {
        "/v1/responses": {
            "post": _operation(
                "createResponse",
                "Run an agent; stream its answer as typed events, wait for it, or leave it to the background",
                answer,
                _CREATE_ERRORS,
                parameters=_CREATE_PARAMETERS,
                body="ResponseRequest",
                extra_statuses=("504",),
            ),
        },
        "/v1/responses/{response_id}": {
            "get": _operation(
                "retrieveResponse",
                "The run as far as it is; with stream=true its events from a sequence number on",
                answer,
                run_errors,
                parameters=[
                    response_id,
                    _FORMAT,
                    {"name": "stream", "in": "query", "schema": {"enum": ["true", "false"]}},
                    {"name": "starting_after", "in": "query", "schema": _NUMBER},
                    _header("Last-Event-ID", {"type": "string", "pattern": f"^{SEQUENCE_NUMBER.pattern}$"}),
                ],
            ),
        },
        "/v1/responses/{response_id}/cancel": {
            "post": _operation(
                "cancelResponse",
                "End a run; answers when it has ended",
                {"200": _answer("Response")},
                (*run_errors, RunNotEnded),
                parameters=[response_id],
            ),
        },
    }


def _operation(  # noqa: PLR0913 -- the fields of the wire object
    operation_id: str,
    summary: str,
    answers: dict[str, Any],
    errors: tuple[type[RequestError], ...],
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: str | None = None,
    extra_statuses: tuple[str, ...] = (),
) -> dict[str, Any]:
    responses = dict(answers)
    may_always: tuple[type[RequestError], ...] = (ForbiddenHost,)
    for status in [*(str(error.status) for error in errors + may_always), *extra_statuses]:
        responses.setdefault(status, _answer("Error"))
    operation: dict[str, Any] = {"operationId": operation_id, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        schema = {"$ref": _COMPONENTS.format(model=body)}
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return operation


def _answer(model: str | None, *, streamed: bool = False) -> dict[str, Any]:
    schema = {"$ref": _COMPONENTS.format(model=model)} if model else {"type": "object"}
    return {"description": model or "answer", "content": {_JSON: {"schema": schema}, **(_STREAM if streamed else {})}}


def _header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema}


_CREATE_ERRORS: Final = (
    InvalidRequest,
    Unauthenticated,
    BrokerUnavailable,
    BodyTimeout,
    BodyTooLarge,
    Conflict,
    Gone,
    LimitReached,
    NotFound,
    RunFailed,
    UnsupportedMediaType,
)
_CREATE_PARAMETERS: Final = [
    _FORMAT,
    _header("Idempotency-Key", _IDEMPOTENCY_KEY),
    _header("X-Agent-Errors", {"enum": ["text", "strict"]}),
]


async def show_openapi(_request: web.Request) -> web.Response:
    """GET /openapi.json: this document."""
    return web.json_response(_DOCUMENT)


_DOCUMENT: Final = document()


ROUTES: Final = [web.get("/openapi.json", show_openapi)]
