"""The questions that an agent asks: the checks of ``run.interrupt``."""

import math
import time
from typing import Any, Final, cast

import orjson

from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.interrupts import ANSWER_TYPES, NAME, Interrupt
from agentstream.protocol.plain_json import json_bytes
from agentstream.telemetry.masking import mask_json

MAX_TIMEOUT_S: Final = 30 * 24 * 3600
MAX_PAYLOAD_BYTES: Final = 64 << 10  # the open interrupts of a run are stored together, and repeated in its final chunk

_OBJECT_KEYS: Final = frozenset({"type", "properties", "required", "title", "description"})
_PROPERTY_KEYS: Final = frozenset(
    {"type", "title", "description", "default", "enum", "enumNames", "format"}
    | {"minLength", "maxLength", "minimum", "maximum"}
)


def new_interrupt(
    interrupt_id: object, kind: object, payload: object, schema: object, timeout_s: float | None
) -> Interrupt:
    """Return a new interrupt that expires after ``timeout_s``; raises InvalidAgentOutput.

    Without ``timeout_s`` its ``expires_at`` is 0: the worker sets it.
    """
    for what, value in (("kind", kind), ("id", interrupt_id)):
        if not isinstance(value, str) or NAME.fullmatch(value) is None:
            message = (
                f"run.interrupt: the {what} {value!r:.80} is not valid: use a letter, then letters, digits or _ . : -"
            )
            raise InvalidAgentOutput(message)
    if schema is not None and (reason := _reason_against(schema)):
        message = f"run.interrupt: the schema is not supported: {reason}"
        raise InvalidAgentOutput(message)
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        message = f"run.interrupt: timeout_s must be above 0 and at most {MAX_TIMEOUT_S} s, not {timeout_s!r:.40}"
        raise InvalidAgentOutput(message)
    try:
        encoded = json_bytes(mask_json(payload))
    except Exception as exc:  # a class of the agent's may raise anything when its fields are read
        message = f"run.interrupt: the payload cannot be written as JSON: {exc}"
        raise InvalidAgentOutput(message) from exc
    if len(encoded) > MAX_PAYLOAD_BYTES:
        message = f"run.interrupt: the payload has {len(encoded)} bytes as JSON; the limit is {MAX_PAYLOAD_BYTES}"
        raise InvalidAgentOutput(message)
    expires_at = 0 if timeout_s is None else math.ceil(time.time() + timeout_s)
    return Interrupt(
        str(interrupt_id), str(kind), orjson.loads(encoded), cast("dict[str, Any] | None", schema), expires_at
    )


def _reason_against(schema: object) -> str:
    if not isinstance(schema, dict) or schema.get("type") != "object" or not isinstance(schema.get("properties"), dict):
        return 'it must be {"type": "object", "properties": {...}}'
    if unknown := set(schema) - _OBJECT_KEYS:
        return f"unknown keyword {min(unknown)!r}"
    required = schema.get("required", [])
    if not isinstance(required, list) or not set(required) <= set(schema["properties"]):
        return "'required' must be a list of its properties"
    for name, field in schema["properties"].items():
        if not isinstance(field, dict) or field.get("type") not in ANSWER_TYPES:
            return f"property {name!r:.60} must have one of the types {', '.join(ANSWER_TYPES)}"
        if unknown := set(field) - _PROPERTY_KEYS:
            return f"property {name!r:.60} has the unknown keyword {min(unknown)!r}"
    return ""
