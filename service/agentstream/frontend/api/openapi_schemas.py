"""The JSON schemas of the answers and parameters in the OpenAPI document.

The schemas of requests are not here: ``openapi`` makes them from the models that validate requests.
"""

from typing import Any, Final, get_args

from agentstream.frontend.api.parsing import MAX_IDEMPOTENCY_KEY
from agentstream.protocol.completions import COMPLETION_PREFIX
from agentstream.protocol.events import CURSOR
from agentstream.protocol.interrupts import NAME
from agentstream.protocol.jobs import RUN_ID
from agentstream.protocol.openai import FinishReason
from agentstream.protocol.response_items import APPROVAL_ID, ITEM_ID, RESPONSE_ID

COMPONENTS: Final = "#/components/schemas/{model}"
# Printable ASCII without spaces at the ends: those are not part of a header's value.
IDEMPOTENCY_KEY: Final = {"type": "string", "maxLength": MAX_IDEMPOTENCY_KEY, "pattern": "^[!-~]([ -~]*[!-~])?$"}
CURSOR_ID: Final = {"type": "string", "pattern": f"^{CURSOR.pattern}$"}
# OpenAPI 3.1 has no schema for a body that is a sequence of events. This schema describes one event, as the keyword
# itemSchema of OpenAPI 3.2 does.
EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "One server-sent event: a chunk, an agent event, a typed event of a response, or [DONE].",
    "required": ["data"],
    "properties": {
        "data": {"type": "string", "description": "A JSON object, or [DONE]."},
        "event": {"type": "string", "description": "The name of the event. Chunks have none."},
        "id": {
            "type": "string",
            "description": "The position in the stream. Send the last one as Last-Event-ID to resume after it.",
        },
    },
}
SEQUENCE_NUMBER_ID: Final = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}

_CREATED: Final = "When the run was created: Unix time in seconds."

ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What went wrong and, where possible, what to do."},
                "type": {"type": "string", "description": "The kind of error, as in OpenAI's API."},
                "param": {"type": ["string", "null"], "description": "The field or parameter that is wrong."},
                "code": {"type": ["string", "null"], "description": "The exact cause, for programs."},
            },
        },
    },
}
USAGE: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Token counts from the agent, else an estimate. Zeros while the run is open, and if it failed.",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {
            "type": ["string", "null"],
            "description": "The text so far. null if the message only calls the client's tools.",
        },
        "refusal": {"type": "null"},
        "reasoning_content": {"type": "string", "description": "The reasoning that the agent sent, if any."},
        "tool_calls": {
            "type": "array",
            "description": "The calls of the client's tools, if any.",
            "minItems": 1,
            "items": {"$ref": COMPONENTS.format(model="ToolCall")},
        },
    },
}
_CHOICE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["index", "message", "finish_reason"],
    "properties": {
        "index": {"const": 0},
        "message": _MESSAGE,
        "logprobs": {"type": "null"},
        "finish_reason": {"enum": [*get_args(FinishReason), None], "description": "null while the run is open."},
    },
}
INTERRUPT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "A question of a run that people answer.",
    "required": ["id", "kind", "payload", "expires_at"],
    "properties": {
        "id": {"type": "string", "description": "Answer it under this id.", "pattern": f"^{NAME.pattern}$"},
        "kind": {"type": "string", "description": "`approval`: may a tool run? Other kinds are the agent's own."},
        "payload": {"description": "What people need to answer, from the agent. An approval has `tool`, `arguments`."},
        "schema": {"type": "object", "description": "The JSON schema of the answer. Without it, any JSON is one."},
        "expires_at": {"type": "integer", "description": "It can be answered until then: Unix time in seconds."},
        "call_id": {"type": "string", "description": "In a response: the id with which an input item answers it."},
    },
}
INPUTS: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "inputs"],
    "properties": {
        "id": {"type": "string", "pattern": f"^{RUN_ID.pattern}$"},
        "object": {"const": "chat.completion.input"},
        "inputs": {"type": "array", "description": "The ids of the messages, in order.", "items": {"type": "string"}},
    },
}
_INTERRUPTS: Final[dict[str, Any]] = {
    "type": "array",
    "description": "The questions that the run waits for. Present while it waits; a response keeps them.",
    "items": {"$ref": COMPONENTS.format(model="Interrupt")},
}
CHAT_COMPLETION: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "status", "choices", "usage"],
    "properties": {
        "id": {
            "type": "string",
            "description": "The id of the run, to retrieve, resume or cancel it.",
            "pattern": f"^{RUN_ID.pattern}$",
        },
        "object": {"const": "chat.completion"},
        "created": {"type": "integer", "description": _CREATED},
        "model": {"type": "string"},
        "status": {
            "enum": ["queued", "in_progress", "requires_action", "completed", "failed", "cancelled"],
            "description": "The state of the run. OpenAI's API does not have this field.",
        },
        "interrupts": _INTERRUPTS,
        "unapplied_inputs": {
            "type": "array",
            "description": "The ids of messages for the run that its agent has not taken. Present after the end only.",
            "items": {"type": "string"},
        },
        "choices": {"type": "array", "minItems": 1, "items": _CHOICE},
        "usage": {"$ref": COMPONENTS.format(model="Usage")},
        "error": {
            "type": "object",
            "description": "Why the run failed. Present only if the status is failed.",
            "required": ["code", "message"],
        },
    },
}
TEXT_COMPLETION: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string", "pattern": f"^{COMPLETION_PREFIX}[0-9a-f]{{32}}$"},
        "object": {"const": "text_completion"},
        "created": {"type": "integer", "description": _CREATED},
        "model": {"type": "string"},
        "choices": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "usage": {"$ref": COMPONENTS.format(model="Usage")},
        "status": {"const": "requires_action", "description": "Present only if the run waits for people."},
        "interrupts": _INTERRUPTS,
    },
}
RESPONSE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "error", "incomplete_details", "model", "output", "usage"],
    "properties": {
        "id": {
            "type": "string",
            "description": "The id of the response, to retrieve, resume, continue or cancel it.",
            "pattern": f"^{RESPONSE_ID.pattern}$",
        },
        "object": {"const": "response"},
        "created_at": {"type": "integer", "description": _CREATED},
        "status": {"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
        "error": {
            "type": ["object", "null"],
            "description": "Why the run failed. null if it did not fail.",
            "required": ["code", "message"],
        },
        "incomplete_details": {
            "type": ["object", "null"],
            "description": "Why the answer is incomplete: max_output_tokens, content_filter or cancelled.",
            "required": ["reason"],
        },
        "model": {"type": "string"},
        "output": {
            "type": "array",
            "description": "The output items so far. A tool call appears only when it is complete.",
            "items": {
                "type": "object",
                "required": ["id", "type"],
                "properties": {
                    "id": {"type": "string", "pattern": f"^(?:{ITEM_ID.pattern}|{APPROVAL_ID.pattern})$"},
                    "type": {
                        "enum": ["message", "reasoning", "function_call", "custom_tool_call", "mcp_approval_request"]
                    },
                    "status": {"enum": ["in_progress", "completed", "incomplete"]},
                },
            },
        },
        "usage": {
            "type": ["object", "null"],
            "description": "Token counts. null while the run is open, and if it failed.",
            "required": ["input_tokens", "output_tokens", "total_tokens"],
        },
        "interrupts": _INTERRUPTS,
        "ignored_tools": {
            "type": "array",
            "description": "The tools of the request that are not served and were left out, if any.",
            "items": {"type": "object", "required": ["type"]},
        },
    },
}
