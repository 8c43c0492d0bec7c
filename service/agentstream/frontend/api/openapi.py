"""The OpenAPI document at ``/openapi.json``. It contains the models that validate requests, so the two always agree."""

from typing import Any, Final

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
from agentstream.frontend.api.caller_headers import ANSWER_KEYS_HEADER, MAX_ANSWER_KEYS
from agentstream.frontend.api.openapi_schemas import (
    CHAT_COMPLETION,
    COMPONENTS,
    CURSOR_ID,
    ERROR,
    EVENT,
    IDEMPOTENCY_KEY,
    INPUTS,
    INTERRUPT,
    RESPONSE,
    SEQUENCE_NUMBER_ID,
    TEXT_COMPLETION,
    USAGE,
)
from agentstream.protocol.answers import InputRequest, ResumeRequest
from agentstream.protocol.completions import CompletionRequest
from agentstream.protocol.events import EVENT_TYPE
from agentstream.protocol.jobs import RUN_ID
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.protocol.requested_events import MAX_TYPES
from agentstream.protocol.response_items import RESPONSE_ID
from agentstream.protocol.responses import SEQUENCE_NUMBER, ResponseRequest

_JSON: Final = "application/json"
_EVENT_TYPE: Final = EVENT_TYPE.pattern
_STREAM: Final = {"text/event-stream": {"schema": EVENT}}

_RUN_ID: Final = {
    "name": "run_id",
    "in": "path",
    "description": "The id of a chat completion.",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{RUN_ID.pattern}$"},
}
_FORMAT: Final = {
    "name": "agent_events",
    "in": "query",
    "description": (
        "The format of agent events in a stream. `named`: an event with its name, whose data is also a valid empty "
        "chunk. `raw`: an event with its name and only its own data. `chunk`: an empty chunk with the event in "
        "`agent_event`. `off`: no agent events. You may send the same values in the header X-Agent-Events; if you send "
        "both, the query wins. The "
        "default for chat completions is `named`, or `chunk` for old versions of the OpenAI SDKs. The default for the "
        "other APIs is `off`. The Responses API has one format for agent events, so all values except `off` are equal "
        "there."
    ),
    "schema": {"enum": ["named", "raw", "chunk", "off"]},
}
_EVENT_TYPES: Final = {
    "name": "agent_event_types",
    "in": "query",
    "description": (
        "Types of the agent's own events that the stream contains beside the usual ones: names separated by commas, at "
        f"most {MAX_TYPES}, or `all`. You may send the same list in the header X-Agent-Event-Types; if you send both, "
        "the query wins. The default is the setting AGENTSTREAM_EVENT_TYPES of the server, usually none. For the APIs "
        "whose default of agent_events is `off`, a list also turns agent events on."
    ),
    "schema": {"type": "string", "pattern": f"^({_EVENT_TYPE}( *, *{_EVENT_TYPE}){{0,{MAX_TYPES - 1}}})?$"},
}
_STREAMED: Final = {
    "name": "stream",
    "in": "query",
    "description": "true: stream the run as server-sent events. false (default): return its current state as JSON.",
    "schema": {"enum": ["true", "false"]},
}
_LAST_EVENT_ID: Final = "The same as starting_after. If both are sent, starting_after wins."


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    response_request = ResponseRequest.model_json_schema(ref_template=COMPONENTS)
    request = ChatCompletionRequest.model_json_schema(ref_template=COMPONENTS)
    text_request = CompletionRequest.model_json_schema(ref_template=COMPONENTS)
    text_request["properties"]["prompt"].pop("type")  # it may also be a list with one text
    schemas = request.pop("$defs", {}) | text_request.pop("$defs", {}) | response_request.pop("$defs", {})
    schemas |= {
        "ChatCompletionRequest": request,
        "CompletionRequest": text_request,
        "ResponseRequest": response_request,
        "Response": RESPONSE,
        "Completion": TEXT_COMPLETION,
        "ChatCompletion": CHAT_COMPLETION,
        "Usage": USAGE,
        "Error": ERROR,
        "Interrupt": INTERRUPT,
        "Inputs": INPUTS,
        "ResumeRequest": ResumeRequest.model_json_schema(ref_template=COMPONENTS),
    }
    input_request = InputRequest.model_json_schema(ref_template=COMPONENTS)
    schemas |= input_request.pop("$defs", {}) | {"InputRequest": input_request}
    run_errors = (InvalidRequest, Unauthenticated, BrokerUnavailable)
    own_run_errors = (*run_errors, NotFound)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentstream",
            "version": __version__,
            "description": (
                "OpenAI-compatible chat completions, text completions and responses. Agents in other processes produce "
                "the answers."
            ),
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Required if the server has API keys."},
            },
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/chat/completions": {
                "post": _operation(
                    "createChatCompletion",
                    "Run an agent for a conversation; stream the answer, wait for it, or run in the background",
                    {"200": _answer("ChatCompletion", "The completion, or its stream", streamed=True)},
                    _CREATE_ERRORS,
                    parameters=_CREATE_PARAMETERS,
                    body="ChatCompletionRequest",
                    extra_statuses=("502", "504"),
                ),
            },
            "/v1/completions": {
                "post": _operation(
                    "createCompletion",
                    "Run an agent for one prompt; stream the answer, or wait for it",
                    {"200": _answer("Completion", "The completion, or its stream", streamed=True)},
                    _CREATE_ERRORS,
                    parameters=_CREATE_PARAMETERS,
                    body="CompletionRequest",
                    extra_statuses=("502", "504"),
                ),
            },
            "/v1/chat/completions/{run_id}": {
                "get": _operation(
                    "retrieveChatCompletion",
                    "Return the current state of a run; with stream=true, stream it from the start or after a cursor",
                    {"200": _answer("ChatCompletion", "The run so far, or its stream", streamed=True)},
                    (*own_run_errors, Gone),
                    parameters=[
                        _RUN_ID,
                        _FORMAT,
                        _EVENT_TYPES,
                        _STREAMED,
                        {
                            "name": "starting_after",
                            "in": "query",
                            "description": (
                                "With stream=true: the id of the last event that you received. The stream continues "
                                "after it. Without it, the stream starts at the beginning."
                            ),
                            "schema": CURSOR_ID,
                        },
                        _header("Last-Event-ID", _LAST_EVENT_ID, CURSOR_ID),
                    ],
                ),
            },
            "/v1/chat/completions/{run_id}/cancel": {
                "post": _operation(
                    "cancelChatCompletion",
                    "Cancel a run; the answer comes after the run has ended",
                    {"200": _answer("ChatCompletion", "The run after its end")},
                    (*own_run_errors, Gone, RunNotEnded),
                    parameters=[_RUN_ID],
                ),
            },
            **_people_paths(own_run_errors),
            **_responses_paths(),
            "/v1/models": {
                "get": _operation(
                    "listModels",
                    "List the models that have a live worker",
                    {"200": _answer(None, "The list of models")},
                    (Unauthenticated, BrokerUnavailable),
                ),
            },
            "/v1/models/{model}": {
                "get": _operation(
                    "retrieveModel",
                    "Return one model that has a live worker",
                    {"200": _answer(None, "The model")},
                    (Unauthenticated, NotFound, BrokerUnavailable),
                    parameters=[
                        {
                            **_RUN_ID,
                            "name": "model",
                            "description": "The name of a model.",
                            "schema": {"type": "string", "minLength": 1},
                        },
                    ],
                ),
            },
            "/health/live": {
                "get": _operation(
                    "live", "Check that the process answers", {"200": _answer(None, "The process answers")}, ()
                ),
            },
            "/health/ready": {
                "get": _operation(
                    "ready",
                    "Check that the front end accepts requests",
                    {
                        "200": _answer(None, "The front end accepts requests; `workers` is 0 if they must wait"),
                        "503": _answer(None, "The front end is shutting down, or Redis is not available"),
                    },
                    (),
                ),
            },
        },
    }


