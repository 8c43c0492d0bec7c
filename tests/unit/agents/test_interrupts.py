"""The checks of ``run.interrupt``."""

from typing import Any

import pytest

from agentstream.agents.interrupts import new_interrupt
from agentstream.errors import InvalidAgentOutput


def form(field: dict[str, Any], **others: object) -> dict[str, Any]:
    """Return a schema with one property."""
    return {"type": "object", "properties": {"a": field}, **others}


@pytest.mark.parametrize(
    "schema",
    [
        form({"type": "string", "enum": 5}),
        form({"type": "integer", "minimum": "x"}),
        form({"type": "string", "maxLength": None}),
        form({"type": ["string", "null"]}),
        form({"type": "string", "title": object()}),
        form({"type": "string"}, required=[["a"]]),
        form({"type": "string", "title": "x" * (64 << 10)}),
    ],
)
def test_a_schema_that_no_answer_can_be_checked_against_is_refused(schema: dict[str, Any]) -> None:
    """The agent learns of a wrong schema when it asks; otherwise each answer would get an internal error."""
    with pytest.raises(InvalidAgentOutput, match="schema"):
        new_interrupt("a", "form", None, schema, None)
