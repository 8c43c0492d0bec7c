"""The settings of traces, from OpenTelemetry's own variables."""

import os
from dataclasses import dataclass
from typing import Final

# Each of these variables switches traces on. An endpoint is enough: its exporter, otlp, is the default.
_TRACES_WANTED: Final = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


_CONTENT_IN_SPANS: Final = frozenset({"true", "span_only", "span_and_event"})


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """The settings of traces, from OpenTelemetry's own variables. Its SDK reads the other variables itself.

    ``exporters`` are names of entry points. ``reason`` is the variable that switched traces on. ``content`` allows the
    texts of users, models and tools in spans.
    """

    exporters: tuple[str, ...]
    reason: str
    content: bool


def trace_settings() -> TraceSettings:
    """Return the settings of traces; there are no exporters if traces are off.

    By the OpenTelemetry specification, traces go to a collector on this machine if no variable is set. Here they are
    then off, because most machines have no collector.
    """
    env = {name: value.strip() for name, value in os.environ.items() if name.startswith("OTEL_")}
    exporters = env.get("OTEL_TRACES_EXPORTER", "")
    reason = next((name for name in _TRACES_WANTED if env.get(name)), "")
    names = (exporters or "otlp").split(",") if reason and env.get("OTEL_SDK_DISABLED", "").lower() != "true" else []
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    return TraceSettings(
        exporters=tuple(otlp if name.strip() == "otlp" else name.strip() for name in names if name.strip() != "none"),
        reason=reason,
        content=env.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").lower() in _CONTENT_IN_SPANS,
    )
