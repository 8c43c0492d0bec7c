"""The log lines of real processes: they show how a run went, and they contain no text of users."""

import asyncio
import json
import re
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.helpers import TIMEOUT_S
from tests.integration.conftest import Client
from tests.processes import Process, Processes

QUESTION = "marked-question"
ARGUMENT = "marked-argument"
API_KEY = "sk-marked-caller"
ENGINE_KEY = "sk-marked-engine"
IDEMPOTENCY_KEY = "marked-idempotency"
FORGED = "2026-01-01T00:00:00.000Z CRITICAL forged[1] forged: marked-forgery"
MARK = "marked-"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +(?:frontend|worker)\[\d+\] [\w.]+: ")


@pytest.fixture
async def echoing_engine() -> AsyncIterator[str]:
    """A model server that refuses every request with an error that quotes the request and its key."""

    async def refuse(request: web.Request) -> web.Response:
        quote = f"{request.headers['Authorization']} {await request.text()}"
        return web.json_response({"error": {"message": quote, "type": "server_error"}}, status=400)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", refuse)
    async with TestServer(app) as server:
        yield str(server.make_url("/v1"))


def body_of(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m1", "messages": [{"role": "user", "content": text}], **fields}


async def send_bytes(url: str, request: bytes) -> None:
    """Send these bytes as a request, and read the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urllib.parse.urlsplit(url).port)
    writer.write(request)
    async with asyncio.timeout(TIMEOUT_S):
        await reader.read()
    writer.close()


async def send_marked_requests(client: Client, url: str) -> None:
    """Send requests with marked text in every part of a request, some valid and some invalid."""
    session = client.session
    key = {"Authorization": f"Bearer {API_KEY}"}
    for text in (QUESTION, f"fail {QUESTION}", f"lie {QUESTION}"):
        for stream in (False, True):
            await client.post(url, body_of(f"{text} {ARGUMENT}", stream=stream), **key)
    await client.post(url, body_of(QUESTION), **key, **{"Idempotency-Key": IDEMPOTENCY_KEY})
    assert (await client.post(url, body_of("x"), **key, **{"Idempotency-Key": IDEMPOTENCY_KEY})).status == 409
    assert (await client.post(url, body_of(QUESTION), Authorization=f"Bearer {MARK}guess")).status == 401
    assert (await client.post(url, body_of(QUESTION, temperature="marked-number"), **key)).status == 400
    assert (await client.post(url, body_of(QUESTION, stream_options="marked-option"), **key)).status == 400
    await client.post(url, body_of(QUESTION, model=f"m\n{FORGED}\x1b[31m\u2028\x9b2J"), **key)
    async with session.post(f"{url}/v1/chat/completions", data=f'{{"{QUESTION}', headers=key) as response:
        assert response.status in {400, 415}
    for path in (f"/{MARK}path?token={MARK}query", f"/v1/models/{MARK}model", f"/v1/chat/completions/{MARK}run"):
        async with session.get(f"{url}{path}", headers=key) as response:
            assert response.status == 404
    head = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    await send_bytes(url, head + b"X-Request-Id: \x1b[31m " + FORGED.encode() + b"\r\n\r\n")
    await send_bytes(url, head + b"X-Request-Id: a\r\n\r\nb marked-smuggled\r\n\r\n")
    await send_bytes(url, b"G\x1bT /marked-verb HTTP/1.1\r\nmarked header\r\n\r\n")


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_text_of_a_request_or_answer_is_logged(
    processes: Processes, client: Client, echoing_engine: str, broker_url: str, form: str
) -> None:
    """Without the texts of errors, no line at level debug has a text or a key, and no request can forge a line."""
    common = {"AGENTSTREAM_LOG_LEVEL": "debug", "AGENTSTREAM_LOG_FORMAT": form, "AGENTSTREAM_LOG_ERRORS": "false"}
    url = await processes.frontend(AGENTSTREAM_API_KEYS=API_KEY, **common)
    for agent in ("logging_agents:in_a_thread", "logging_agents:on_the_loop", ""):
        worker = await processes.worker(
            agent, OPENAI_BASE_URL=echoing_engine, OPENAI_API_KEY=ENGINE_KEY, AGENTSTREAM_ENGINE_TIMEOUT_S="5", **common
        )
        await send_marked_requests(client, url)
        await worker.stop()
    await processes.started[0].stop()
    outputs = [process.output for process in processes.started]
    password = urllib.parse.unquote(urllib.parse.urlsplit(broker_url).password or "")
    assert password
    for output in outputs:
        assert MARK not in output
        assert password not in output
        assert "\x1b" not in output
        for line in output.splitlines():
            assert line.startswith("    ") or LINE.match(line) if form == "text" else json.loads(line)["message"]
    assert "ValueError" in "".join(outputs)  # the class of an error is logged


def lines_of(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output.splitlines()]


@pytest.mark.parametrize("agent", ["in_a_thread", "on_the_loop"])
async def test_the_lines_about_a_run_have_its_ids_in_all_processes(
    processes: Processes, client: Client, agent: str
) -> None:
    """The client's request id and the run's id are on every line about the run, including the agent's lines."""
    url = await processes.frontend(AGENTSTREAM_LOG_FORMAT="json", AGENTSTREAM_LOG_LEVEL="debug")
    worker = await processes.worker(f"logging_agents:{agent}", AGENTSTREAM_LOG_FORMAT="json")
    answer = await client.post(url, body_of("hello"), **{"X-Request-Id": "trace-me.1"})
    run_id = (await answer.json())["id"]
    assert answer.headers["X-Request-Id"] == "trace-me.1"
    await worker.until("the run ended")
    about = [line for line in lines_of(worker) if line.get("run_id") == run_id]
    assert {"a line of the agent's own", "the run ended"} <= {line["message"] for line in about}
    for line in about:
        assert (line["request_id"], line["queue"], line["attempt"]) == ("trace-me.1", processes.queue, 1)
        assert line["worker"]
    end = about[-1]
    assert (end["outcome"], end["finish_reason"], end["level"], end["process"]) == (
        "completed",
        "stop",
        "info",
        "worker",
    )
    assert end["completion_tokens"] > 0
    assert end["duration_ms"] >= 0
    await processes.started[0].until(rf"a request ended.*{run_id}")
    ended = [line for line in lines_of(processes.started[0]) if line.get("run_id") == run_id]
    assert [(line["message"], line["request_id"], line["status"]) for line in ended] == [
        ("a request ended", "trace-me.1", 200)
    ]


async def test_a_failure_is_logged_without_its_message(processes: Processes, client: Client) -> None:
    """A failure is logged once with its class, its traceback and its code; only the answer has its message."""
    url = await processes.frontend()
    settings = {"AGENTSTREAM_LOG_FORMAT": "json", "AGENTSTREAM_LOG_ERRORS": "false"}
    worker = await processes.worker("logging_agents:in_a_thread", **settings)
    failed = await client.post(url, body_of(f"fail {QUESTION}"))
    assert QUESTION in (await failed.json())["error"]["message"]
    await worker.until("the run ended")
    error, end = [line for line in lines_of(worker) if line.get("run_id")][-2:]
    assert error["message"] == "the agent failed"
    assert "logging_agents.py" in error["exception"]
    assert error["exception"].splitlines()[-1] == "ValueError"
    assert end["outcome"] == "agent_error"
    refused = await processes.started[0].until(r".* a request was refused .*")
    assert "status=500 code=agent_error" in refused[0]
    assert f"run_id={end['run_id']} request_id={failed.headers['X-Request-Id']}" in refused[0]


async def test_log_content_logs_texts_but_no_key(processes: Processes, client: Client, echoing_engine: str) -> None:
    """With log_content at level debug, questions, answers and error messages are logged, and keys are masked."""
    settings = {"AGENTSTREAM_LOG_CONTENT": "true", "AGENTSTREAM_LOG_LEVEL": "debug", "AGENTSTREAM_LOG_FORMAT": "json"}
    url = await processes.frontend()
    engine = {"OPENAI_BASE_URL": echoing_engine, "OPENAI_API_KEY": ENGINE_KEY}
    worker = await processes.worker("logging_agents:in_a_thread", **settings)
    await client.post(url, body_of(QUESTION))
    await worker.until("answer: ")
    logged = {line["message"] for line in lines_of(worker)}
    assert f"answer: {QUESTION}" in logged
    assert any(message.startswith("question: ") and QUESTION in message for message in logged)
    await worker.stop()
    builtin = await processes.worker("", **engine, **settings)
    await client.post(url, body_of(QUESTION))
    await builtin.until("answer: ")
    assert "Bearer *** " in builtin.output
    assert ENGINE_KEY not in builtin.output


async def test_refusals_cannot_flood_the_log(processes: Processes, client: Client) -> None:
    """If many requests are refused, few lines are written, and the next line has the number of omitted lines."""
    url = await processes.frontend()

    async def refused() -> None:
        async with client.session.get(f"{url}/nowhere") as response:
            assert response.status == 404

    for _ in range(200):
        await refused()
    assert processes.started[0].output.count("a request was refused") < 60
    async with asyncio.timeout(TIMEOUT_S):
        while " omitted=" not in processes.started[0].output:
            await refused()
            await asyncio.sleep(0.1)
