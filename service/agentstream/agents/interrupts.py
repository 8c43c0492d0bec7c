"""The questions that an agent asks: the checks of ``run.interrupt``."""

import math
import time
from typing import Any, Final, cast

import orjson

from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.interrupts import ANSWER_TYPES, MAX_TIMEOUT_S, NAME, Interrupt
from agentstream.protocol.plain_json import json_bytes
from agentstream.telemetry.masking import mask_json

MAX_PAYLOAD_BYTES: Final = 64 << 10  # the open interrupts of a run are stored together, and repeated in its final chunk

_OBJECT_KEYS: Final = frozenset({"type", "properties", "required", "title", "description"})
_BOUNDS: Final = frozenset({"minLength", "maxLength", "minimum", "maximum"})
_PROPERTY_KEYS: Final = frozenset({"type", "title", "description", "default", "enum", "enumNames", "format"}) | _BOUNDS


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
    schema = None if schema is None else _as_json("schema", schema)
    if schema is not None and (reason := _reason_against(schema)):
        message = f"run.interrupt: the schema is not supported: {reason}"
        raise InvalidAgentOutput(message)
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        message = f"run.interrupt: timeout_s must be above 0 and at most {MAX_TIMEOUT_S} s, not {timeout_s!r:.40}"
        raise InvalidAgentOutput(message)
    expires_at = 0 if timeout_s is None else math.ceil(time.time() + timeout_s)
    asked = _as_json("payload", payload)
    return Interrupt(str(interrupt_id), str(kind), asked, cast("dict[str, Any] | None", schema), expires_at)


def _as_json(name: str, value: object) -> Any:  # noqa: ANN401 -- JSON
    """Return a value as clients get it, with known secrets masked; raises InvalidAgentOutput."""
    try:
        encoded = json_bytes(mask_json(value))
    except Exception as exc:  # a class of the agent's may raise anything when its fields are read
        message = f"run.interrupt: the {name} cannot be written as JSON: {exc}"
        raise InvalidAgentOutput(message) from exc
    if len(encoded) > MAX_PAYLOAD_BYTES:
        message = f"run.interrupt: the {name} has {len(encoded)} bytes as JSON; the limit is {MAX_PAYLOAD_BYTES}"
        raise InvalidAgentOutput(message)
    return orjson.loads(encoded)


def _reason_against(schema: object) -> str:
    if not isinstance(schema, dict) or schema.get("type") != "object" or not isinstance(schema.get("properties"), dict):
        return 'it must be {"type": "object", "properties": {...}}'
    if unknown := set(schema) - _OBJECT_KEYS:
        return f"unknown keyword {min(unknown)!r}"
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(
        isinstance(name, str) and name in schema["properties"] for name in required
    ):
        return "'required' must be a list of its properties"
    reasons = (_reason_against_property(name, field) for name, field in schema["properties"].items())
    return next(filter(None, reasons), "")


def _reason_against_property(name: str, field: object) -> str:
    """Return why a property is not supported. The front end relies on the types of its keywords."""
    kind = field.get("type") if isinstance(field, dict) else None
    if not isinstance(field, dict) or not isinstance(kind, str) or kind not in ANSWER_TYPES:
        return f"property {name!r:.60} must have one of the types {', '.join(ANSWER_TYPES)}"
    if unknown := set(field) - _PROPERTY_KEYS:
        return f"property {name!r:.60} has the unknown keyword {min(unknown)!r}"
    if not isinstance(field.get("enum", []), list):
        return f"'enum' of property {name!r:.60} must be a list"
    for keyword in _BOUNDS & set(field):
        if isinstance(field[keyword], bool) or not isinstance(field[keyword], int | float):
            return f"{keyword!r} of property {name!r:.60} must be a number"
    return ""
