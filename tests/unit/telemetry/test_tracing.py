"""Spans while tracing is off, and spans that are collected in memory."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentstream.engines.demo import BuiltinEngine
from agentstream.engines.spans import inference_span, record_output_messages
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.telemetry import tracing

WITHOUT_IT = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import agentstream.__main__, agentstream.engines.openai, agentstream.adapters.command
from agentstream.telemetry import tracing
from agentstream.telemetry.otel import exported_spans
with exported_spans("worker"), tracing.span("a"):
    print("fine")
"""


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    """An exporter that collects ended spans, while tracing is on."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.enable()
    tracing._api.tracer = provider.get_tracer("test")
    yield kept
    tracing.disable()


def job(**fields: str) -> Job:
    return Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=2.0, **fields)


def test_opentelemetry_is_optional() -> None:
    """Front end, worker, engines and adapters run without OpenTelemetry and log nothing about it."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT_IT], capture_output=True, text=True, check=True, timeout=30)
    assert (ran.stdout, ran.stderr) == ("fine\n", "")


def test_spans_do_nothing_if_tracing_is_off() -> None:
    """If tracing is off, there is one span object for all, and its methods do nothing."""
    with tracing.span("a", "server", {"b": 1}, parent={"traceparent": "c"}) as span:
        span.set({"d": 2})
        span.fail("e")
        span.link({"traceparent": "f"})
        assert tracing.span("another") is span
        assert (span.carrier(), tracing.carrier(), tracing.current_ids()) == ({}, {}, None)
    assert not tracing.enabled()
    assert not tracing.content_enabled()


def test_spans_are_nested_by_context_and_by_carrier(memory: InMemorySpanExporter) -> None:
    """A span is a child of the current span, or of the span whose carrier is its ``parent``."""
    with tracing.span("outer") as outer:
        carrier = outer.carrier()
        assert tracing.carrier() == carrier
        assert tracing.current_ids() == (carrier["traceparent"][3:35], carrier["traceparent"][36:52])
        with tracing.span("inner"):
            pass
    with tracing.span("elsewhere", parent=carrier):
        pass
    with tracing.span("root", parent={}):
        pass
    inner, ended, elsewhere, root = memory.get_finished_spans()
    assert ended.parent is None
    assert ended.context
    for child in (inner, elsewhere):
        assert child.parent
        assert (child.parent.span_id, child.parent.trace_id) == (ended.context.span_id, ended.context.trace_id)
    assert root.parent is None
    assert tracing.current_ids() is None


def test_a_span_that_is_not_current_has_no_children(memory: InMemorySpanExporter) -> None:
    """A span that is not current does not change the context of its caller."""
    with tracing.span("apart", current=False), tracing.span("other"):
        pass
    assert [span.parent for span in memory.get_finished_spans()] == [None, None]


def test_an_exception_fails_its_span_and_a_cancel_does_not(memory: InMemorySpanExporter) -> None:
    """An exception fails its span once with its class, and a cancelled or closed span is not failed."""
    for error in (ValueError("private"), asyncio.CancelledError(), GeneratorExit()):
        with pytest.raises(type(error)), tracing.span("a"):
            raise error
    span = tracing.span("a")
    span.fail("429", "private")
    with pytest.raises(ValueError, match="private"), span:
        raise ValueError("private")  # noqa: EM101 -- the test's own
    failed, cancelled, closed, refused = memory.get_finished_spans()
    assert dict(failed.attributes or {}) == {tracing.ERROR_TYPE: "ValueError"}
    assert not failed.status.is_ok
    assert dict(refused.attributes or {}) == {tracing.ERROR_TYPE: "429"}
    assert failed.status.description is refused.status.description is None
    for span_ended in (cancelled, closed):
        assert dict(span_ended.attributes or {}) == {tracing.CANCELLED: True}
        assert span_ended.status.is_unset


