"""Secrets in real processes: a key with a line end works, and no error, event, log line or stored value shows a key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.conftest import Client
from tests.model_server import DONE, chunk, model_server, text
from tests.processes import AGENTS, Processes

ENVIRONMENT = {
    "OPENAI_API_KEY": "sk-secretkey123/+=\n",
    "MY_SERVICE_API_KEY": "svc secret<&>987654",
    "DATABASE_URL": "postgres://me:hunter2hunter2@db/x",
    "UNKNOWN": "not-a-known-secret",
    "AGENTSTREAM_LOG_CONTENT": "true",
    "AGENTSTREAM_LOG_LEVEL": "debug",
}
# Parts of the secrets and of their base64 and hex forms that every encoding would show.
PARTS = ("secretkey123", "987654", "hunter2", "not-a-known", "c2VjcmV0", "NlY3JldG", "ZWNyZXRr", "736563726574")


async def stored(url: str, prefix: str) -> str:
    """Return everything that Redis stores under a prefix, as text."""
    found = []
    async with Redis.from_url(url) as redis:
        async for name in redis.scan_iter(f"{prefix}:*"):
            readers: dict[Any, Callable[[Any], Any]] = {
                b"stream": redis.xrange,
                b"hash": redis.hgetall,
                b"string": redis.get,
            }
            found.append((name, await readers.get(await redis.type(name), redis.dump)(name)))
    return str(found)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_leaves_a_worker(
    processes: Processes, client: Client, broker_url: str, log_format: str
) -> None:
    """No encoding of a key reaches an answer, an event, a log line or Redis, whatever an agent does with it."""
    prefix = processes.queue
    settings = {**ENVIRONMENT, "AGENTSTREAM_KEY_PREFIX": prefix, "AGENTSTREAM_LOG_FORMAT": log_format}
    processes.cwd = AGENTS
    url = await processes.frontend(AGENTSTREAM_KEY_PREFIX=prefix)
    worker = await processes.worker("secret_agents:leak", **settings)
    seen = []
    for how in ("answer", "fail", "header"):
        seen.append(json.dumps(await client.stream(url, how)))
        body = {"model": "m1", "messages": [{"role": "user", "content": how}]}
        answer = await client.post(url, body)
        assert answer.status == (200 if how == "answer" else 500)
        seen.append(await answer.text())
    assert all("***" in text or "(hidden)" in text for text in seen)
    seen += [await stored(broker_url, prefix), worker.output]
    assert "the secrets are quoted:" in worker.output
    assert [part for part in PARTS for text in seen if part in text] == []


async def test_a_key_with_a_line_end_is_sent_without_it(processes: Processes, client: Client) -> None:
    """A key with a line end, as files and secret stores give it, reaches the model server without the line end."""
    async with model_server() as server:
        server.scripts.append([text("hello"), chunk(finish_reason="stop"), DONE])
        url = await processes.frontend()
        await processes.worker(OPENAI_BASE_URL=server.url, OPENAI_API_KEY="sk-secretkey123\n")
        answer = await client.post(url, {"model": "m1", "messages": [{"role": "user", "content": "hi"}]})
        assert (await answer.json())["choices"][0]["message"]["content"] == "hello"
    assert server.headers[0]["Authorization"] == "Bearer sk-secretkey123"


async def test_a_header_of_an_mcp_server_is_not_shown(processes: Processes, tmp_path: Path) -> None:
    """A header with a wrong character ends the start with the name of the header and without its value."""
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"far": {"url": "http://h/mcp", "headers": {"X-Key": "sk-a\nb"}}}}))
    worker = await processes.start("worker", AGENTSTREAM_MCP_SERVERS=str(config))
    assert await worker.ended() == 2
    assert "headers.X-Key" in worker.output
    assert "character 5 cannot be part of a header" in worker.output
    assert "sk-a" not in worker.output
