"""The export of spans with OpenTelemetry's SDK. OpenTelemetry's own variables configure it.

An error in it (a missing package, wrong variables, a collector that does not answer) costs spans and a log line, never
a run: spans wait in a bounded queue, a thread sends them, and spans that do not fit are dropped. The end of a process
waits for the last spans only for a bounded time.
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

# Time to send the last spans. A supervisor waits for a process only a little longer than its drain timeout.
FLUSH_TIMEOUT_S: Final = 2.0
REPEAT_INTERVAL_S: Final = 60.0
# The docker command describes itself in OTEL_RESOURCE_ATTRIBUTES, and Compose passes this on to containers. These
# attributes are about the command that started a container, not about this process.
_DOCKER_CLI: Final = "docker.cli."

log = logging.getLogger(__name__)


@contextlib.contextmanager
def exported_spans(process: str) -> Iterator[None]:
    """Make and export spans while the block runs, if traces are on. ``process`` names the process: frontend or worker.

    Traces are on if OpenTelemetry's variables ask for them, or if an agent's module has already set up its own
    provider. Our spans then go to that provider, and this function does not shut it down.
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
    """Return the provider of this process's spans. Log a warning and return None if it cannot be created."""
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
    except (ImportError, ValueError, TypeError, OSError) as exc:  # OSError: a certificate cannot be read
        why = str(exc)  # as text, so that it is logged: it is about the operator's variables, not from a user
        log.warning("traces are off: %s (check OpenTelemetry's OTEL_ variables)", why)
        return None
    for processor in processors:
        provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return provider


def _exporter(name: str) -> "SpanExporter":
    """Return an exporter by its name. Raises ValueError if it is not installed, or any error of the exporter."""
    known = {found.name: found for found in entry_points(group="opentelemetry_traces_exporter")}
    if name not in known:
        message = f"no exporter {name!r} is installed; installed are otlp, {', '.join(sorted(known))}"
        raise ValueError(message)
    exporter: SpanExporter = known[name].load()()
    return exporter


def _resource(process: str) -> "Resource":
    """Return the resource of this process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

    attributes: dict[str, str | int] = {
        "service.name": f"{tracing.SCOPE}-{process}",
        "service.namespace": tracing.SCOPE,
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
    }
    named = Resource.create({**attributes, **OTELResourceDetector().detect().attributes})
    return Resource({k: v for k, v in named.attributes.items() if not k.startswith(_DOCKER_CLI)}, named.schema_url)


def _shut_down(provider: "TracerProvider") -> None:
    """Send the waiting spans. Give up after FLUSH_TIMEOUT_S: the SDK itself would try for 30 s."""
    ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    ending.start()
    ending.join(FLUSH_TIMEOUT_S)
    if ending.is_alive():
        log.warning("the last spans could not be sent in %g s and are lost", FLUSH_TIMEOUT_S)


def _forward_sdk_logs() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_RateLimitedHandler())
    logger.propagate = False


class _RateLimitedHandler(logging.Handler):
    """Passes the SDK's log lines on, each kind of line once a minute, because a collector may be away for long."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[tuple[str, str], float] = {}  # few entries: the unformatted messages of the SDK

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record under the name of this module."""
        kind, now_s = (record.name, str(record.msg)), time.monotonic()
        if now_s - self._last_s.get(kind, -REPEAT_INTERVAL_S) >= REPEAT_INTERVAL_S:
            self._last_s[kind] = now_s
            log.log(record.levelno, "%s (not repeated for %g s)", record.getMessage(), REPEAT_INTERVAL_S)
