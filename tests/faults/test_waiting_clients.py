"""Clients of runs that wait for people: those that know nothing of interrupts, and people with other API keys."""

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.deployment import COMPLETIONS, Deployment, chat, error_of
from tests.helpers import TIMEOUT_S, decode, texts
from tests.processes import Processes

SENTENCE = 'Waiting for approval: may I run send_mail with {"to":"bob"}?'
WAITING = f"before \n\n{SENTENCE}"
APPROVED = {"answers": {"approval-1": {"approve": True}}}
OWNER, APPROVER, STRANGER = "owner", "approver", "stranger"


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a worker with an asking agent, and yield the deployment; it has no front end yet."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.worker("a", "asking_agents:asking")
        yield opened


async def send(
    deployment: Deployment, method: str, path: str, body: Any = None, *, key: str = OWNER, **headers: str
) -> tuple[int, Any]:
    """Send a request with an API key; return the status and the answer, as messages if it is a stream."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()} | {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as session,
        session.request(method, deployment.url + path, json=body, headers=fields) as response,
    ):
        if response.content_type == "text/event-stream":
            return response.status, decode(await response.read())
        return response.status, await response.json()


async def ask(deployment: Deployment, *, script: str = "once", **more: Any) -> Any:
    """Request a run that asks; return the answer, or the messages of the stream."""
    headers = more.pop("headers", {})
    status, answer = await send(deployment, "POST", COMPLETIONS, chat(script) | more, **headers)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("errors", ["text", "strict"])
async def test_every_event_format_ends_well(deployment: Deployment, errors: str) -> None:
    """In each event format a stream of a run that waits ends with a sentence, a known finish reason and usage."""
    await deployment.frontend()
    for event_format in ("named", "raw", "chunk", "off"):
        headers = {"X_Agent_Events": event_format, "X_Agent_Errors": errors}
        messages = await ask(deployment, stream=True, headers=headers)
        assert "".join(texts(messages)) == WAITING
        assert error_of(messages) is None
        final = messages[-2][1]
        assert (final["choices"][0]["finish_reason"], final["status"]) == ("stop", "requires_action")
        assert final["usage"]["total_tokens"] > 0
        assert [name for name, _ in messages].count("interrupt") == (event_format in {"named", "raw"})
    messages = await ask(deployment, stream=True, stream_options={"include_usage": True})
    assert [message[1].get("usage") is not None for message in messages[-3:-1]] == [False, True]


async def test_answers_that_are_not_streamed_end_well(deployment: Deployment) -> None:
    """A chat completion, its older form and a text completion contain the sentence; a later read does not."""
    await deployment.frontend()
    functions: Any = [{"name": "f", "parameters": {"type": "object"}}]
    answers = [await ask(deployment), await ask(deployment, functions=functions)]
    for answer in answers:
        assert answer["choices"][0]["message"]["content"] == WAITING
        assert (answer["choices"][0]["finish_reason"], answer["status"]) == ("stop", "requires_action")
        assert answer["usage"]["total_tokens"] > 0
    stored = await deployment.retrieve(answers[0]["id"])
    assert stored["choices"][0]["message"]["content"] == "before "
    body = {"model": "m1", "prompt": "once"}
    _, completion = await send(deployment, "POST", "/v1/completions", body)
    assert (completion["choices"][0]["text"], completion["choices"][0]["finish_reason"]) == (WAITING, "stop")
    assert completion["usage"]["total_tokens"] > 0
    _, messages = await send(deployment, "POST", "/v1/completions", body | {"stream": True})
    pieces = [choice["text"] for _, data in messages[:-1] for choice in data["choices"]]
    assert "".join(pieces) == WAITING
    assert messages[-2][1]["choices"][0]["finish_reason"] == "stop"


async def test_the_sentence_can_be_turned_off(deployment: Deployment) -> None:
    """Without INTERRUPT_TEXT no answer contains the sentence."""
    await deployment.frontend(AGENTSTREAM_INTERRUPT_TEXT="false")
    assert "".join(texts(await ask(deployment, stream=True))) == "before "
    assert (await ask(deployment))["choices"][0]["message"]["content"] == "before "
    _, response = await send(deployment, "POST", "/v1/responses", {"model": "m1", "input": "form"})
    assert response["output"] == []
    assert response["interrupts"][0]["kind"] == "form"


async def test_a_second_person_answers(deployment: Deployment) -> None:
    """A key that the creator lists may read the run and answer; it may do nothing else, and no other key anything."""
    await deployment.frontend(AGENTSTREAM_API_KEYS=f"{OWNER},{APPROVER},{STRANGER}")
    digest = hashlib.sha256(APPROVER.encode()).hexdigest()
    run = await ask(deployment, headers={"X_Agent_Answer_Keys": digest})
    path = f"{COMPLETIONS}/{run['id']}"
    for method, end, body in (
        ("GET", "", None),
        ("GET", "?stream=true", None),
        ("POST", "/resume", APPROVED),
        ("POST", "/cancel", None),
        ("POST", "/input", {"messages": [{"role": "user", "content": "hello"}]}),
    ):
        assert (await send(deployment, method, path + end, body, key=STRANGER))[0] == 404
    for end in ("/cancel", "/input"):
        assert (await send(deployment, "POST", path + end, key=APPROVER))[0] == 404
    _, seen = await send(deployment, "GET", path, key=APPROVER)
    assert [asked["id"] for asked in seen["interrupts"]] == ["approval-1"]
    status, answer = await send(deployment, "POST", f"{path}/resume", APPROVED, key=APPROVER)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "before approved=True ")
    assert (await send(deployment, "GET", path))[1]["status"] == "completed"


async def test_a_second_person_answers_a_response(deployment: Deployment) -> None:
    """A listed key may approve through the Responses API, too."""
    await deployment.frontend(AGENTSTREAM_API_KEYS=f"{OWNER},{APPROVER},{STRANGER}")
    digest = hashlib.sha256(APPROVER.encode()).hexdigest()
    body = {"model": "m1", "input": "once"}
    _, first = await send(deployment, "POST", "/v1/responses", body, X_Agent_Answer_Keys=f"{'0' * 64}, {digest}")
    answer = {"type": "mcp_approval_response", "approval_request_id": first["output"][-1]["id"], "approve": True}
    request = {"model": "m1", "previous_response_id": first["id"], "input": [answer]}
    assert (await send(deployment, "POST", "/v1/responses", request, key=STRANGER))[0] == 404
    status, second = await send(deployment, "POST", "/v1/responses", request, key=APPROVER)
    assert (status, second["output"][0]["content"][0]["text"]) == (200, "approved=True ")


async def test_a_key_instead_of_its_hash_is_refused(deployment: Deployment) -> None:
    """The header takes hashes only, and its error does not repeat what may be a key."""
    await deployment.frontend(AGENTSTREAM_API_KEYS=f"{OWNER},{APPROVER}")
    for wrong in (APPROVER, ",".join(["0" * 64] * 20 + [APPROVER]), ",".join(f"{n:064x}" for n in range(21))):
        status, body = await send(deployment, "POST", COMPLETIONS, chat("once"), X_Agent_Answer_Keys=wrong)
        assert (status, body["error"]["param"]) == (400, "X-Agent-Answer-Keys")
        assert APPROVER not in body["error"]["message"]


async def test_requests_and_answers_may_be_repeated(deployment: Deployment) -> None:
    """A repeated request gets the parked run, and a repeated answer the same rest, also after the end of the run."""
    await deployment.frontend()
    first = await ask(deployment, headers={"Idempotency_Key": "one"})
    assert await ask(deployment, headers={"Idempotency_Key": "one"}) == first
    path = f"{COMPLETIONS}/{first['id']}/resume"
    _, rest = await send(deployment, "POST", path, APPROVED | {"stream": True})
    assert "".join(texts(rest)) == "approved=True "
    assert await send(deployment, "POST", path, APPROVED | {"stream": True}) == (200, rest)
    _, whole = await send(deployment, "POST", path, APPROVED)
    assert whole["choices"][0]["message"]["content"] == "before approved=True "
    status, refused = await send(deployment, "POST", path, {"answers": {"approval-1": {"approve": False}}})
    assert (status, refused["error"]["code"]) == (409, "already_answered")
    status, refused = await send(deployment, "POST", path, {"answers": {"approval-2": {"approve": True}}})
    assert (status, refused["error"]["code"]) == (409, "not_waiting")
    again = await ask(deployment, headers={"Idempotency_Key": "one"})
    assert again["choices"][0]["message"]["content"] == "before approved=True "


async def test_an_expired_question_says_so(deployment: Deployment) -> None:
    """An answer that comes too late is told apart from a second answer."""
    await deployment.frontend()
    run = await ask(deployment, script="briefly")
    path = f"{COMPLETIONS}/{run['id']}"
    _, messages = await send(deployment, "GET", f"{path}?stream=true")
    while messages[-2][1].get("status") == "requires_action":
        _, messages = await send(deployment, "GET", f"{path}?stream=true")
    assert "".join(texts(messages)) == "nobody answered"
    status, late = await send(deployment, "POST", f"{path}/resume", {"answers": {"question-1": "yes"}})
    assert (status, late["error"]["code"]) == (409, "interrupt_expired")


async def test_the_setting_limits_questions_without_a_time_limit(deployment: Deployment) -> None:
    """INTERRUPT_TIMEOUT_S of the worker is the time limit of a question whose agent gives none."""
    routes = "asked=asking_agents:asking@limited"
    await deployment.worker("b", None, AGENTSTREAM_AGENTS=routes, AGENTSTREAM_INTERRUPT_TIMEOUT_S="3000")
    await deployment.frontend(AGENTSTREAM_AGENTS=routes)
    before_s = time.time()
    run = await ask(deployment, model="asked")
    assert before_s + 3000 <= run["interrupts"][0]["expires_at"] <= time.time() + 3001


async def test_a_parked_run_does_not_count_as_active(deployment: Deployment) -> None:
    """With MAX_RUNS_PER_KEY=1 a parked run lets others begin; an answer to it is accepted in any case."""
    await deployment.frontend(AGENTSTREAM_API_KEYS=OWNER, AGENTSTREAM_MAX_RUNS_PER_KEY="1")
    runs = [await ask(deployment) for _ in range(3)]
    for run in runs:
        status, answer = await send(deployment, "POST", f"{COMPLETIONS}/{run['id']}/resume", APPROVED)
        assert (status, answer["status"]) == (200, "completed")
