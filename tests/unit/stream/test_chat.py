"""The stream machine of chat completions."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import AGENT_ERROR, BusError
from agentstream.protocol.events import NAMED_EVENTS, TERMINAL_EVENTS, Batch, Cursor, Event
from agentstream.protocol.openai import ChatCompletionRequest, estimate_usage
from agentstream.stream.chat import ChatStream, EventFormat, StreamHead, StreamOptions
from agentstream.stream.transcript import AnswerFold, tool_result
from tests.helpers import assert_conforms, batch, completed, conformance_cases, decode, events, texts

HEAD = StreamHead(run_id="chatcmpl-" + "0" * 32, created=1_700_000_000, model="m1")
TOOL_START = ("tool_call_start", {"tool": "clock", "arguments": {}})
TOOL_END = ("tool_call_end", {"tool": "clock", "success": True, "latency": 0.25, "result": "noon"})
RESULT = tool_result("clock", success=True, output="noon", latency_s=0.25)
FAILED = ("run_failed", {"code": "agent_error", "message": "it broke"})


def stream(run: list[Event], *, after: Cursor | None = None, **options: Any) -> bytes:
    machine = ChatStream(HEAD, StreamOptions(**options), after)
    return whole(machine, [batch([event]) for event in run])


def whole(machine: ChatStream, batches: Iterable[Batch]) -> bytes:
    """Return all bytes of a run's stream, the tail included."""
    out = machine.open() + b"".join([machine.receive(each) for each in batches])
    return out + b"".join(machine.tail or ())


def events_of_case(case: dict[str, Any]) -> list[Event]:
    """Return the events that a worker publishes for a recorded case."""
    facts: list[tuple[str, Any]] = [("run_started", {}), *map(tuple, case["agent"]["events"])]
    if "error" in case["agent"]:
        message = case["agent"]["error"]
        facts.append(("run_failed", {"code": AGENT_ERROR, "message": message}))
    else:
        result = case["agent"]["result"]
        usage = result.get("metadata")
        if not usage:
            request = ChatCompletionRequest.model_validate(case["request"])
            usage = estimate_usage(request.messages, len(result["content"])).model_dump()
        tool_results = [
            tool_result(
                tool["tool_name"],
                success=tool["success"],
                output=tool["content"],
                latency_s=tool["latency_seconds"],
            )
            for tool in result.get("tool_results", [])
        ]
        data = {"content": result["content"], "tool_results": tool_results, "finish_reason": "stop", "usage": usage}
        facts.append(("run_completed", data))
    return events(*facts)


@pytest.mark.parametrize("event_format", ["raw", "named"])
@pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: case["name"])
def test_conforms_to_the_original(case: dict[str, Any], event_format: EventFormat) -> None:
    """For every recorded case the machine sends the same frames as the original bridge."""
    messages = decode(stream(events_of_case(case), event_format=event_format))
    assert_conforms(case, messages, event_format=event_format)


def test_all_cases_are_there() -> None:
    """All twelve recorded cases exist."""
    assert len(conformance_cases()) == 12


