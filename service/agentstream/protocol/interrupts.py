"""Interrupts: questions of a run that people answer. Their form on the wire, and the check of an answer.

``schema`` describes the answer as MCP's elicitation does: a flat object whose properties are strings, numbers, integers
or booleans. Without a schema every JSON value is an answer. An interrupt of the kind ``approval`` has APPROVAL_SCHEMA.
"""

import re
from typing import Any, Final, NamedTuple, Self

# The form of an interrupt's kind and id.
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
MAX_REASON_CHARACTERS: Final = 2000
APPROVAL: Final = "approval"
APPROVAL_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"approve": {"type": "boolean"}, "reason": {"type": "string", "maxLength": MAX_REASON_CHARACTERS}},
    "required": ["approve"],
}
MAX_TIMEOUT_S: Final = 30 * 24 * 3600  # how long an interrupt can be answered
MAX_INTERRUPTS: Final = 1000  # of one run: their ids and answers stay in its hash until it ends
MAX_ANSWER_BYTES: Final = 64 << 10  # of one answer as JSON
MAX_ANSWERS_BYTES: Final = 1 << 20  # of all answers of a run

ANSWER_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
}


class Interrupt(NamedTuple):
    """One question of a run. ``expires_at`` is Unix time in s: until then it can be answered."""

    id: str
    kind: str
    payload: Any
    schema: dict[str, Any] | None
    expires_at: int

    def as_json(self) -> dict[str, Any]:
        """Return the interrupt as clients get it."""
        schema = {} if self.schema is None else {"schema": self.schema}
        return {
            "id": self.id,
            "kind": self.kind,
            "payload": self.payload,
            **schema,
            "expires_at": self.expires_at,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the interrupt of ``as_json``."""
        return cls(data["id"], data["kind"], data["payload"], data.get("schema"), data["expires_at"])

    @property
    def sentence(self) -> str:
        """A sentence for people that says what the run waits for."""
        payload = self.payload if isinstance(self.payload, dict) else {}
        if self.kind == APPROVAL and isinstance(tool := payload.get("tool"), str):
            return f"Waiting for approval: may I run {tool} with {payload.get('arguments', '{}')}?"
        message = payload.get("message", self.payload)
        return (
            f"Waiting for an answer: {message}" if isinstance(message, str) else f"Waiting for an answer ({self.kind})."
        )


def reason_against_answer(interrupt: Interrupt, answer: object) -> str:
    """Return why an answer does not fit the schema of its interrupt; an empty text if it does."""
    schema = interrupt.schema
    if schema is None:
        return ""
    if not isinstance(answer, dict):
        return f"expected an object, got {type(answer).__name__}"
    fields: dict[str, dict[str, Any]] = schema["properties"]
    if unknown := sorted(set(answer) - set(fields)):
        return f"unknown field {unknown[0]!r:.60}; the fields are {', '.join(fields)}"
    if missing := [name for name in schema.get("required", []) if name not in answer]:
        return f"the field {missing[0]!r} is missing"
    reasons = (
        f"{name}: {reason}" for name, value in answer.items() if (reason := _reason_against_value(fields[name], value))
    )
    return next(reasons, "")


def _reason_against_value(field: dict[str, Any], value: object) -> str:
    kind = field["type"]
    if not isinstance(value, ANSWER_TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"expected {kind}, got {value!r:.60}"
    if "enum" in field and value not in field["enum"]:
        return f"expected one of {', '.join(map(repr, field['enum']))}, got {value!r:.60}"
    size, unit = (len(value), " characters") if isinstance(value, str) else (value, "")
    low = field.get("minLength" if kind == "string" else "minimum")
    high = field.get("maxLength" if kind == "string" else "maximum")
    if isinstance(size, int | float) and ((low is not None and size < low) or (high is not None and size > high)):
        bounds = [f"{words} {bound}" for words, bound in (("at least", low), ("at most", high)) if bound is not None]
        return f"expected {' and '.join(bounds)}{unit}, got {size}"
    return ""
