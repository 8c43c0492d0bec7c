"""Values that JSON lacks, on their way from an agent to its client."""

import json
from typing import Any

import pytest

from tests.integration.conftest import Client
from tests.processes import Processes

SENT: dict[str, Any] = {
    "dict": {"ok": True},
    "list": [1, "a"],
    "int": 7,
    "none": None,
    "decimal": "1.50",
    "datetime": "2026-03-01T12:00:00+00:00",
    "set": [1],
    "bytes": "café",
    "dataclass": {"number": 1, "price": "9.90"},
    "model": {"at": "2026-03-01T12:00:00Z", "degrees": "4.5"},
    "int keys": {"1": "one"},
}
TEXTS = {"decimal", "datetime", "bytes"}  # JSON strings, which are their own text


@pytest.mark.parametrize("where", ["written", "returned"])
async def test_values_that_json_lacks_reach_the_client(processes: Processes, client: Client, where: str) -> None:
    """Tool results of every common type arrive as JSON text, in events and in the result, and the run completes."""
    url = await processes.frontend()
    await processes.worker("value_agents:odd_values")
    messages = await client.stream(url, where)
    results = next(data["results"] for name, data in messages if name == "tool_results")
    got = {each["tool_name"]: each["output"] for each in results}
    assert {name: text if name in TEXTS else json.loads(text) for name, text in got.items()} == SENT
    assert messages[-2][1]["usage"]["total_tokens"] == 3
    if where == "written":
        arguments = {data["tool"]: data["arguments"] for name, data in messages if name == "tool_call_start"}
        assert {name: text if name in TEXTS else json.loads(text) for name, text in arguments.items()} == SENT
        ended = next(data for name, data in messages if name == "inference_end")
        assert (ended["all"], ended["5"]) == (SENT, {"2026-03-01T12:00:00+00:00": "/w=="})