def _people_paths(run_errors: tuple[type[RequestError], ...]) -> dict[str, Any]:
    body_errors = (*run_errors, BodyTimeout, BodyTooLarge, Conflict, UnsupportedMediaType)
    return {
        "/v1/chat/completions/{run_id}/resume": {
            "post": _operation(
                "resumeChatCompletion",
                "Answer interrupts of a run that waits for people; stream the rest of it, or wait for its end",
                {"200": _answer("ChatCompletion", "The run, or the rest of its stream", streamed=True)},
                (*body_errors, Gone, RunFailed),
                parameters=[_RUN_ID, _FORMAT, _EVENT_TYPES, _ERROR_FORM],
                body="ResumeRequest",
                extra_statuses=("502", "504"),
            ),
        },
        "/v1/chat/completions/{run_id}/input": {
            "post": _operation(
                "sendChatCompletionInput",
                "Send messages to a run that is going on; its agent takes them at its next step",
                {"200": _answer("Inputs", "The messages are stored")},
                (*body_errors, LimitReached),
                parameters=[_RUN_ID],
                body="InputRequest",
            ),
        },
    }


def _responses_paths() -> dict[str, Any]:
    run_errors = (InvalidRequest, Unauthenticated, BrokerUnavailable, NotFound, Gone)
    response_id = {
        **_RUN_ID,
        "name": "response_id",
        "description": "The id of a response.",
        "schema": {"type": "string", "pattern": f"^{RESPONSE_ID.pattern}$"},
    }
    answer = {"200": _answer("Response", "The response, or its stream", streamed=True)}
    return {
        "/v1/responses": {
            "post": _operation(
                "createResponse",
                "Run an agent; stream the answer as typed events, wait for it, or run in the background",
                answer,
                _CREATE_ERRORS,
                parameters=_CREATE_PARAMETERS,
                body="ResponseRequest",
                extra_statuses=("502", "504"),
            ),
        },
        "/v1/responses/{response_id}": {
            "get": _operation(
                "retrieveResponse",
                "Return the current state of a response; with stream=true, stream it from the start or after an event",
                answer,
                run_errors,
                parameters=[
                    response_id,
                    _FORMAT,
                    _EVENT_TYPES,
                    _STREAMED,
                    {
                        "name": "starting_after",
                        "in": "query",
                        "description": (
                            "With stream=true: the sequence_number of the last event that you received. The stream "
                            "continues after it. Without it, the stream starts at the beginning."
                        ),
                        "schema": SEQUENCE_NUMBER_ID,
                    },
                    _header(
                        "Last-Event-ID", _LAST_EVENT_ID, {"type": "string", "pattern": f"^{SEQUENCE_NUMBER.pattern}$"}
                    ),
                ],
            ),
        },
        "/v1/responses/{response_id}/cancel": {
            "post": _operation(
                "cancelResponse",
                "Cancel the run of a response; the answer comes after the run has ended",
                {"200": _answer("Response", "The response after the end of its run")},
                (*run_errors, RunNotEnded),
                parameters=[response_id],
            ),
        },
    }


