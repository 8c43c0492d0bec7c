"""Spans: the steps of a run, their place and their duration. If tracing is off, they do nothing and cost nothing.

This module alone uses OpenTelemetry's API, an optional dependency. It imports the API in ``enable``; ``telemetry.otel``
calls that and sets where the spans go. The trace context travels in W3C's ``traceparent`` and ``tracestate``, in
headers and in jobs. No span is made for a token: the smallest unit is a run, an inference or a tool call. Names follow
OpenTelemetry's conventions for HTTP, messaging and generative AI
(https://github.com/open-telemetry/semantic-conventions-genai, October 2026). Names that these conventions lack begin
with ``agentstream.``.
"""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from agentstream.telemetry.masking import mask, mask_error

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context

SCOPE: Final = "agentstream"  # the name of this instrumentation, and of the provider if there is no better name
RUN_ID: Final = "agentstream.run.id"
RUN_STATUS: Final = "agentstream.run.status"  # completed, failed, cancelled, hand_back or lease_lost
ATTEMPT: Final = "agentstream.run.attempt"
QUEUE_WAIT_S: Final = "agentstream.queue.wait_s"
REQUEST_ID: Final = "agentstream.request.id"
STREAM_WHOLE: Final = "agentstream.stream.whole"  # false: the client disconnected before the end of the run
CANCELLED: Final = "agentstream.cancelled"
ERROR_TYPE: Final = "error.type"

# W3C asks to pass on at least 512 characters. A job need not carry the 8 KB that a header may hold.
MAX_TRACESTATE_CHARS: Final = 512
# Limit of one attribute with texts of users, models and tools. Up to 2,048 spans may wait in memory.
MAX_CONTENT_CHARS: Final = 16_384
MAX_MESSAGE_CHARS: Final = 1000

_INT_BITS: Final = 63

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, Any]
Carrier = Mapping[str, str]  # traceparent, and tracestate if there is one; empty without a span


class Span:
    """A span. It ends when its ``with`` block ends. It does nothing if tracing is off.

    An exception that leaves the block fails the span: its class becomes ``error.type``, unless ``fail`` was called
    before. A cancellation is no failure.
    """

    __slots__ = ("_current", "_failed", "_span", "_token")

    def __init__(self, span: "trace.Span | None" = None, *, current: bool = True) -> None:
        """Take a started span. If it is ``current``, spans that start inside its block are its children."""
        self._span = span
        self._current = current
        self._failed = False
        self._token: Any = None

    def __enter__(self) -> Self:
        """Make the span current."""
        if self._span is not None and self._current:
            self._token = _api.context.attach(_api.trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """End the span."""
        if self._span is None:
            return
        if kind is not None:
            if issubclass(kind, asyncio.CancelledError | GeneratorExit):
                self.set({CANCELLED: True})
            else:
                self.fail(kind.__qualname__, str(exc))
        if self._token is not None:
            _api.context.detach(self._token)
        self._span.end()

    def set(self, attributes: Attributes) -> None:
        """Add attributes. An attribute that is None is left out."""
        if self._span is not None:
            self._span.set_attributes(_span_attributes(attributes))

    def fail(self, error_type: str, message: str = "") -> None:
        """Mark the span as failed. Only the first call counts.

        ``message`` may contain users' texts, so it is added only if content is allowed.
        """
        if self._span is not None and not self._failed:
            self._failed = True
            self._span.set_attribute(ERROR_TYPE, error_type)
            description = _sendable(mask_error(message)[:MAX_MESSAGE_CHARS]) if _api.content and message else None
            self._span.set_status(_api.trace.StatusCode.ERROR, description)

    def link(self, carrier: Carrier) -> None:
        """Link to a span of another trace."""
        if self._span is not None and carrier:
            context = _api.trace.get_current_span(_extracted(carrier)).get_span_context()
            if context.is_valid:
                self._span.add_link(context)

    def carrier(self) -> dict[str, str]:
        """Return the trace context with which spans elsewhere become children of this span."""
        return _carrier_of(self._span) if self._span is not None else {}


class _Api:
    """The used parts of OpenTelemetry. ``enable`` sets them. ``content`` allows texts of users, models and tools."""

    tracer: "trace.Tracer | None" = None
    content = False
    trace: Any
    context: Any
    propagator: Any


_api: Final = _Api()
_NOOP_SPAN: Final = Span()


def enable(*, content: bool = False) -> None:
    """Start to make spans. Raises ImportError if OpenTelemetry's API is not installed.

    ``content`` allows the texts of users, models and tools in spans, in the attributes of the conventions.
    """
    from opentelemetry import context, trace  # noqa: PLC0415 -- an optional dependency
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    _api.trace, _api.context, _api.propagator = trace, context, TraceContextTextMapPropagator()
    _api.content = content
    _api.tracer = trace.get_tracer(SCOPE)


def disable() -> None:
    """Make no more spans. Open spans may still end."""
    _api.tracer = None


def enabled() -> bool:
    """Whether spans are made."""
    return _api.tracer is not None


def content_enabled() -> bool:
    """Whether spans may contain the texts of users, models and tools."""
    return _api.tracer is not None and _api.content


def span(
    name: str,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    *,
    parent: Carrier | None = None,
    current: bool = True,
) -> Span:
    """Return a new span for a ``with`` block. It is a child of ``parent``, by default of the current span.

    With an empty ``parent`` it is a root. In an asynchronous generator it must not be ``current``: a generator shares
    the context of its caller.
    """
    if _api.tracer is None:
        return _NOOP_SPAN
    started = _api.tracer.start_span(
        _sendable(name),
        context=None if parent is None else _extracted(parent),
        kind=_api.trace.SpanKind[kind.upper()],
        attributes=_span_attributes(attributes or {}),
    )
    return Span(started, current=current)


def current() -> Span:
    """Return the current span, to add attributes to it."""
    return _NOOP_SPAN if _api.tracer is None else Span(_api.trace.get_current_span())


def carrier() -> dict[str, str]:
    """Return the trace context of the current span, for headers or for fields of a job."""
    return {} if _api.tracer is None else _carrier_of(_api.trace.get_current_span())


def current_ids() -> tuple[str, str] | None:
    """Return the (trace id, span id) of the current span in hex, for log lines. None if there is no span."""
    if _api.tracer is None:
        return None
    span_context = _api.trace.get_current_span().get_span_context()
    return (f"{span_context.trace_id:032x}", f"{span_context.span_id:016x}") if span_context.is_valid else None


def _carrier_of(span: "trace.Span") -> dict[str, str]:
    found: dict[str, str] = {}
    _api.propagator.inject(found, _api.trace.set_span_in_context(span))
    if len(found.get("tracestate", "")) > MAX_TRACESTATE_CHARS:
        del found["tracestate"]
    return found


def _extracted(carrier: Carrier) -> "Context":
    """Return the context in a carrier. It is empty if the carrier is malformed, as W3C asks."""
    context: Context = _api.propagator.extract(carrier, _api.context.Context())
    return context


def _span_attributes(attributes: Attributes) -> dict[str, Any]:
    return {name: _sendable(value) for name, value in attributes.items() if value is not None}


def _sendable(value: Any) -> Any:  # noqa: ANN401 -- the value of an attribute
    """Return a value that protobuf can hold. A value that it cannot hold would lose all spans of the same message."""
    if isinstance(value, str):
        value = mask(value)
        return value if value.isascii() else value.encode(errors="replace").decode()  # lone surrogates
    if isinstance(value, int) and value.bit_length() > _INT_BITS:
        return str(value)
    return [_sendable(item) for item in value] if isinstance(value, list) else value
