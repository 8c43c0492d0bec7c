"""Baseline ``seed``: the design of the original bridge, with FastAPI, uvicorn and one in-process queue per stream.

It dumps a pydantic model for each chunk, and calls an agent in a thread. It uses httptools and uvloop, and pauses
between words only if the request says "with pauses". So this is the limit of that design.
"""

import asyncio
import json
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Final

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tests.bench.tokens import WORD, Load, Pace, write_all, write_at_pace

PAUSE_S: Final = 0.012  # the pause of the original bridge after each word


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
    if request.messages[-1].content == "hold":
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues.append(queue)
        answer = chunks(request.model, queue)
    else:
        answer = run(request.model, pause_s=PAUSE_S if request.messages[-1].content == "with pauses" else 0)
    return StreamingResponse(answer, media_type="text/event-stream")


async def chunks(model: str, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
    """Yield a chunk for each token, until the client disconnects."""
    run_id = f"chatcmpl-{secrets.token_hex(16)}"
    yield data(run_id, model, Delta(role="assistant"))
    while True:
        yield data(run_id, model, Delta(content=await queue.get()))


async def run(model: str, pause_s: float) -> AsyncIterator[str]:
    """Run an agent in a thread, and yield its event, and its answer of 20 words when it has returned."""
    loop, events, run_id = asyncio.get_running_loop(), asyncio.Queue[str | None](), f"chatcmpl-{secrets.token_hex(16)}"

    def agent() -> str:
        loop.call_soon_threadsafe(events.put_nowait, json.dumps({"agent": "bench"}))
        loop.call_soon_threadsafe(events.put_nowait, None)
        return WORD * 20

    called = asyncio.ensure_future(asyncio.to_thread(agent))
    yield data(run_id, model, Delta(role="assistant"))
    while (event := await events.get()) is not None:
        yield f"event: agent_turn_start\ndata: {event}\n\n"
    for word in (await called).split():
        yield data(run_id, model, Delta(content=f" {word}"))
        if pause_s:
            await asyncio.sleep(pause_s)
    yield data(run_id, model, Delta(), "stop")
    yield "data: [DONE]\n\n"


def data(run_id: str, model: str, delta: Delta, finish_reason: str | None = None) -> str:
    """Return a chunk as an SSE frame."""
    chunk = Chunk(id=run_id, model=model, choices=[Choice(delta=delta, finish_reason=finish_reason)])
    return f"data: {chunk.model_dump_json()}\n\n"


@app.post("/go")
async def go(load: Load) -> None:
    """Put tokens into the queues."""

    def write(stream: int, _: int) -> None:
        for _ in range(load.burst):
            queues[stream].put_nowait(WORD)

    await write_all(load, len(queues), write)


@app.post("/pace")
async def pace(asked: Pace) -> None:
    """Put tokens into the queues at a pace."""
    await write_at_pace(asked, [queue.put_nowait for queue in queues])


@app.post("/forget")
async def forget() -> None:
    """Forget the streams of clients that have disconnected."""
    queues.clear()


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", loop="uvloop", http="httptools")).run([listener])
    sys.exit()