def _operation(  # noqa: PLR0913 -- the fields of an OpenAPI operation
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
    always_possible: tuple[type[RequestError], ...] = (ForbiddenHost,)
    for status in [*(str(error.status) for error in errors + always_possible), *extra_statuses]:
        responses.setdefault(status, _answer("Error", _ERRORS[status]))
    operation: dict[str, Any] = {"operationId": operation_id, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        schema = {"$ref": COMPONENTS.format(model=body)}
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return operation


def _answer(model: str | None, description: str, *, streamed: bool = False) -> dict[str, Any]:
    schema = {"$ref": COMPONENTS.format(model=model)} if model else {"type": "object"}
    return {"description": description, "content": {_JSON: {"schema": schema}, **(_STREAM if streamed else {})}}


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema}


_ERRORS: Final = {
    "400": "The body, a header or a parameter is wrong; or the model refused the input of a run.",
    "401": "The API key is missing or unknown.",
    "403": "The Host header is not a name of the server's machine. Only a server without API keys checks this.",
    "404": "The run or model does not exist, or another API key created the run.",
    "408": "The body did not arrive in time.",
    "409": "The idempotency key was used for a different request; or the run takes no answers or no messages now.",
    "410": "The stored events of the run are no longer complete.",
    "413": "The body is too large.",
    "415": "The Content-Type is not application/json.",
    "429": "The queue is full, or the API key has reached a limit. Retry-After says when to try again.",
    "500": "The run failed, or the server has a fault.",
    "502": "The model server failed, or cannot be reached.",
    "503": "Redis is not available, the front end is shutting down, or no worker took the job in time.",
    "504": "The run did not end in time.",
}
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
_ERROR_FORM: Final = _header(
    "X-Agent-Errors",
    "The form of a failure in a stream. `text` (default): a chunk with a sentence for the user and `agent_error`. "
    "`strict`: an OpenAI error object. It has no effect on the Responses API.",
    {"enum": ["text", "strict"]},
)
_CREATE_PARAMETERS: Final = [
    _FORMAT,
    _EVENT_TYPES,
    _header(
        "Idempotency-Key",
        "If a request repeats the key of an earlier request, it gets the earlier run and starts no new one.",
        IDEMPOTENCY_KEY,
    ),
    _header(
        ANSWER_KEYS_HEADER,
        "The SHA-256 of other API keys, as hex digits and separated by commas. They may read the run and answer its "
        f"interrupts; at most {MAX_ANSWER_KEYS}.",
        {"type": "string", "pattern": f"^([0-9a-fA-F]{{64}}( *, *[0-9a-fA-F]{{64}}){{0,{MAX_ANSWER_KEYS - 1}}})?$"},
    ),
    _ERROR_FORM,
]


async def show_openapi(_request: web.Request) -> web.Response:
    """GET /openapi.json: the OpenAPI document."""
    return web.json_response(_DOCUMENT)


_DOCUMENT: Final = document()


ROUTES: Final = [web.get("/openapi.json", show_openapi)]
