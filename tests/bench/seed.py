"""Baseline ``seed``: the original's way. FastAPI, uvicorn, an in-process queue a stream, a pydantic dump a chunk.

No pause between words, and httptools and uvloop under it: as fast as that way gets.
"""

import asyncio
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tests.bench.tokens import WORD, Load, write_all


class Message(BaseModel):
    """A message of the request."""

    role: str
    content: str


class Request(BaseModel):
    """The request."""

    model: str
    messages: list[Message]
    stream: bool = False


class Delta(BaseModel):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None


class Choice(BaseModel):
    """The one choice."""

    index: int = 0
    delta: Delta
    finish_reason: str | None = None


class Chunk(BaseModel):
    """A chunk, validated and dumped anew for every token."""

    id: str
    object: str = "chat.completion.chunk"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[Choice]


app = FastAPI()
queues: list[asyncio.Queue[str]] = []


@app.post("/v1/chat/completions")
async def stream(request: Request) -> StreamingResponse:
    """Stream what comes into a queue of the request's own."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.append(queue)
    return StreamingResponse(chunks(request.model, queue), media_type="text/event-stream")


async def chunks(model: str, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
    """Yield a chunk a token, for ever: the client closes."""
    run_id = f"chatcmpl-{secrets.token_hex(16)}"
    first = Chunk(id=run_id, model=model, choices=[Choice(delta=Delta(role="assistant"))])
    yield f"data: {first.model_dump_json()}\n\n"
    while True:
        token = await queue.get()
        chunk = Chunk(id=run_id, model=model, choices=[Choice(delta=Delta(content=token))])
        yield f"data: {chunk.model_dump_json()}\n\n"


@app.post("/go")
async def go(load: Load) -> None:
    """Put tokens into the queues."""

    def write(stream: int, _: int) -> None:
        for _ in range(load.burst):
            queues[stream].put_nowait(WORD)

    await write_all(load, len(queues), write)


@app.post("/forget")
async def forget() -> None:
    """Forget streams whose clients have gone."""
    queues.clear()


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", loop="uvloop", http="httptools")).run([listener])
    sys.exit()
