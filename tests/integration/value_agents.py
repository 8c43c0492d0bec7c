"""Agents whose values JSON lacks. Worker processes import this module by its name."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pydantic

from agentstream.agents import AgentResult, Run, ToolResult


@dataclass
class Order:
    """A dataclass that a tool returns."""

    number: int
    price: Decimal


class Weather(pydantic.BaseModel):
    """A model that a tool returns."""

    at: dt.datetime
    degrees: Decimal


NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
VALUES: dict[str, Any] = {
    "dict": {"ok": True},
    "list": [1, "a"],
    "int": 7,
    "none": None,
    "decimal": Decimal("1.50"),
    "datetime": NOON,
    "set": {1},
    "bytes": b"caf\xc3\xa9",
    "dataclass": Order(1, Decimal("9.90")),
    "model": Weather(at=NOON, degrees=Decimal("4.5")),
    "int keys": {1: "one"},
}


def odd_values(run: Run) -> AgentResult:
    """Report each value as the result of a tool; with the question "written" as events, otherwise in the result."""
    results = [ToolResult(name, value) for name, value in VALUES.items()]
    if run.request.messages[-1].text == "written":
        for name, value in VALUES.items():
            run.emit("tool_call_start", {"tool": name, "arguments": value})
            run.emit("tool_call_end", {"tool": name, "success": True, "latency": 0.0, "result": value})
        data: dict[Any, Any] = {"all": VALUES, 5: {NOON: b"\xff"}}
        run.emit("inference_end", data)
        run.write("done")
        results = []
    usage = {"prompt_tokens": Decimal(1), "completion_tokens": 2, "total_tokens": 3}
    return AgentResult("done", results, {**usage, 1: object(), "x": {1}})  # type: ignore[dict-item]
