"""A fake model server that speaks OpenAI's protocol. A test scripts its answers, including wrong ones."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
DONE = "[DONE]"
CUT = "<cut the connection>"
WAIT = "<wait for the client to go>"


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **fields: object) -> dict[str, Any]:
    """Return a chunk of an answer."""
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish_reason}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **fields}


def text(words: str) -> dict[str, Any]:
    """Return a chunk with text."""
    return chunk({"content": words})


def call(**part: object) -> dict[str, Any]:
    """Return a chunk with one part of a tool call."""
    return chunk({"tool_calls": [part]})


def error(status: int, message: str, **fields: object) -> web.Response:
    """Return an error response in OpenAI's shape."""
    return web.json_response({"error": {"message": message, "type": "t", "param": None, **fields}}, status=status)


Script = Sequence[dict[str, Any] | str] | web.Response


class FakeModelServer:
    """Answers each request with the next script: a sequence of chunks or raw data to stream, or one response."""

    def __init__(self) -> None:
        self.url = ""
        self.scripts: list[Script] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.asked = asyncio.Event()
        self.client_gone = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self.asked.set()
        script = self.scripts.pop(0)
        if isinstance(script, web.Response):
            return script
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for item in script:
            if item == CUT:
                assert request.transport is not None
                request.transport.abort()
            elif item == WAIT:
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    self.client_gone.set()
            else:
                data = item if isinstance(item, str) else json.dumps(item)
                await response.write(f"data: {data}\n\n".encode())
        return response


@contextlib.asynccontextmanager
async def model_server() -> AsyncIterator[FakeModelServer]:
    """Serve on a free port, for an engine in this process or in a worker process."""
    fake = FakeModelServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", fake.handle)
    server = TestServer(app)
    await server.start_server()
    fake.url = str(server.make_url("/v1"))
    try:
        yield fake
    finally:
        await server.close()
