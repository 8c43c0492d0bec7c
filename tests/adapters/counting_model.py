"""A fake server of OpenAI's chat completions API that counts, and that continues a cut answer where it stops."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from agentstream.adapters.resuming import CONTINUE_PROMPT, NOT_RUN
from tests.adapters.model_server import text_of

LAST = 40


def numbers(last: int = LAST) -> str:
    """Return the whole answer."""
    return "".join(f"{number} " for number in range(1, last + 1))


class CountingModel:
    """The fake server.

    If the request offers tools, it first says "Let me look. " and calls the tool ``weather``. It calls it again if it
    was not run. Then it counts to ``last``, one number per piece. After ``stops_at`` it waits for ``go``. If the last
    message asks it to continue, it goes on after the text before that message.
    """

    def __init__(self, last: int = LAST, stops_at: int | None = None) -> None:
        self.url = ""
        self.last = last
        self.stops_at = stops_at
        self.bodies: list[dict[str, Any]] = []
        self.go = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        messages = body["messages"]
        cut = ""
        if text_of(messages[-1]["content"]) == CONTINUE_PROMPT:
            cut = text_of(messages[-2]["content"])
        results = [text_of(message["content"]) for message in messages if message["role"] == "tool"]
        calls = bool(body.get("tools")) and (not results or results[-1] == NOT_RUN)
        whole = (
            []
            if calls and results
            else ["Let me ", "look. "]
            if calls
            else [f"{number} " for number in range(1, self.last + 1)]
        )
        assert "".join(whole).startswith(cut), cut
        while cut:
            cut = cut.removeprefix(whole.pop(0))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in whole:
            await _send(response, {"content": piece})
            if piece == f"{self.stops_at} ":
                await self.go.wait()
        if calls:
            function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
            await _send(
                response,
                {"tool_calls": [{"index": 0, "id": f"call-{len(results)}", "type": "function", "function": function}]},
            )
        await _send(response, {}, finish_reason="tool_calls" if calls else "stop")
        usage = {"prompt_tokens": 10, "completion_tokens": len(whole), "total_tokens": 10 + len(whole)}
        await response.write(f"data: {json.dumps(_HEAD | {'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


_HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


async def _send(response: web.StreamResponse, delta: dict[str, Any], finish_reason: str | None = None) -> None:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    await response.write(f"data: {json.dumps(_HEAD | {'choices': choices})}\n\n".encode())


@asynccontextmanager
async def run_counting_model(last: int = LAST, stops_at: int | None = None) -> AsyncIterator[CountingModel]:
    """Run the fake server on a free port."""
    model = CountingModel(last, stops_at)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model.handle)
    async with TestServer(app) as server:
        await server.start_server(handler_cancellation=True)
        model.url = str(server.make_url("/v1"))
        yield model
        model.go.set()
