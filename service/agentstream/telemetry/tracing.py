"""Spans: what a run did, where, and for how long, as OpenTelemetry has them; nothing, and at no cost, if it is off.

The only module that knows OpenTelemetry's API, which is an optional dependency: it is not imported before
``enable`` (``telemetry.otel`` does that, and tells where the spans go). Context travels by W3C's
``traceparent`` and ``tracestate``, in headers and in jobs. Nothing here is called for a token: a run, an inference or
a tool call is the finest grain. Names are those of OpenTelemetry's conventions for HTTP, messaging and generative AI
(https://github.com/open-telemetry/semantic-conventions-genai, October 2026); what they have no name for is
``agentstream.*``.
"""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context

SCOPE: Final = "agentstream"  # the instrumentation's name, and that of the provider where none is a better one
RUN_ID: Final = "agentstream.run.id"
RUN_STATUS: Final = "agentstream.run.status"  # completed, failed, cancelled, hand_back or lease_lost
ATTEMPT: Final = "agentstream.run.attempt"
QUEUE_WAIT_S: Final = "agentstream.queue.wait_s"
REQUEST_ID: Final = "agentstream.request.id"
STREAM_WHOLE: Final = "agentstream.stream.whole"  # false: the client was gone before the run's end
CANCELLED: Final = "agentstream.cancelled"
ERROR_TYPE: Final = "error.type"

# W3C asks to hand on at least 512 characters; a job need not carry the 8 KB that a header may hold.
MAX_TRACESTATE_CHARS: Final = 512
# Of what users, models and tools wrote, in one attribute: 2,048 spans may wait in memory.
MAX_CONTENT_CHARS: Final = 16_384
MAX_MESSAGE_CHARS: Final = 1000

_INT_BITS: Final = 63

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, Any]
Carrier = Mapping[str, str]  # traceparent, and tracestate if there is one; empty if there is no span


class Span:
    """A span, ended by leaving its ``with``; it does nothing if tracing is off.

    What escapes from the block is told by its class, as ``error.type``, if ``fail`` has not told; a cancel is no error.
    """

    __slots__ = ("_current", "_failed", "_span", "_token")

    def __init__(self, span: "trace.Span | None" = None, *, current: bool = True) -> None:
        """Take what was started. A ``current`` one is the parent of what is started inside its ``with``."""
        self._span = span
        self._current = current
        self._failed = False
        self._token: Any = None

    def __enter__(self) -> Self:
        """Make it current."""
        if self._span is not None and self._current:
            self._token = _api.context.attach(_api.trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """End it."""
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
        """Say more of it; what is None is left out."""
        if self._span is not None:
            self._span.set_attributes(_span_attributes(attributes))

    def fail(self, error_type: str, message: str = "") -> None:
        """Call it failed; the first call counts. ``message`` may hold what users wrote: told where content may be."""
        if self._span is not None and not self._failed:
            self._failed = True
            self._span.set_attribute(ERROR_TYPE, error_type)
            told = _sendable(message[:MAX_MESSAGE_CHARS]) if _api.content and message else None
            self._span.set_status(_api.trace.StatusCode.ERROR, told)

    def link(self, carrier: Carrier) -> None:
        """Point to another trace's span."""
        if self._span is not None and carrier:
            context = _api.trace.get_current_span(_extracted(carrier)).get_span_context()
            if context.is_valid:
                self._span.add_link(context)

    def carrier(self) -> dict[str, str]:
        """Return what makes it the parent of spans elsewhere."""
        return _carrier_of(self._span) if self._span is not None else {}


class _Api:
    """What of OpenTelemetry is used here, once it is on. ``content``: whether spans may tell what users wrote."""

    tracer: "trace.Tracer | None" = None
    content = False
    trace: Any
    context: Any
    propagator: Any


_api: Final = _Api()
_NOOP_SPAN: Final = Span()


def enable(*, content: bool = False) -> None:
    """Start to make spans; raises ImportError if OpenTelemetry's API is not installed.

    ``content`` allows what users, models and tools wrote, in the attributes that the conventions have for it.
    """
    from opentelemetry import context, trace  # noqa: PLC0415 -- an optional dependency
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    _api.trace, _api.context, _api.propagator = trace, context, TraceContextTextMapPropagator()
    _api.content = content
    _api.tracer = trace.get_tracer(SCOPE)


def disable() -> None:
    """Make no more spans; those that are open may still be ended."""
    _api.tracer = None


def enabled() -> bool:
    """Whether spans are made."""
    return _api.tracer is not None


def content_enabled() -> bool:
    """Whether spans may tell what users, models and tools wrote."""
    return _api.tracer is not None and _api.content


def span(
    name: str,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    *,
    parent: Carrier | None = None,
    current: bool = True,
) -> Span:
    """Return a new span, for a ``with``: a child of ``parent`` (a root, if that is empty), by default of the current.

    Inside an asynchronous generator it must not be ``current``: a generator shares its caller's context.
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
    """Return the span that is current, to say more of it."""
    return _NOOP_SPAN if _api.tracer is None else Span(_api.trace.get_current_span())


def carrier() -> dict[str, str]:
    """Return what makes the current span the parent of spans elsewhere: headers, or fields of a job."""
    return {} if _api.tracer is None else _carrier_of(_api.trace.get_current_span())


def current_ids() -> tuple[str, str] | None:
    """Return the current span's (trace id, span id) in hex, for log records; None if there is none."""
    if _api.tracer is None:
        return None
    here = _api.trace.get_current_span().get_span_context()
    return (f"{here.trace_id:032x}", f"{here.span_id:016x}") if here.is_valid else None


def _carrier_of(span: "trace.Span") -> dict[str, str]:
    found: dict[str, str] = {}
    _api.propagator.inject(found, _api.trace.set_span_in_context(span))
    if len(found.get("tracestate", "")) > MAX_TRACESTATE_CHARS:
        del found["tracestate"]
    return found


def _extracted(carrier: Carrier) -> "Context":
    """Return the context that a carrier tells, empty if it is not understood, as W3C asks."""
    context: Context = _api.propagator.extract(carrier, _api.context.Context())
    return context


def _span_attributes(attributes: Attributes) -> dict[str, Any]:
    return {name: _sendable(value) for name, value in attributes.items() if value is not None}


def _sendable(value: Any) -> Any:  # noqa: ANN401 -- whatever is told
    """Return a value that protobuf can hold: one that it cannot would cost all spans that are sent with it."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()  # lone surrogates
    if isinstance(value, int) and value.bit_length() > _INT_BITS:
        return str(value)
    return [_sendable(item) for item in value] if isinstance(value, list) else value
