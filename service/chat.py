"""``agentstream chat``: one question, the agent's doings and its answer on the terminal."""

# ruff: noqa: T201 -- printing is what this is for

import json
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp

from service import sse

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0  # keepalives come every 4 s
EXIT_OK, EXIT_FAILED = 0, 1


async def ask(url: str, question: str, *, model: str, api_key: str | None) -> int:
    """Stream one answer from the front end at ``url``; returns the exit code. Activity goes to standard error."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True}
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(f"{url.rstrip('/')}/v1/chat/completions", json=body) as response,
        ):
            if response.status != 200:  # noqa: PLR2004
                return _failed(await _error_message(response))
            return await _show(_messages(response))
    except aiohttp.ClientConnectorError:
        return _failed(f"nothing answers at {url}; start it with: agentstream up")
    except (aiohttp.ClientError, TimeoutError) as exc:
        return _failed(f"the connection to {url} broke: {str(exc) or type(exc).__name__}")


async def _messages(response: aiohttp.ClientResponse) -> AsyncIterator[sse.Message]:
    decoder = sse.Decoder()
    async for chunk in response.content.iter_any():
        for message in decoder.feed(chunk):
            yield message


async def _show(messages: AsyncIterator[sse.Message]) -> int:
    finished = failed = False
    async for message in messages:
        if message.data == "[DONE]":
            print()
            if failed:
                return _failed("the run failed")
            return EXIT_OK if finished else _failed("the stream ended without its final chunk")
        data: dict[str, Any] = json.loads(message.data)
        if message.event != "message":
            _show_activity(message.event, data)
            continue
        for choice in data["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
            finished = finished or choice["finish_reason"] is not None
        failed = failed or "agent_error" in data
    return _failed("the stream was cut")


def _show_activity(event: str, data: dict[str, Any]) -> None:
    line = {
        "inference_start": f"thinking with {data.get('engine', data.get('model'))}",
        "tool_call_start": f"{data.get('tool')} {data.get('arguments')}",
        "tool_call_end": f"{data.get('tool')} -> {'' if data.get('success') else 'failed: '}{data.get('result')}",
    }.get(event)
    if line:
        print(f"  · {line[:200]}", file=sys.stderr, flush=True)


async def _error_message(response: aiohttp.ClientResponse) -> str:
    text = await response.text()
    try:
        return f"{response.status}: {json.loads(text)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status}: {text[:300]}"


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_FAILED
