"""Baseline ``no bus``: front end and agent in one process, without a broker, a queue or a worker.

It reads, checks and answers requests with the code of the service. So the difference from a run of the service is the
cost of the queue and the bus.
"""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import uvloop
from aiohttp import web

from agentstream.agents import Run
from agentstream.config import load_settings
from agentstream.frontend.api.negotiation import stream_options
from agentstream.frontend.api.parsing import read_request
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.runs.raw_writer import RawWriter
from agentstream.protocol.events import Batch
from agentstream.protocol.interrupts import Interrupt
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.stream.chat import ChatStream, StreamHead
from tests.bench.agents import event

SETTINGS = load_settings()
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache, no-transform"}


class DirectSink:
    """A sink that writes the events of a run directly to the client's stream."""

    def __init__(self, machine: ChatStream, writer: RawWriter) -> None:
        """Write the frames of ``machine`` to ``writer``."""
        self._machine = machine
        self._writer = writer
        self._seq = 1

    def put(self, event_type: str, data: Any) -> None:
        """Write the frames of an event."""
        self._writer.write(self._machine.receive(Batch(1, self._seq, [[event_type, data]])))
        self._seq += 1

    def put_checkpoint(self, state: bytes) -> bool:  # noqa: ARG002
        """Ignore the state: nobody could continue the run."""
        return True

    def ask(self, asked: Interrupt) -> Future[Any]:  # noqa: ARG002
        """Return an answer that never comes: nobody can send one."""
        return Future()

    def take_inputs(self) -> list[dict[str, Any]]:
        """Return nothing: nobody can send input."""
        return []

    async def wait_for_room(self) -> None:
        """Return at once."""


async def stream(request: web.Request) -> web.StreamResponse:
    """Run the agent and stream its answer."""
    chat = await read_request(request, SETTINGS, ChatCompletionRequest)
    options = stream_options(request, include_usage=chat.include_usage)
    head = StreamHead(run_id=new_run_id(), created=0, model=chat.model)
    response = web.StreamResponse(headers=HEADERS)
    writer, machine = RawWriter(request, response, write_timeout_s=30), ChatStream(head, options)
    await writer.prepare()
    writer.write(machine.open())
    sink = DirectSink(machine, writer)
    result = await event(Run(head.run_id, chat, sink))
    answer = {"content": result.content, "tool_results": [], "finish_reason": "stop", "usage": Usage().model_dump()}
    sink.put("run_completed", answer)
    assert machine.tail is not None
    writer.write(b"".join(machine.tail))
    await writer.end()
    return response


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app[CONTEXT] = cast("Context", SimpleNamespace(settings=SETTINGS))  # all that reading a request needs of it
    app.router.add_post("/v1/chat/completions", stream)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"serving on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
