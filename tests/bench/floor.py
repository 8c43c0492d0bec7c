"""Baseline ``floor``: the same bytes from memory, written by aiohttp, without a bus, an agent or a thought.

As fast as aiohttp on uvloop gets: each frame is there before the measurement begins, framing of HTTP included, and
goes straight to the transport.
"""

import asyncio
import secrets
import time
from typing import Final

import uvloop
from aiohttp import web

from service import sse
from tests.bench.tokens import TOKEN, Load, Pace, stamped

TICK_S: Final = 0.001
HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache, no-transform"}

transports: list[asyncio.Transport] = []
CREATED: Final = int(time.time())


def chunk(seq: int, delta: str) -> bytes:
    """Return a chunk as it goes over the wire, as many bytes as the service's."""
    run_id = f"chatcmpl-{secrets.token_hex(16)}"
    fields = f'{{"id":"{run_id}","object":"chat.completion.chunk","created":{CREATED},"model":"agentstream",'
    body = f'{fields}"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}'
    return sse.frame(body.encode(), event_id=f"1-{seq}")


def framed(data: bytes) -> bytes:
    """Return data as one chunk of HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def stream(request: web.Request) -> web.StreamResponse:
    """Send the role chunk, then wait: the tokens are written from elsewhere."""
    await request.json()
    response = web.StreamResponse(headers=HEADERS)
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(chunk(0, '{"role":"assistant"}'))
    assert request.transport is not None
    transports.append(request.transport)
    await asyncio.Event().wait()
    return response


async def go(request: web.Request) -> web.Response:
    """Write to all streams, round by round."""
    load = Load.model_validate(await request.json())
    frames = [chunk(seq, f'{{"content":"{TOKEN}"}}') for seq in range(2, 2 + load.rounds * load.burst)]
    rounds = [framed(b"".join(frames[at : at + load.burst])) for at in range(0, len(frames), load.burst)]
    for data in rounds:
        for transport in transports:
            transport.write(data)
        await asyncio.sleep(0)
    return web.Response()


async def pace(request: web.Request) -> web.Response:
    """Write tokens that tell their time, evenly, to one stream after the other."""
    load = Pace.model_validate(await request.json())
    before, after = chunk(2, '{"content":"@"}').split(b"@")
    began_s, written = time.monotonic(), 0
    while (passed_s := time.monotonic() - began_s) < load.for_s:
        due = int(min(passed_s, load.for_s) * load.per_s)
        for number in range(written, due):
            transports[number % len(transports)].write(framed(before + stamped().encode() + after))
        written = max(written, due)
        await asyncio.sleep(TICK_S)
    return web.json_response({"written": written})


async def forget(_request: web.Request) -> web.Response:
    """Forget streams whose clients have gone."""
    transports.clear()
    return web.Response()


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", stream)
    app.router.add_post("/go", go)
    app.router.add_post("/pace", pace)
    app.router.add_post("/forget", forget)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(f"serving on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201 -- read by the parent
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
