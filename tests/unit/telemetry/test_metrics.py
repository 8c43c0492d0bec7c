"""The tables of metrics follow Prometheus' rules and are complete, and stream machines count the text they send."""

import re
from typing import Any

import pytest

from agentstream import errors
from agentstream.frontend.runs.latency_timer import LatencyTimer
from agentstream.protocol.events import Batch, Cursor
from agentstream.store.bus.counts import FeedCounts
from agentstream.stream.chat import ChatStream, StreamHead, StreamMachine, StreamOptions
from agentstream.stream.completions import CompletionStream
from agentstream.stream.responses import ResponseStream
from agentstream.telemetry import names as metric_names
from agentstream.telemetry.metrics import Metrics
from agentstream.telemetry.names import FRONTEND_METRICS, WORKER_METRICS, Metric

HEAD = StreamHead(run_id=f"chatcmpl-{0:032x}", created=1_700_000_000, model="m1")
STARTED = ["run_started", {"worker": "w"}]
TOOL = [
    ["tool_call_start", {"tool": "clock", "arguments": {}}],
    ["tool_call_end", {"tool": "clock", "success": True, "latency": 0.5, "result": "noon"}],
]
RUN = [STARTED, ["reasoning", "Hm"], "It ", "is", " ", *TOOL, "noon", ".", ["inference_end", {}]]
UNITS = ("_seconds", "_bytes")


def ending(content: str | None = None) -> list[Any]:
    """Return the terminal event of a run that completed."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return ["run_completed", {"content": content, "tool_results": [], "finish_reason": "stop", "usage": usage}]


@pytest.mark.parametrize("metric", [*FRONTEND_METRICS, *WORKER_METRICS], ids=lambda metric: metric.name)
def test_names_follow_prometheus(metric: Metric) -> None:
    """Counters end in _total, histograms in a base unit, only histograms have buckets, and all have a help text."""
    assert re.fullmatch(r"agentstream_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.kind != "histogram" or metric.name.endswith("_seconds")
    assert bool(metric.buckets_s) == (metric.kind == "histogram")
    assert list(metric.buckets_s) == sorted(set(metric.buckets_s))
    assert len(metric.help_text) > 10
    if any(word in metric.help_text for word in ("Bytes", "Age")):
        assert metric.name.endswith(UNITS)


def test_every_name_is_in_a_table() -> None:
    """Every metric name is in the table of the front end or of the worker, once."""
    names = [
        value for value in vars(metric_names).values() if isinstance(value, str) and value.startswith("agentstream_")
    ]
    assert sorted(names) == sorted(metric.name for metric in (*FRONTEND_METRICS, *WORKER_METRICS))


def subclasses(root: type) -> set[type]:
    """Return a class and all its subclasses."""
    return {root}.union(*map(subclasses, root.__subclasses__()))


def test_every_error_code_is_a_label_value() -> None:
    """Every code of a refused request and of a failed run is a value of its label."""
    codes = {error.code for error in subclasses(errors.RequestError) if isinstance(error.code, str)}  # type: ignore[attr-defined]
    codes |= {code for _, code, _ in errors.REQUEST_CODES}
    assert codes == set(metric_names.REJECTIONS) - {"other"} | {"headers_too_large"}  # refused before it is counted
    failures = {*errors.FAILURE_MEANINGS, errors.CANCELLED} - {errors.STREAM_LOST}  # the front end's own
    assert failures <= set(metric_names.OUTCOMES)


def machines(after: int | None = None) -> list[StreamMachine]:
    """Return one machine of each kind; with ``after``, of each kind that can resume there."""
    options = StreamOptions()
    if after is None:
        return [
            ChatStream(HEAD, options),
            CompletionStream(HEAD, options),
            ResponseStream(HEAD, {}, agent_events=True),
        ]
    return [ChatStream(HEAD, options, Cursor(1, after))]


def play(machine: StreamMachine, items: list[Any], size: int) -> None:
    """Let a machine produce all frames of a run, whose events come in batches of ``size``."""
    machine.open()
    for start in range(0, len(items), size):
        machine.receive(Batch(1, start + 1, items[start : start + size]))
    assert b"".join(machine.tail or ())


@pytest.mark.parametrize("size", [1, 3, 100])
def test_machines_count_the_text_they_send(size: int) -> None:
    """Each piece of answer text counts once in every batch size, and reasoning and other events do not count."""
    for machine in machines():
        play(machine, [*RUN, ending()], size)
        assert machine.text_count == 5 + 1, machine  # the blank line between the texts of two turns counts as one


def test_the_words_of_a_replayed_answer_count() -> None:
    """An answer that the agent did not stream counts by the pieces in which it is sent."""
    for machine in machines():
        play(machine, [STARTED, ending("three short words")], 1)
        assert machine.text_count == 3, machine


@pytest.mark.parametrize("size", [1, 3, 100])
def test_text_before_the_cursor_is_not_counted(size: int) -> None:
    """A resumed stream counts only the text that it sends."""
    for machine in machines(after=4):  # after "is"
        play(machine, [*RUN, ending()], size)
        assert machine.text_count == 1 + 2 + 1
    every = ResponseStream(HEAD, {}, agent_events=True)
    play(every, [*RUN, ending()], size)
    for seen in range(30):
        resumed = ResponseStream(HEAD, {}, agent_events=True, after=seen)
        frames = resumed.open()
        for start in range(0, len(RUN), size):
            frames += resumed.receive(Batch(1, start + 1, RUN[start : start + size]))
        assert resumed.text_count == frames.count(b"event: response.output_text.delta\n")


def test_a_counter_follows_a_total() -> None:
    """A counter equals the total that was set last and never decreases."""
    metrics = Metrics(FRONTEND_METRICS)
    for total in (3, 3, 2, 5):
        metrics.set_total(total, metric_names.TOKENS)
    assert b"agentstream_tokens_total 5.0" in metrics.render()


def test_every_known_label_value_has_a_series_from_the_start() -> None:
    """A series with known label values exists at 0 from the start, so that its first count has a rate."""
    text = Metrics(FRONTEND_METRICS).render().decode()
    for cause in FeedCounts().catch_ups:
        assert f'agentstream_catch_ups_total{{cause="{cause}"}} 0.0' in text
    assert "_created" not in text


def test_only_the_first_attempt_gives_a_dispatch_time() -> None:
    """Only the run_started event of the first attempt gives a dispatch time."""
    observed: list[str] = []
    timer = LatencyTimer(lambda _: observed.append("begun"), lambda _: observed.append("text"))
    timer.attempt_started(Batch(2, 1, [STARTED]))
    timer.attempt_started(Batch(1, 1, [["run_cancelled", {}]]))
    timer.attempt_started(Batch(1, 1, ["text"]))
    assert observed == []
    timer.attempt_started(Batch(1, 1, [STARTED]))
    timer.first_text_received()
    assert observed == ["begun", "text"]