def test_streamed_text_is_sent_as_written() -> None:
    """Each write becomes one content chunk, and the final chunk has the usage."""
    messages = decode(stream(events(("text", "He"), ("text", "llo "), ("text", "\nyou"), completed())))
    assert texts(messages) == ["He", "llo ", "\nyou"]
    assert messages[-2][1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert messages[-1] == (None, "[DONE]")


def test_tool_results_come_before_the_text_that_follows_them() -> None:
    """With streamed text, each tool result is sent once, before the first text after the tools."""
    run = events(TOOL_START, TOOL_END, ("text", "a"), TOOL_START, TOOL_END, TOOL_END, ("text", "b"), completed())
    messages = decode(stream(run, event_format="raw"))
    names = [name for name, _ in messages]
    assert names == [
        None, "tool_call_start", "tool_call_end", "tool_results", None,
        "tool_call_start", "tool_call_end", "tool_call_end", "tool_results", None, None, None, None,
    ]  # fmt: skip
    assert [data["results"] for name, data in messages if name == "tool_results"] == [[RESULT], [RESULT, RESULT]]


def test_pieces_of_text_are_counted_in_any_batches() -> None:
    """``text_count`` counts each text once and no other event, for batches of any size."""
    other = ("inference_end", {"turn": 1})
    run = events(other, *(("text", text) for text in "abc"), other, *(("text", text) for text in "de"))
    for size in range(1, len(run) + 1):
        machine = ChatStream(HEAD, StreamOptions())
        for start in range(0, len(run), size):
            machine.receive(batch(run[start : start + size]))
        assert machine.text_count == 5, f"batches of {size}"


@pytest.mark.parametrize(
    ("arguments", "sent"), [(None, "null"), ([], "[]"), ({}, "{}"), (0, "0"), (False, "false"), ("", ""), ("x", "x")]
)
def test_arguments_that_are_no_text_are_sent_as_their_json(arguments: object, sent: str) -> None:
    """Arguments that are text reach the client unchanged, and all others as their JSON."""
    run = events(("tool_call_start", {"tool": "clock", "arguments": arguments}), completed("x"))
    started = next(data for name, data in decode(stream(run)) if name == "tool_call_start")
    assert started["arguments"] == sent


@pytest.mark.parametrize(
    ("result", "output"), [({"ok": True}, '{"ok":true}'), ([1], "[1]"), (None, "null"), (7, "7"), ("text", "text")]
)
def test_a_tools_result_that_is_no_text_is_sent_as_json(result: object, output: str) -> None:
    """The output in tool_results is the JSON of the tool's result, and a text is unchanged."""
    run = events(TOOL_START, ("tool_call_end", {"tool": "clock", "result": result}), ("text", "a"), completed())
    results = next(data for name, data in decode(stream(run)) if name == "tool_results")["results"]
    assert results[0]["output"] == output


def test_texts_of_turns_are_separated() -> None:
    """A blank line separates text before tools from text after them, but does not precede the first text."""
    run = events(TOOL_START, TOOL_END, ("text", "a"), ("text", "b"), TOOL_START, TOOL_END, ("text", "c"), completed())
    assert texts(decode(stream(run))) == ["a", "b", "\n\n", "c"]


def test_results_of_trailing_tools_come_before_the_final_chunk() -> None:
    """If no text follows the tools, their results are sent before the final chunk."""
    messages = decode(stream(events(("text", "a"), TOOL_START, TOOL_END, completed()), event_format="raw"))
    assert messages[-3] == ("tool_results", {"results": [RESULT]})


def test_streaming_agent_without_tool_events_reports_its_results() -> None:
    """If an agent streams text and emits no tool events, its returned tool results are sent before the final chunk."""
    run = events(("text", "a"), completed(tool_results=[RESULT]))
    assert [data for name, data in decode(stream(run, event_format="raw")) if name] == [{"results": [RESULT]}]


def test_a_new_attempt_drops_unreported_results() -> None:
    """A new attempt does not send the tool results of the attempt before it."""
    run = [*events(TOOL_START, TOOL_END), *events(("run_started", {}), ("text", "a"), completed(), attempt=2)]
    assert "tool_results" not in [name for name, _ in decode(stream(run))]


def test_error_after_text_is_set_apart() -> None:
    """An error after streamed text begins a new paragraph, has the field agent_error, and ends the stream."""
    messages = decode(stream(events(("text", "half"), FAILED)))
    assert texts(messages) == ["half", "\n\n", "Sorry, an error occurred: it broke"]
    final = messages[-2][1]
    assert final["choices"][0]["finish_reason"] == "stop"
    assert final["agent_error"] == {"type": "server_error", "code": "agent_error", "message": "it broke"}


def test_strict_errors_are_openai_error_objects() -> None:
    """With strict errors the last frame before [DONE] is an error object without chunk fields."""
    messages = decode(stream(events(FAILED), strict_errors=True))
    assert messages[-2][1]["error"]["code"] == "agent_error"
    assert set(messages[-2][1]) == {"error"}


def test_usage_is_sent_in_one_form_only() -> None:
    """Usage is in a separate last chunk with include_usage and in the final chunk without it, but never in both."""
    run = events(("text", "a"), completed())
    *_, final, usage, done = decode(stream(run, include_usage=True))
    assert "usage" not in final[1]
    assert usage[1]["choices"] == []
    assert usage[1]["usage"]["total_tokens"] == 5
    assert done[1] == "[DONE]"
    assert next(data for _, data in decode(stream(run)) if "usage" in data)["choices"][0]["finish_reason"] == "stop"


def test_named_format_moves_fields_clients_would_misread() -> None:
    """The event fields id, object, created, choices, usage, error and a non-text model are renamed to event_<name>."""
    own = {"id": 1, "object": 2, "created": 3, "choices": 4, "usage": 5, "error": None, "model": {"x": 1}, "fine": 6}
    _, (name, data), *_ = decode(stream(events(("inference_end", own), completed("x"))))
    assert name == "inference_end"
    assert {key: data[f"event_{key}"] for key in own if key != "fine"} == {k: v for k, v in own.items() if k != "fine"}
    assert data["fine"] == 6
    assert (data["id"], data["object"], data["model"]) == (HEAD.run_id, "chat.completion.chunk", "m1")
    assert "error" not in data
    assert "usage" not in data


def test_chunk_format_hides_the_event_name() -> None:
    """In chunk format no frame has an event line, and the event is under agent_event."""
    messages = decode(stream(events(TOOL_START, completed("x")), event_format="chunk"))
    assert {name for name, _ in messages} == {None}
    assert messages[1][1]["agent_event"] == {"type": "tool_call_start", "tool": "clock", "arguments": "{}"}


def test_off_format_sends_chunks_only() -> None:
    """In the format off, named events and tool results are not sent."""
    run = events(TOOL_START, TOOL_END, completed("x y", tool_results=[RESULT]))
    assert [name for name, _ in decode(stream(run, event_format="off"))] == [None] * 5


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_tool_arguments_are_json_text(arguments: object) -> None:
    """Clients get the arguments of a tool call as JSON text, in whatever form the agent emitted them."""
    run = events(("tool_call_start", {"tool": "t", "arguments": arguments}), completed("x"))
    text = decode(stream(run))[1][1]["arguments"]
    assert json.loads(text) == {"a": 1}


def test_frames_are_single_ascii_lines() -> None:
    """The data of a frame is one line of ASCII for any text."""
    out = stream(events(("text", "\u2028\x85\r\n\0日本 🙂"), completed()))
    assert out.isascii()
    assert b"\r" not in out
    assert texts(decode(out)) == ["\u2028\x85\r\n\0日本 🙂"]


def test_events_after_the_terminal_one_are_refused() -> None:
    """An event after the terminal event raises BusError."""
    machine = ChatStream(HEAD, StreamOptions())
    whole(machine, [batch([Event(1, 1, *completed("x"))])])
    with pytest.raises(BusError, match="after the terminal event"):
        machine.receive(batch([Event(1, 2, "text", "more")]))


@pytest.mark.parametrize("model", ['a"', '""', '"content":""', "\\"])
def test_a_model_name_may_hold_quotes(model: str) -> None:
    """A text chunk has the right model name and text, even if the name contains quotes."""
    machine = ChatStream(StreamHead(run_id="chatcmpl-1", created=1, model=model), StreamOptions())
    [(_, chunk)] = decode(machine.receive(batch(events(("text", 'said ""')))))
    assert chunk["model"] == model
    assert chunk["choices"][0]["delta"] == {"content": 'said ""'}


def test_the_empty_chunk_has_no_position() -> None:
    """The chunk that resets clients' timeouts has an empty delta and no id."""
    [(name, data)] = decode(ChatStream(HEAD, StreamOptions()).empty_chunk())
    assert name is None
    assert data["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    assert b"id: " not in ChatStream(HEAD, StreamOptions()).empty_chunk()


def frames_with_ids(out: bytes) -> list[tuple[str | None, bytes]]:
    frames = [frame + b"\n\n" for frame in out.split(b"\n\n") if frame]
    return [(f.split(b"\n")[0][4:].decode() if f.startswith(b"id: ") else None, f) for f in frames]


FACTS = st.one_of(
    st.tuples(st.just("text"), st.text(min_size=1, max_size=8)),
    st.sampled_from([TOOL_START, TOOL_END]),
    st.tuples(
        st.sampled_from(["note", "inference_end"]), st.dictionaries(st.sampled_from(["usage", "x"]), st.integers())
    ),
)
ENDS = st.one_of(
    st.text(max_size=20).map(lambda content: completed(content, tool_results=[RESULT])),
    st.just(completed()),
    st.just(FAILED),
)
FORMATS = st.sampled_from(["named", "raw", "chunk", "off"])


@given(st.lists(FACTS, max_size=12), ENDS, FORMATS, st.booleans(), st.data())
def test_resuming_continues_byte_for_byte(
    facts: list[Any], end: Any, event_format: EventFormat, include_usage: bool, data: st.DataObject
) -> None:
    """A stream that is resumed after any cursor equals the rest of the whole stream, byte for byte."""
    if end[1].get("content", "") is None and not any(kind == "text" for kind, _ in facts):
        facts = [("text", "t"), *facts]
    run = events(*facts, end)
    options: dict[str, Any] = {"event_format": event_format, "include_usage": include_usage}
    whole = stream(run, **options)
    assert stream(run, **options) == whole
    frames = frames_with_ids(whole)
    index = data.draw(st.integers(0, len(frames) - 2))  # [DONE] has no id
    cursor = frames[index][0]
    assert cursor is not None
    assert stream(run, after=Cursor.parse(cursor), **options) == b"".join(frame for _, frame in frames[index + 1 :])
    ids = [Cursor.parse(event_id) for event_id, _ in frames if event_id]
    assert ids == sorted(set(ids))


@given(st.lists(FACTS, max_size=12), ENDS, FORMATS)
def test_stream_and_completion_say_the_same(facts: list[Any], end: Any, event_format: EventFormat) -> None:
    """The joined deltas equal the content of the folded answer, and exactly one final chunk ends the stream."""
    if end[1].get("content", "") is None and not any(kind == "text" for kind, _ in facts):
        facts = [("text", "t"), *facts]
    run = events(*facts, end)
    completion = AnswerFold()
    for event in run:
        completion.receive(event)
    messages = decode(stream(run, event_format=event_format))
    said = "".join(texts(messages))
    chunks = [data for name, data in messages if name is None and data != "[DONE]"]
    if end is FAILED:
        assert said.startswith(completion.content)
        assert completion.failure is not None
    else:
        assert said == completion.content
    assert [bool(chunk["choices"][0]["finish_reason"]) for chunk in chunks].count(True) == 1
    assert chunks[-1]["choices"][0]["finish_reason"]
    sent = [name for name, _ in messages if name]
    emitted = [kind for kind, _ in facts if kind in NAMED_EVENTS]
    if event_format in ("named", "raw"):
        assert [name for name in sent if name != "tool_results"] == emitted
    assert run[-1].type in TERMINAL_EVENTS
