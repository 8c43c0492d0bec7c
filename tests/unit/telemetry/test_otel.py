"""Where spans go, by OpenTelemetry's variables."""

import logging
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentstream.config import trace_settings
from agentstream.telemetry import tracing
from agentstream.telemetry.otel import _RateLimitedHandler, _resource, exported_spans

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("env", "exporters"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "mine"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ()),
        (ENDPOINT, ("otlp_proto_http",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector/t"}, ("otlp_proto_http",)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp_proto_http",)),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ("console", "otlp_proto_http")),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, ()),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, ()),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("otlp_proto_grpc",)),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("otlp_proto_http",)),
    ],
)
def test_exporters_are_those_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], exporters: tuple[str, ...]
) -> None:
    """Traces are on where an exporter or an endpoint is named, and off otherwise, or where that is said."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert trace_settings().exporters == exporters


@pytest.mark.parametrize(
    ("value", "told"), [("", False), ("no_content", False), ("event_only", False), ("true", True), ("SPAN_ONLY", True)]
)
def test_content_is_told_only_where_spans_may_have_it(
    monkeypatch: pytest.MonkeyPatch, value: str, *, told: bool
) -> None:
    """The conventions' variable decides, in its older and its newer values."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", value)
    assert trace_settings().content == told


def test_without_the_extra_there_is_a_line_and_no_trace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where OpenTelemetry is asked for and not installed, the log says by what, and how to install it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with exported_spans("worker"):
        assert not tracing.enabled()
    assert "traces are off: OTEL_EXPORTER_OTLP_ENDPOINT" in caplog.text
    assert "pip install 'agentstream[otel]'" in caplog.text


def test_a_provider_that_is_there_gets_our_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans go to what an agent's module has set up for its own, which is not shut down for it."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    with exported_spans("worker"), tracing.span("ours"):
        pass
    assert not tracing.enabled()
    with provider.get_tracer("theirs").start_as_current_span("theirs"):
        pass
    assert [span.name for span in kept.get_finished_spans()] == ["ours", "theirs"]


def test_a_process_has_a_name_that_the_operator_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is told by its kind, version, pid and an id of its own; OpenTelemetry's variables win."""
    ours = _resource("worker").attributes
    assert ours["service.name"] == "agentstream-worker"
    assert ours["service.instance.id"] != _resource("worker").attributes["service.instance.id"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-1,deployment.environment.name=test")
    theirs = _resource("worker").attributes
    assert (theirs["service.name"], theirs["service.instance.id"]) == ("mine", "pod-1")
    assert theirs["deployment.environment.name"] == "test"
    assert theirs["process.pid"] == ours["process.pid"]


def test_each_kind_of_complaint_is_passed_on_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A collector that is away for long fills no log: texts that differ in their values are one kind."""
    complaints = _RateLimitedHandler()
    for number in range(5):
        for text in ("no answer in %s s", "queue full (%s)"):
            complaints.emit(logging.LogRecord("opentelemetry.x", logging.WARNING, "", 0, text, (number,), None))
    assert [record.getMessage() for record in caplog.records] == [
        "no answer in 0 s (not repeated for 60 s)",
        "queue full (0) (not repeated for 60 s)",
    ]
