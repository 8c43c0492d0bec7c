"""Failure codes, error types and HTTP statuses of failed runs, through real processes."""

from typing import Any

import pytest

from tests.helpers import texts
from tests.integration.conftest import Client
from tests.model_server import error, model_server
from tests.processes import Processes

CASES = [
    ("order 14005 not found", "agent_error", 500, "server_error", "The model returned an error: "),
    ("failed to connect to 10.0.0.5:4001", "agent_error", 500, "server_error", "The model returned an error: "),
    ("file is too long", "agent_error", 500, "server_error", "Sorry, an error occurred: "),
    (
        "status 429 quota_exceeded later",
        "quota_exceeded",
        429,
        "rate_limit_error",
        "Sorry, an error occurred: ",
    ),
    ("status 404 no_such_order unknown", "no_such_order", 404, "invalid_request_error", "Sorry, an error occurred: "),
    ("sdk 400 no", "model_error", 400, "invalid_request_error", "The model returned an error: Error code: 400"),
    ("sdk 500 no", "model_error", 502, "server_error", "Sorry, an error occurred: Error code: 500"),
]


def request(text: str) -> dict[str, Any]:
    """Return a request with one question."""
    return {"model": "m1", "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize("agent", ["failing", "failing_in_a_thread"])
async def test_the_class_of_an_agents_error_chooses_code_and_status(
    processes: Processes, client: Client, agent: str
) -> None:
    """A plain exception is agent_error with 500 whatever its text, and a typed one has its own code and status."""
    url = await processes.frontend()
    await processes.worker(f"error_agents:{agent}")
    for text, code, status, kind, sentence in CASES:
        answer = await client.post(url, request(text))
        body = (await answer.json())["error"]
        assert (answer.status, body["code"], body["type"]) == (status, code, kind), text
        assert body["message"].startswith(sentence)
        *_, (_, final), _ = messages = await client.stream(url, text)
        assert (final["agent_error"]["code"], final["agent_error"]["type"]) == (code, kind)
        assert texts(messages)[-1].startswith(sentence)
        *_, (_, strict), _ = await client.stream(url, text, headers={"X-Agent-Errors": "strict"})
        assert strict["error"] == body


@pytest.mark.parametrize(
    ("upstream", "message", "code", "status"),
    [
        (400, "no such parameter", "model_error", 400),
        (400, "the prompt is too long", "context_length_exceeded", 400),
        (401, "wrong key", "model_error", 502),
        (404, "no such model", "model_error", 404),
        (422, "order 4001", "model_error", 422),
    ],
)
async def test_an_error_of_the_model_server_keeps_its_status(
    processes: Processes, client: Client, upstream: int, message: str, code: str, status: int
) -> None:
    """A refusal by the model server reaches the client with a status that says whose fault it is."""
    url = await processes.frontend()
    async with model_server() as model:
        model.scripts = [error(upstream, message)]
        await processes.worker(OPENAI_BASE_URL=model.url)
        answer = await client.post(url, request("hi"))
    body = (await answer.json())["error"]
    assert (answer.status, body["code"]) == (status, code)
    if code == "model_error":
        assert f"Error code: {upstream} - {message}" in body["message"]


async def test_a_failing_model_server_is_a_model_error(processes: Processes, client: Client) -> None:
    """If the model server answers every try with 500, the run fails with model_error and status 502."""
    url = await processes.frontend()
    async with model_server() as model:
        model.scripts = [error(500, "out of memory") for _ in range(3)]
        await processes.worker(OPENAI_BASE_URL=model.url)
        answer = await client.post(url, request("hi"))
    body = (await answer.json())["error"]
    assert (answer.status, body["code"], body["type"]) == (502, "model_error", "server_error")
    assert "Error code: 500 - out of memory" in body["message"]
