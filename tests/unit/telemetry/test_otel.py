"""The export of spans, as OpenTelemetry's variables configure it."""

import logging
import sys
from pathlib import Path

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
def test_variables_choose_the_exporters(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], exporters: tuple[str, ...]
) -> None:
    """Traces are on if a variable names an exporter or an endpoint, unless another variable switches them off."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert trace_settings().exporters == exporters


@pytest.mark.parametrize(
    ("value", "allowed"),
    [("", False), ("no_content", False), ("event_only", False), ("true", True), ("SPAN_ONLY", True)],
)
def test_spans_have_content_only_if_a_variable_allows_it(
    monkeypatch: pytest.MonkeyPatch, value: str, *, allowed: bool
) -> None:
    """OpenTelemetry's variable for content decides, with its older and its newer values."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", value)
    assert trace_settings().content == allowed


def test_a_missing_extra_is_logged_and_traces_are_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If OpenTelemetry is wanted but not installed, a log line names the variable and the command that installs it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with exported_spans("worker"):
        assert not tracing.enabled()
    assert "traces are off: OTEL_EXPORTER_OTLP_ENDPOINT" in caplog.text
    assert "pip install 'agentstream[otel]'" in caplog.text


def test_an_existing_provider_gets_our_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans go to the provider that an agent's module has set up, and it is not shut down."""
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


def test_variables_override_the_resource_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resource has the kind, version, pid and an instance id of a process, and variables override it."""
    ours = _resource("worker").attributes
    assert ours["service.name"] == "agentstream-worker"
    assert ours["service.instance.id"] != _resource("worker").attributes["service.instance.id"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-1,deployment.environment.name=test")
    theirs = _resource("worker").attributes
    assert (theirs["service.name"], theirs["service.instance.id"]) == ("mine", "pod-1")
    assert theirs["deployment.environment.name"] == "test"
    assert theirs["process.pid"] == ours["process.pid"]


def test_each_message_of_the_sdk_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each message of the SDK is logged once a minute, whatever its values are."""
    handler = _RateLimitedHandler()
    for number in range(5):
        for text in ("no answer in %s s", "queue full (%s)"):
            handler.emit(logging.LogRecord("opentelemetry.x", logging.WARNING, "", 0, text, (number,), None))
    assert [record.getMessage() for record in caplog.records] == [
        "no answer in 0 s (not repeated for 60 s)",
        "queue full (0) (not repeated for 60 s)",
    ]


def test_attributes_of_the_docker_command_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The docker command writes about itself into OTEL_RESOURCE_ATTRIBUTES; the resource has only the other names."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "docker.cli.cobra.command_path=docker%20compose,team=a")
    attributes = _resource("worker").attributes
    assert attributes["team"] == "a"
    assert [name for name in attributes if name.startswith("docker")] == []
    assert attributes["telemetry.sdk.name"] == "opentelemetry"


def test_an_exporter_that_cannot_read_a_file_switches_traces_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """An exporter whose certificate cannot be read costs the spans and a log line that names it, never the process."""
    (tmp_path / "reads_a_file.py").write_text("def make():\n    open('/nowhere/key.pem')\n")
    installed = tmp_path / "reads_a_file-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: reads-a-file\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[opentelemetry_traces_exporter]\nreads = reads_a_file:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "reads")
    with exported_spans("worker"):
        assert not tracing.enabled()
    assert "traces are off: [Errno 2] No such file or directory: '/nowhere/key.pem'" in caplog.text
