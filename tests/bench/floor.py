"""Baseline ``floor``: aiohttp writes the same bytes from memory, without a bus and without agents.

This is the limit of aiohttp on uvloop. The frames of each stream exist before the measurement begins and go directly to
the transport, as HTTP chunks.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop
from aiohttp import web

from agentstream.stream import sse
from tests.bench.tokens import WORD, Load, Pace, stamp, write_all, write_at_pace

HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache, no-transform"}

transports: list[asyncio.Transport] = []
responses: list[web.StreamResponse] = []
frames: list[list[bytes]] = []
CREATED: Final = int(time.time())


def chunk(run_id: str, seq: int, delta: str) -> bytes:
    """Return a frame with a chunk, with the same length as a frame of the service."""
    fields = f'{{"id":"{run_id}","object":"chat.completion.chunk","created":{CREATED},"model":"agentstream",'
    body = f'{fields}"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}'
    return sse.frame(body.encode(), event_id=f"1-{seq}")


async def stream(request: web.Request) -> web.StreamResponse:
    """Send the role chunk and wait. ``go`` writes the tokens."""
    await request.json()
    response = web.StreamResponse(headers=HEADERS)
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(chunk("chatcmpl-", 0, '{"role":"assistant"}'))
    assert request.transport is not None
    transports.append(request.transport)
    responses.append(response)
    await asyncio.Event().wait()
    return response


async def prepare(request: web.Request) -> web.Response:
    """Create the frames of a load for each stream."""
    load = Load.model_validate(await request.json())
    frames.clear()
    for _ in transports:
        run_id = f"chatcmpl-{secrets.token_hex(16)}"
        texts = [chunk(run_id, seq, f'{{"content":"{WORD}"}}') for seq in range(2, 2 + load.rounds * load.burst)]
        frames.append([b"".join(texts[at : at + load.burst]) for at in range(0, len(texts), load.burst)])
    return web.Response()


async def go(request: web.Request) -> web.Response:
    """Write the prepared frames, or tokens with their write time."""
    load = Load.model_validate(await request.json())
    before, after = chunk(f"chatcmpl-{secrets.token_hex(16)}", 2, '{"content":"@"}').split(b"@")

    def write(stream: int, number: int) -> None:
        data = before + stamp().encode() + after if load.stamped else frames[stream][number]
        transports[stream].write(b"%x\r\n%b\r\n" % (len(data), data))

    if load.per_s is None and not load.raw:
        for number in range(load.rounds):
            for stream_frames, response in zip(frames, responses, strict=True):
                await response.write(stream_frames[number])
            await asyncio.sleep(0)
        return web.Response()
    await write_all(load, len(transports), write)
    return web.Response()


async def pace(request: web.Request) -> web.Response:
    """Write tokens at a pace, as a handler of aiohttp would."""
    asked = Pace.model_validate(await request.json())
    before, after = chunk(f"chatcmpl-{secrets.token_hex(16)}", 2, '{"content":"@"}').split(b"@")

    def writer(response: web.StreamResponse) -> Callable[[str], Awaitable[None]]:
        return lambda token: response.write(before + token.encode() + after)

    await write_at_pace(asked, map(writer, responses))
    return web.Response()


async def forget(_request: web.Request) -> web.Response:
    """Forget the streams of clients that have disconnected."""
    transports.clear()
    responses.clear()
    return web.Response()


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", stream)
    app.router.add_post("/go", go)
    app.router.add_post("/prepare", prepare)
    app.router.add_post("/pace", pace)
    app.router.add_post("/forget", forget)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(f"serving on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
