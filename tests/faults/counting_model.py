"""A model server that counts: each token of its answer is the next number. It continues an answer that was cut off.

The question is ``count to <last>`` or ``count to <last> with <tool>``; then it calls the tool after the third number.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from agentstream.engines.base import CONTINUE_PROMPT
from tests.model_server import DONE, call, chunk, text

BEFORE_TOOL = 3  # numbers


class CountingModel:
    """Answers every request. ``pause_at`` is a number after which one answer waits until its client is gone."""

    def __init__(self, pause_at: int | None = None) -> None:
        self.url = ""
        self.conversations: list[list[dict[str, Any]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.paused = asyncio.Event()
        self._pause_at = pause_at

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Stream the next numbers, and perhaps a call."""
        body = await request.json()
        self.bodies.append(body)
        self.conversations.append(body["messages"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        first, last, tool = _plan(body["messages"])
        for number in range(first, last + 1):
            await _send(response, text(f" {number}"))
            if number == self._pause_at and not self.paused.is_set():
                self.paused.set()
                await asyncio.get_running_loop().create_future()  # the client closes the connection
        if tool:
            await _send(response, call(index=0, id="call_1", function={"name": tool, "arguments": '{"n": 1}'}))
        usage = {"prompt_tokens": 5, "completion_tokens": last - first + 1, "total_tokens": 6 + last - first}
        await _send(response, chunk({}, "tool_calls" if tool else "stop", usage=usage))
        await _send(response, DONE)
        return response


def _plan(messages: list[dict[str, Any]]) -> tuple[int, int, str]:
    """Return the first and the last number of the answer, and the tool that it calls."""
    question = next(
        found for message in messages if (found := re.search(r"count to (\d+)(?: with (\w+))?", _said(message)))
    )
    last, tool = int(question[1]), question[2] or ""
    tool_ran = any(message["role"] == "tool" for message in messages)
    first = BEFORE_TOOL + 1 if tool_ran else 1
    unfinished = messages[-2] if messages[-1].get("content") == CONTINUE_PROMPT else messages[-1]
    if unfinished["role"] == "assistant":
        first = int(_said(unfinished).split()[-1]) + 1
    return (first, BEFORE_TOOL, tool) if tool and not tool_ran else (first, last, "")


def _said(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


async def _send(response: web.StreamResponse, item: dict[str, Any] | str) -> None:
    await response.write(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode())


@contextlib.asynccontextmanager
async def counting_model(pause_at: int | None = None) -> AsyncIterator[CountingModel]:
    """Serve on a free port."""
    model = CountingModel(pause_at)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model.handle)
    async with TestServer(app) as server:
        model.url = str(server.make_url("/v1"))
        yield model
