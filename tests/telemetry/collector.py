"""A collector of spans: it receives them by OTLP over HTTP, like any OpenTelemetry backend, and keeps them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.helpers import TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class ReceivedSpan:
    """A received span. Ids are hex, times are Unix times in s. ``parent`` is empty for a root."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    begin_s: float
    end_s: float
    failed: bool
    message: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]  # (trace, span)
    resource: dict[str, Any]

    @property
    def process(self) -> tuple[str, int]:
        """The service name and pid of its process."""
        return self.resource["service.name"], self.resource["process.pid"]


@dataclass
class Collector:
    """The spans received so far. ``headers`` are those of the latest request."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    _received: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive_spans(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        export = ExportTraceServiceRequest.FromString(await request.read())
        self.headers = dict(request.headers)
        for of_resource in export.resource_spans:
            resource = _plain(of_resource.resource.attributes)
            self.spans += [_read(span, resource) for scope in of_resource.scope_spans for span in scope.spans]
        self._received.set()
        return web.Response(content_type="application/x-protobuf")

    async def until(self, found: Callable[[list[ReceivedSpan]], bool]) -> list[ReceivedSpan]:
        """Return the spans when ``found`` returns true for them.

        Raises AssertionError with the names of the received spans after a timeout.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not found(self.spans):
                    self._received.clear()
                    await self._received.wait()
        except TimeoutError:
            names = [(span.name, span.process) for span in self.spans]
            message = f"the expected spans did not arrive in {TIMEOUT_S} s; received: {names}"
            raise AssertionError(message) from None
        return self.spans

    async def run(self, run_id: str, *names: str) -> list[ReceivedSpan]:
        """Return the spans of a run's trace.

        Wait for the span of the front end, and for a span whose name begins with each of ``names``.
        """

        def of_trace(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
            ours = (span for span in spans if span.attributes.get("agentstream.run.id") == run_id)
            trace = next((span.trace for span in ours if span.kind == "producer"), "")
            return [span for span in spans if span.trace == trace]

        def complete(spans: list[ReceivedSpan]) -> bool:
            received = of_trace(spans)
            has_request = any(span.kind == "server" and span.process[0] == "agentstream-frontend" for span in received)
            return has_request and all(any(span.name.startswith(name) for span in received) for name in names)

        return of_trace(await self.until(complete))


def _read(span: Span, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        begin_s=span.start_time_unix_nano / 1e9,
        end_s=span.end_time_unix_nano / 1e9,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        message=span.status.message,
        attributes=_plain(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        resource=resource,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def application(collector: Collector) -> web.Application:
    """Return the application that passes spans to a collector."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", collector.receive_spans)
    return app


@asynccontextmanager
async def running_collector() -> AsyncIterator[Collector]:
    """Run a collector on a free port while the block runs."""
    collector = Collector()
    async with TestServer(application(collector)) as server:
        collector.url = str(server.make_url("")).rstrip("/")
        yield collector
