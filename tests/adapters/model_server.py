"""A fake server of OpenAI's chat completions API; the last user message decides what it does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


class ModelServer:
    """The fake server. It looks for words in the last user message.

    For "weather", or the name of its ``tool``, it calls this tool with ``arguments``, and then answers with the tool's
    result. For "hang" it stops in the middle of the answer. For "refuse" it answers with status 400. After the first
    piece of its last answer it waits for ``go``. Its first answers make the calls in ``script`` (name, arguments and
    id), if there are any.
    """

    def __init__(self) -> None:
        self.url = ""
        self.tool = "weather"
        self.arguments = '{"city": "Oslo"}'
        self.call_id = "call-oslo"
        self.script: list[tuple[str, str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.client_gone = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.asked.set()
        question = next(text_of(m["content"]) for m in reversed(body["messages"]) if m["role"] == "user")
        if "refuse" in question:
            message = {"message": "400: this model was asked to refuse", "type": "invalid_request_error"}
            return web.json_response({"error": message}, status=400)
        results = [text_of(m["content"]) for m in body["messages"] if m["role"] == "tool"]
        if "hang" in question:
            pieces: list[str | None] = ["I ", None]
        elif results:
            pieces = ["It is ", None, f"{results[-1]}."]
        else:
            pieces = ["Let me look. "]
        call = not results and ("weather" in question or self.tool in question)
        if self.script:
            self.tool, self.arguments, self.call_id = self.script.pop(0)
            call, pieces = True, []
        usage = {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}
        if call:
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        if body.get("stream"):
            return await self._stream(request, pieces, usage, call=call)
        for piece in pieces:
            if piece is None:
                await self.go.wait()
        text = "".join(piece for piece in pieces if piece)
        answer = {"role": "assistant", "content": text, **({"tool_calls": [self._call()]} if call else {})}
        choice = {"index": 0, "message": answer, "finish_reason": "tool_calls" if call else "stop"}
        return web.json_response(_head("chat.completion") | {"choices": [choice], "usage": usage})

    def _call(self) -> dict[str, Any]:
        function = {"name": self.tool, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}

    async def _stream(
        self, request: web.Request, pieces: list[str | None], usage: dict[str, int], *, call: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(data: dict[str, Any]) -> None:
            await response.write(f"data: {json.dumps(_head('chat.completion.chunk') | data)}\n\n".encode())

        def choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

        try:
            await send(choice({"role": "assistant", "content": ""}))
            for piece in pieces:
                if piece is None:
                    await self.go.wait()
                else:
                    await send(choice({"content": piece}))
            if call:
                await send(choice({"tool_calls": [{"index": 0, **self._call()}]}))
            await send(choice({}, "tool_calls" if call else "stop"))
            await send({"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.client_gone.set()
            raise
        return response


def _head(kind: str) -> dict[str, Any]:
    return {"id": "c1", "object": kind, "created": 1, "model": "m"}


def text_of(content: Any) -> str:
    """Return the text of a message's content."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


@asynccontextmanager
async def run_model_server() -> AsyncIterator[ModelServer]:
    """Run the fake server on a free port."""
    model = ModelServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model.handle)
    async with TestServer(app) as server:
        await server.start_server(handler_cancellation=True)
        model.url = str(server.make_url("")).rstrip("/")
        yield model
        model.go.set()
