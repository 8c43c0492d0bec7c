"""Baseline ``seed``: the design of the original bridge, with FastAPI, uvicorn and one in-process queue per stream.

It dumps a pydantic model for each chunk. It has no pause between words and uses httptools and uvloop, so this is the
limit of that design.
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
    """The delta of a chunk."""

    role: str | None = None
    content: str | None = None


class Choice(BaseModel):
    """The only choice of a chunk."""

    index: int = 0
    delta: Delta
    finish_reason: str | None = None


class Chunk(BaseModel):
    """A chunk. It is validated and dumped for every token."""

    id: str
    object: str = "chat.completion.chunk"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[Choice]


app = FastAPI()
queues: list[asyncio.Queue[str]] = []


@app.post("/v1/chat/completions")
async def stream(request: Request) -> StreamingResponse:
    """Stream the tokens of a queue that belongs to this request."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.append(queue)
    return StreamingResponse(chunks(request.model, queue), media_type="text/event-stream")


async def chunks(model: str, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
    """Yield a chunk for each token, until the client disconnects."""
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
    """Forget the streams of clients that have disconnected."""
    queues.clear()


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", loop="uvloop", http="httptools")).run([listener])
    sys.exit()
