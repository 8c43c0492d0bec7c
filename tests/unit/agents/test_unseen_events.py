"""The warnings about events that clients see only if they ask for them."""

import logging

import pytest

from agentstream.agents import Run, unseen_events
from agentstream.agents.unseen_events import MAX_WARNED_TYPES, similar_type
from agentstream.protocol.events import NAMED_EVENTS, OPTIONAL_EVENTS
from agentstream.protocol.openai import ChatCompletionRequest
from tests.helpers import RecordingSink


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def run(sink: RecordingSink, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run in a process that has not warned yet."""
    monkeypatch.setattr(unseen_events, "_warned", set())
    fields = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    return Run("chatcmpl-1", ChatCompletionRequest.model_validate(fields), sink)


def test_a_type_that_no_client_sees_is_warned_of_once(
    run: Run, sink: RecordingSink, caplog: pytest.LogCaptureFixture
) -> None:
    """Each custom type is warned of once, its events are still stored, and named events are not warned of."""
    for event_type in ("progress", "progress", "step", *sorted(NAMED_EVENTS)):
        run.emit(event_type, {"tool": "clock"})
    assert len(sink.facts) == 3 + len(NAMED_EVENTS)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [("'progress'" in line, "'step'" in line) for line in warned] == [(True, False), (False, True)]
    assert all("tool_call_start" in line for line in warned)


def test_the_warning_says_how_a_client_asks(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The warning contains the header with the type, and the setting of a deployment, also for a sub-agent."""
    run.child("researcher").emit("progress", {})
    [line] = [record.getMessage() for record in caplog.records]
    assert "X-Agent-Event-Types: progress" in line
    assert "AGENTSTREAM_EVENT_TYPES" in line


def test_the_types_of_agentstream_are_not_warned_of(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The types that agentstream's own agents emit, and the text of a sub-agent, give no warning."""
    for event_type in OPTIONAL_EVENTS:
        run.emit(event_type, {})
    run.child("researcher").write("text")
    assert not caplog.records


def test_the_warnings_of_a_process_are_bounded(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that makes a new type for each event cannot flood the log."""
    for number in range(2 * MAX_WARNED_TYPES):
        run.emit(f"kind_{number}", {})
    assert len(caplog.records) == MAX_WARNED_TYPES


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("tool_call_begin", "tool_call_start"),
        ("tool_call_started", "tool_call_start"),
        ("tool_call_finished", "tool_call_end"),
        ("tool_call", "tool_call_start"),
        ("tool_call_result", "tool_call_end"),
        ("tool_start", "tool_call_start"),
        ("tool_result", "tool_call_end"),
        ("tool-call-start", "tool_call_start"),
        ("tool.call.end", "tool_call_end"),
        ("toolCallStart", "tool_call_start"),
        ("ToolCallEnd", "tool_call_end"),
        ("TOOL_CALL_START", "tool_call_start"),
        ("tool_call_strat", "tool_call_start"),
        ("function_call_begin", "tool_call_start"),
        ("llm_start", "inference_start"),
        ("inference_done", "inference_end"),
        ("turn_start", "agent_turn_start"),
        ("agent_start", "agent_turn_start"),
        ("progress", None),
        ("memory_retrieve", None),
        ("agent_turn_end", None),
        ("start", None),
    ],
)
def test_near_misses_get_a_hint(run: Run, caplog: pytest.LogCaptureFixture, written: str, meant: str | None) -> None:
    """A type that is probably meant to be a named event is warned of with the right name, and no other type is."""
    assert similar_type(written) == meant
    run.emit(written, {})
    assert ("did you mean" in caplog.text) == (meant is not None)
    assert meant is None or f"did you mean '{meant}'?" in caplog.text
