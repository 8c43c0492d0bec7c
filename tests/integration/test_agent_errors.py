"""Errors of agents, through real processes: what clients see, and what the author's log has."""

from typing import Any

import pytest

from tests.integration.conftest import Client
from tests.processes import Process, Processes

PRIVATE = "db password is hunter2-marked"
NEUTRAL = {
    "agent_error": "the agent failed",
    "invalid_agent_output": "the agent failed",
    "model_error": "the model server could not answer",
    "context_length_exceeded": "the conversation is longer than the context window of the model",
}
# What the agent is asked for, and the code of its failure.
FAILURES = {
    "fail": "agent_error",
    "stream and fail": "agent_error",
    "contract": "invalid_agent_output",
    "event": "invalid_agent_output",
    "model": "model_error",
    "context": "context_length_exceeded",
}
ID = {"X-Request-Id": "seen.400"}  # the number must not change the sentence


def body_of(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m1", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize("details", ["hidden", "full"])
async def test_clients_see_the_text_of_an_error_only_if_allowed(
    processes: Processes, client: Client, details: str
) -> None:
    """In every form of answer, an error is a neutral sentence with the request's id, or the agent's own text."""
    url = await processes.frontend()
    worker = await processes.worker("author_agents:secretive", AGENTSTREAM_ERROR_DETAILS=details)
    for text, code in FAILURES.items():
        waited = await client.post(url, body_of(text), **ID)
        text_form = await client.post(url, body_of(text, stream=True), **ID)
        strict = await client.post(url, body_of(text, stream=True), **ID, **{"X-Agent-Errors": "strict"})
        error = (await waited.json())["error"]
        assert error["code"] == code
        answers = [await answer.text() for answer in (waited, text_form, strict)]
        if details == "hidden":
            assert not [answer for answer in answers if "hunter2" in answer]
            assert f"{NEUTRAL[code]} (request id seen.400)" in answers[1]
            assert "The model returned" not in "".join(answers)
        else:
            assert ("hunter2" in answers[1]) == (text != "event")
    await worker.until("the run ended")
    assert PRIVATE in worker.output


async def test_a_code_of_the_agents_own_keeps_its_message(processes: Processes, client: Client) -> None:
    """An AgentError with a code of its own is made for clients: its message, code and status are shown."""
    url = await processes.frontend()
    await processes.worker("author_agents:secretive", AGENTSTREAM_ERROR_DETAILS="hidden")
    answer = await client.post(url, body_of("quota"))
    error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (429, "quota_exceeded")
    assert error["message"] == "Sorry, an error occurred: your quota is used"
    plain = (await (await client.post(url, body_of("agent error"))).json())["error"]
    assert "hunter2" not in plain["message"]


async def log_of(processes: Processes, client: Client, text: str, **settings: str) -> Process:
    """Let an agent fail; return its worker after the run has ended."""
    url = await processes.frontend()
    worker = await processes.worker("author_agents:secretive", AGENTSTREAM_ERROR_DETAILS="hidden", **settings)
    await client.post(url, body_of(text))
    await worker.until("the run ended")
    return worker


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("fail", ["the agent failed", "ValueError: db password is hunter2-marked", "author_agents.py"]),
        ("contract", ["the agent broke its contract: InvalidAgentOutput: AgentResult.finish_reason must be one of"]),
        ("event", ["the agent broke its contract: InvalidAgentOutput: event type 'bad type!'", "author_agents.py"]),
        ("own log", ["author: the author logs this", "ValueError: db password is hunter2-marked"]),
    ],
)
@pytest.mark.parametrize("shown", [True, False])
async def test_the_authors_log_has_the_text_of_an_error(
    processes: Processes, client: Client, text: str, lines: list[str], *, shown: bool
) -> None:
    """The worker logs the text, the traceback and the reason of an agent's error, unless the setting turns it off."""
    settings = {} if shown else {"AGENTSTREAM_LOG_ERRORS": "false"}
    worker = await log_of(processes, client, text, **settings)
    assert [line for line in lines if line in worker.output] == (
        lines if shown else [line for line in lines if "hunter2" not in line and "InvalidAgentOutput: " not in line]
    )
    assert shown or "hunter2" not in worker.output


async def test_up_always_logs_the_text_of_an_error(processes: Processes, client: Client) -> None:
    """Under ``up`` the author sees the text and the traceback of an error, whatever the setting says."""
    up = await processes.start(
        "up",
        REDIS_URL="",
        AGENTSTREAM_PORT="0",
        AGENTSTREAM_AGENT="author_agents:secretive",
        AGENTSTREAM_LOG_ERRORS="false",
    )
    url = (await up.until(r"serving +(http://\S+)"))[1]
    await client.post(url, body_of("fail"))
    await up.until(r"the agent failed(?s:.*)author_agents\.py(?s:.*)ValueError: db password is hunter2-marked")


async def test_the_error_form_has_a_default_on_the_server(processes: Processes, client: Client) -> None:
    """Without the header the setting chooses the error form of every API, and the header wins over it."""
    url = await processes.frontend(AGENTSTREAM_ERROR_FORM="strict")
    await processes.worker("author_agents:secretive")
    strict = await client.post(url, body_of("fail", stream=True))
    assert 'data: {"error":{"message":"Sorry, an error occurred: db password' in await strict.text()
    text = await client.post(url, body_of("fail", stream=True), **{"X-Agent-Errors": "text"})
    assert '"agent_error":{' in await text.text()
    older = {"model": "m1", "prompt": "fail", "stream": True}
    async with client.session.post(f"{url}/v1/completions", json=older) as response:
        assert 'data: {"error":{' in await response.text()
    refused = await client.post(url, body_of("fail", stream=True), **{"X-Agent-Errors": ""})
    assert refused.status == 400


async def test_a_failed_tool_of_the_built_in_agent_hides_its_text(processes: Processes, client: Client) -> None:
    """The text of an unexpected exception of a tool reaches neither clients nor the model, but the log has it."""
    url = await processes.frontend()
    worker = await processes.worker(
        "",
        AGENTSTREAM_TOOLS="author_agents:count_cows",
        AGENTSTREAM_ENGINE="author_agents:calling_engine",
        AGENTSTREAM_ERROR_DETAILS="hidden",
    )
    answer = await client.post(url, body_of("cows?", stream=True))
    assert '"result":"count_cows failed"' in (text := await answer.text())
    assert "hunter2" not in text
    await worker.until(r"tool count_cows failed(?s:.*)ValueError: db password is hunter2-marked")
