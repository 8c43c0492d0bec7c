"""A model server and a tool server of other vendors, which trace themselves with OpenTelemetry's instrumentation.

traced_servers.py model      serves a model, and prints its port
traced_servers.py tools      is an MCP server on its standard input and output
"""

import asyncio
import json
import sys

from aiohttp import web
from mcp.server import MCPServer
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import ProcessResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

USAGE = {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}


def traced_as(name: str) -> None:
    """Send the spans of this process to OTEL_EXPORTER_OTLP_ENDPOINT."""
    provider = TracerProvider(
        resource=ProcessResourceDetector().detect().merge(Resource.create({"service.name": name}))
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


async def complete(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions: calls the tool "weather" once, if there is one.

    Refuses or hangs if the question says so.
    """
    context = propagate.extract(request.headers)
    tracer = trace.get_tracer("model")
    with tracer.start_as_current_span("POST /v1/chat/completions", context=context, kind=trace.SpanKind.SERVER):
        body = await request.json()
        asked = next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")
        if "refuse" in asked:
            error = {"message": f"I was asked: {asked}", "type": "invalid_request_error", "code": "no"}
            return web.json_response({"error": error}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        answered = any(message["role"] == "tool" for message in body["messages"])
        tool = next((tool["function"]["name"] for tool in body.get("tools", ()) if "weather" in str(tool)), None)
        deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
        if "hang" in asked:
            await _send(response, {"content": "I "})
            await asyncio.Event().wait()
        calls = tool is not None and not answered
        if calls:
            function = {"name": tool, "arguments": '{"city": "Oslo"}'}
            deltas.append({"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": function}]})
        else:
            deltas += [{"content": word} for word in ("It ", "is ", "sunny.")]
        for delta in deltas:
            await _send(response, delta)
        await _send(response, {}, "tool_calls" if calls else "stop")
        await response.write(f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\ndata: [DONE]\n\n".encode())
        return response


async def _send(response: web.StreamResponse, delta: dict[str, object], reason: str | None = None) -> None:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "answer-1", "object": "chat.completion.chunk", "created": 1, "model": "m-2026", "choices": [choice]}
    await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


async def serve_model() -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"model on {runner.addresses[0][1]}", flush=True)  # noqa: T201 -- read by the test
    await asyncio.Event().wait()


def serve_tools() -> None:
    server = MCPServer("forecast", log_level="ERROR")

    @server.tool()
    def weather(city: str) -> str:
        """Return the weather."""
        return f"sunny in {city}"

    server.run()


if __name__ == "__main__":
    traced_as(f"{sys.argv[1]}-server")
    if sys.argv[1] == "model":
        asyncio.run(serve_model())
    else:
        serve_tools()
