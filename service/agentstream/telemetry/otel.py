"""Where spans go: OpenTelemetry's SDK, set up by OpenTelemetry's own variables, and ended in a bounded time.

Whatever is wrong with it (not installed, wrongly set, a collector that is away) costs spans and a line in the log,
never a run: spans wait in a bounded queue, a thread sends them, and what does not fit is dropped.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from agentstream import __version__
from agentstream.config import TraceSettings, trace_settings
from agentstream.errors import missing_extra
from agentstream.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

# For the last spans, when all runs have ended: what starts us waits no longer than the drain and a little more.
FLUSH_TIMEOUT_S: Final = 2.0
REPEAT_INTERVAL_S: Final = 60.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def exported_spans(process: str) -> Iterator[None]:
    """Make spans as long as this lasts, if somebody wants them; ``process`` is what we are, such as frontend.

    OpenTelemetry's variables want them, or code that was loaded before has set up a provider of its own: then that one
    gets our spans, and is left to end them.
    """
    settings = trace_settings()
    api = sys.modules.get("opentelemetry.trace")
    if api is not None and not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        tracing.enable(content=settings.content)
        provider = None
    else:
        provider = _provider(settings, process) if settings.exporters else None
        if provider is not None:
            tracing.enable(content=settings.content)
            log.info("traces go to %s", ", ".join(settings.exporters))
    try:
        yield
    finally:
        tracing.disable()
        if provider is not None:
            _shut_down(provider)


def _provider(settings: TraceSettings, process: str) -> "TracerProvider | None":
    """Return the process's provider of spans; None, and a line in the log, if it cannot be had."""
    try:
        from opentelemetry import trace  # noqa: PLC0415 -- an optional dependency
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as exc:
        reason, missing = settings.reason, str(exc)
        log.warning("traces are off: %s (%s)", missing_extra(reason, "otel"), missing)
        return None
    _forward_sdk_logs()
    try:
        processors = [BatchSpanProcessor(_exporter(name)) for name in settings.exporters]
        provider = TracerProvider(resource=_resource(process), shutdown_on_exit=False)
    except (ImportError, ValueError, TypeError) as exc:
        why = str(exc)  # of the operator's settings: no user wrote it
        log.warning("there are no traces: %s (see OpenTelemetry's OTEL_ variables)", why)
        return None
    for processor in processors:
        provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return provider


def _exporter(name: str) -> "SpanExporter":
    """Return an exporter by its name; raises ValueError if none is installed under it, or what it raises."""
    known = {found.name: found for found in entry_points(group="opentelemetry_traces_exporter")}
    if name not in known:
        message = f"no exporter {name!r} is installed; those that are: otlp, {', '.join(sorted(known))}"
        raise ValueError(message)
    exporter: SpanExporter = known[name].load()()
    return exporter


def _resource(process: str) -> "Resource":
    """Return what this process calls itself; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

    ours: dict[str, str | int] = {
        "service.name": f"{tracing.SCOPE}-{process}",
        "service.namespace": tracing.SCOPE,
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _shut_down(provider: "TracerProvider") -> None:
    """Send what waits; gives up after a while, as the SDK itself would try for half a minute."""
    ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    ending.start()
    ending.join(FLUSH_TIMEOUT_S)
    if ending.is_alive():
        log.warning("the last spans could not be sent in %g s, and are lost", FLUSH_TIMEOUT_S)


def _forward_sdk_logs() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_RateLimitedHandler())
    logger.propagate = False


class _RateLimitedHandler(logging.Handler):
    """Passes on what the SDK logs, each kind of complaint once a minute: a collector may be away for long."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[tuple[str, str], float] = {}  # a handful: the SDK's own texts, unformatted

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on under our name."""
        kind, now_s = (record.name, str(record.msg)), time.monotonic()
        if now_s - self._last_s.get(kind, -REPEAT_INTERVAL_S) >= REPEAT_INTERVAL_S:
            self._last_s[kind] = now_s
            log.log(record.levelno, "%s (not repeated for %g s)", record.getMessage(), REPEAT_INTERVAL_S)
