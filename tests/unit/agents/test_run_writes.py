"""The reasoning and the calls of the client's tools that an agent writes."""

import threading
from typing import Any

import pytest

from agentstream.agents import Run
from agentstream.errors import InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import REASONING, TOOL_CALL_DELTA
from agentstream.protocol.openai import ChatCompletionRequest
from tests.helpers import RecordingSink

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def run(sink: RecordingSink) -> Run:
    fields = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}
    return Run("chatcmpl-1", ChatCompletionRequest.model_validate(fields), sink)


def test_a_complete_call_is_one_event(run: Run, sink: RecordingSink) -> None:
    """A call with a dict as arguments is one event with JSON text, and it has a new id if the agent gives none."""
    call = run.write_tool_call("f", {"city": "Ålesund", "days": 2})
    other = run.write_tool_call("f", "{}", id="mine")
    arguments = '{"city":"Ålesund","days":2}'
    assert sink.facts == [
        (TOOL_CALL_DELTA, {"index": 0, "id": call.id, "name": "f", "arguments": arguments}),
        (TOOL_CALL_DELTA, {"index": 1, "id": "mine", "name": "f", "arguments": "{}"}),
    ]
    assert (other.index, other.id) == (1, "mine")
    assert call.id.startswith("call_")
    assert call.id != run.write_tool_call("f").id


def test_arguments_may_be_written_piece_by_piece(run: Run, sink: RecordingSink) -> None:
    """A later piece of a call has only its index and its text, and an empty piece is not published."""
    first, second = run.write_tool_call("f"), run.write_tool_call("g")
    second.write("{")
    first.write('{"a"')
    first.write("")
    first.write(": 1}")
    assert [data for _, data in sink.facts[2:]] == [
        {"index": 1, "arguments": "{"},
        {"index": 0, "arguments": '{"a"'},
        {"index": 0, "arguments": ": 1}"},
    ]


def test_reasoning_is_published_as_written(run: Run, sink: RecordingSink) -> None:
    """Each piece of reasoning is one event, and an empty piece is not published."""
    for piece in ("hm", "", "so"):
        run.write_reasoning(piece)
    assert sink.facts == [(REASONING, "hm"), (REASONING, "so")]


def test_calls_from_threads_have_different_numbers(run: Run, sink: RecordingSink) -> None:
    """Calls that concurrent threads write have different numbers."""
    threads = [threading.Thread(target=run.write_tool_call, args=("f",)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(data["index"] for _, data in sink.facts) == list(range(50))


def test_a_cancelled_run_writes_nothing_more(run: Run, sink: RecordingSink) -> None:
    """After a cancel, writing reasoning, a new call or a piece of a call raises RunCancelled."""
    call = run.write_tool_call("f")
    run.cancel()
    for write in (lambda: run.write_reasoning("x"), lambda: run.write_tool_call("f"), lambda: call.write("{")):
        with pytest.raises(RunCancelled):
            write()
    assert len(sink.facts) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "call_id"),
    [("", "{}", None), (None, "{}", None), ("f", ["a"], None), ("f", {"x": object()}, None), ("f", "{}", 7)],
)
def test_a_call_that_cannot_be_sent_is_refused(
    run: Run, sink: RecordingSink, name: Any, arguments: Any, call_id: Any
) -> None:
    """A call without a name, or with arguments that are neither a str nor a JSON object, raises and sends nothing."""
    with pytest.raises(InvalidAgentOutput, match=r"run\.write_tool_call"):
        run.write_tool_call(name, arguments, id=call_id)
    assert sink.facts == []


def test_pieces_that_are_no_text_are_refused(run: Run) -> None:
    """A piece of reasoning or of a call that is no str raises an error that names its type."""
    for write in (run.write_reasoning, run.write_tool_call("f").write):
        with pytest.raises(InvalidAgentOutput, match="takes a str, got bytes"):
            write(b"x")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [REASONING, TOOL_CALL_DELTA])
def test_reserved_event_types_are_not_emitted(run: Run, kind: str) -> None:
    """Emit refuses the event types that have their own write methods."""
    with pytest.raises(InvalidAgentOutput, match="belongs to agentstream"):
        run.emit(kind, {})


def test_the_agent_sees_the_clients_tools(run: Run) -> None:
    """The request has the client's tools unchanged, including strict."""
    assert run.request.tools is not None
    (tool,) = run.request.tools
    assert tool.model_dump(exclude_unset=True) == TOOL