@pytest.mark.usefixtures("memory")
def test_a_long_tracestate_is_not_passed_on() -> None:
    """A tracestate is passed on if it has at most 512 characters, as W3C asks."""
    caller = f"00-{'1' * 32}-{'2' * 16}-01"
    for length, kept in ((500, True), (520, False)):
        state = ",".join(f"k{number}={'v' * 96}" for number in range(4))
        state += f",z={'v' * (length - len(state) - 3)}"
        with tracing.span("a", parent={"traceparent": caller, "tracestate": state}):
            assert ("tracestate" in tracing.carrier()) == kept


def test_a_job_carries_a_trace_if_there_is_one() -> None:
    """A job holds W3C's two fields, and a job without them, from an older front end, is valid too."""
    carrier = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "a=b"}
    assert Job.decode(job(**carrier).encode()).trace == carrier
    assert Job.decode(job().encode()).trace == {}
    old = job().model_dump(exclude={"traceparent", "tracestate"})
    assert Job.model_validate(old).trace == {}


async def test_the_demo_engine_is_traced_as_a_model_of_this_process(memory: InMemorySpanExporter) -> None:
    """An inference of the demo engine has a span with its usage and without a server address."""
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [{"role": "user", "content": "hello"}]})
    async for _ in BuiltinEngine().stream(request, [{"role": "user", "content": "hello"}], []):
        pass
    [span] = memory.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind.name) == ("chat m1", "INTERNAL")
    assert attributes["gen_ai.provider.name"] == "agentstream"
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert attributes["gen_ai.usage.output_tokens"]
    assert "server.address" not in attributes


@pytest.mark.usefixtures("memory")
def test_content_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span holds the latest whole messages that fit, and an answer only if it fits."""
    monkeypatch.setattr(tracing._api, "content", True)
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [{"role": "user", "content": "x"}]})
    messages = [{"role": "user", "content": f"{number} {'x' * 4000}"} for number in range(100)]
    with inference_span("openai", "m1", request, messages) as span:
        recorded = json.loads(attributes_of(span)["gen_ai.input.messages"])
        assert [message["parts"][0]["content"][:2] for message in recorded] == ["96", "97", "98", "99"]
        record_output_messages(span, "y" * 20_000, [], "stop")
        assert "gen_ai.output.messages" not in attributes_of(span)
        record_output_messages(span, "y" * 10, [], "stop")
        assert "y" * 10 in attributes_of(span)["gen_ai.output.messages"]


def attributes_of(span: tracing.Span) -> dict[str, Any]:
    return dict(getattr(span._span, "attributes", None) or {})


def test_values_that_otlp_cannot_carry_are_changed(memory: InMemorySpanExporter) -> None:
    """Text that is not valid Unicode and large numbers are changed into values that OTLP can carry."""
    hostile = {"text": "a\ud800b", "number": 2**80, "list": ["\udfff", "é"]}
    with tracing.span("execute_tool \ud800", attributes=hostile) as span:
        span.set({"more": -(2**70), "fine": -5})
    [ended] = memory.get_finished_spans()
    assert encode_spans([ended]).SerializeToString()
    recorded = dict(ended.attributes or {})
    assert recorded == {"text": "a?b", "number": str(2**80), "list": ("?", "é"), "more": str(-(2**70)), "fine": -5}
    assert ended.name == "execute_tool ?"


@pytest.mark.usefixtures("memory")
def test_content_of_any_shape_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages with parts, images, incomplete calls and invalid Unicode do not fail the inference."""
    monkeypatch.setattr(tracing._api, "content", True)
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [{"role": "user", "content": "x"}]})
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "see \ud800"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        {"role": "tool", "content": [{"type": "text", "text": "result"}]},
        {"role": "assistant"},
    ]
    with inference_span("openai", "m1", request, messages) as span:
        recorded = [message["parts"] for message in json.loads(attributes_of(span)["gen_ai.input.messages"])]
    assert [part["type"] for parts in recorded for part in parts] == [
        "text",
        "image_url",
        "tool_call",
        "tool_call_response",
    ]
    assert recorded[2][0]["response"] == "result"
