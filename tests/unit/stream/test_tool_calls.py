"""Reasoning and calls of the client's tools: in the stream, in the folded answer, and in a resumed stream."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from agentstream.protocol.events import Cursor, Event
from agentstream.protocol.openai import completion_body
from agentstream.stream.chat import ChatStream, StreamHead, StreamOptions
from agentstream.stream.transcript import AnswerFold, Reasoning, ToolCallDelta
from tests.helpers import batch, completed, decode, events, texts

HEAD = StreamHead(run_id="chatcmpl-" + "0" * 32, created=1_700_000_000, model="m1")
TOOL = ("tool_call_end", {"tool": "clock", "success": True, "latency": 0.25, "result": "noon"})
CALLS: list[tuple[str, Any]] = [
    ("tool_call_delta", {"index": 0, "id": "a", "name": "get_weather", "arguments": ""}),
    ("tool_call_delta", {"index": 0, "arguments": '{"city": '}),
    ("tool_call_delta", {"index": 1, "id": "b", "name": "now", "arguments": "{}"}),
    ("tool_call_delta", {"index": 0, "arguments": '"Oslo"}'}),
]
CALLED = completed(None, reason="tool_calls")
WHOLE = [
    {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
    {"id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
FAILED = ("run_failed", {"code": "worker_lost", "message": "gone"})
CANCELLED = ("run_cancelled", {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})


def stream(run: list[Event], *, after: Cursor | None = None, **options: Any) -> bytes:
    machine = ChatStream(HEAD, StreamOptions(**options), after)
    out = machine.open() + b"".join([machine.receive(batch([event])) for event in run])
    return out + b"".join(machine.tail or ())


def deltas(out: bytes) -> list[Any]:
    """Return the deltas of a stream without the empty ones."""
    return [
        delta
        for name, data in decode(out)
        if name is None and data != "[DONE]" and data.get("choices")
        if (delta := data["choices"][0]["delta"])
    ]


def folded(run: list[Event]) -> AnswerFold:
    completion = AnswerFold()
    for event in run:
        completion.receive(event)
    return completion


def test_a_call_is_streamed_as_openai_does() -> None:
    """The first delta of a call has index, id, type, name and arguments, and later deltas have index and arguments."""
    out = stream(events(*CALLS, CALLED))
    first = {"name": "get_weather"}
    assert deltas(out)[1:] == [
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {**first, "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
    ]
    assert decode(out)[-2][1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}


def test_the_openai_package_puts_the_calls_together() -> None:
    """The openai package assembles the chunks into the same calls as the folded answer."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for name, data in decode(stream(events(("reasoning", "hm"), *CALLS, CALLED))):
        if name is None and data != "[DONE]":
            state.handle_chunk(ChatCompletionChunk.model_validate(data))
    choice = state.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = [call.model_dump(exclude={"index", "parsed_arguments"}) for call in choice.message.tool_calls or ()]
    assert [{**call, "function": {k: call["function"][k] for k in ("name", "arguments")}} for call in calls] == WHOLE


def test_reasoning_is_streamed_apart_from_the_text() -> None:
    """Reasoning is sent as reasoning_content, and is not part of the content."""
    run = events(("reasoning", "So\u2028"), ("reasoning", "then"), ("text", "Hi"), completed())
    out = stream(run)
    assert out.isascii()
    assert deltas(out)[1:] == [{"reasoning_content": "So\u2028"}, {"reasoning_content": "then"}, {"content": "Hi"}]
    assert (folded(run).reasoning, folded(run).content) == ("So\u2028then", "Hi")


def test_reasoning_of_turns_is_separated() -> None:
    """A blank line separates reasoning before tools from reasoning after them, but does not precede the first one."""
    run = events(TOOL, ("reasoning", "a"), ("reasoning", "b"), TOOL, ("reasoning", "c"), ("text", "x"), completed())
    assert folded(run).reasoning == "ab\n\nc"
    assert folded(run).content == "x"
    frames = [frame for frame in stream(run).split(b"\n\n") if b"reasoning_content" in frame]
    assert [frame.split(b"\n")[0] for frame in frames] == [b"id: 1-2", b"id: 1-3", b"id: 1-5.1", b"id: 1-5.2"]


def test_a_call_is_not_text_for_tool_results() -> None:
    """If calls but no text follow the agent's own tools, the tool results are sent just before the final chunk."""
    messages = decode(stream(events(("text", "a"), TOOL, *CALLS, CALLED), event_format="raw"))
    assert [name for name, _ in messages] == [None, None, "tool_call_end", *[None] * 4, "tool_results", None, None]
    assert texts(messages) == ["a"]


def test_the_folded_calls_are_those_of_an_assistant_message() -> None:
    """The folded calls are ordered by index, and the content of a message without text is null."""
    completion = folded(events(("reasoning", "hm"), *CALLS, CALLED))
    assert completion.tool_calls == WHOLE
    body = completion_body(
        run_id="chatcmpl-1",
        created=7,
        model="m1",
        status="completed",
        content=completion.content,
        finish_reason="tool_calls",
        usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        reasoning=completion.reasoning,
        tool_calls=completion.tool_calls,
    )
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["tool_calls"]) == (None, "hm", WHOLE)
    parsed = ChatCompletion.model_validate(body, strict=True).choices[0].message
    assert [call.id for call in parsed.tool_calls or ()] == ["a", "b"]


def test_a_plain_answer_has_no_keys_for_calls_and_reasoning() -> None:
    """A message without calls and reasoning has no keys for them."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    body = completion_body(
        run_id="c", created=7, model="m", status="completed", content="", finish_reason="stop", usage=usage
    )
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "", "refusal": None}


def test_calls_are_numbered_as_they_begin() -> None:
    """Clients see calls numbered in the order in which they begin, even if their indexes have another order."""
    late = [CALLS[2], CALLS[0], ("tool_call_delta", {"index": 1, "arguments": " "})]
    run = events(*late, CALLED)
    assert [delta["tool_calls"][0]["index"] for delta in deltas(stream(run))[1:]] == [0, 1, 0]
    assert [call["id"] for call in folded(run).tool_calls] == ["b", "a"]


@pytest.mark.parametrize("end", [FAILED, CANCELLED], ids=["failed", "cancelled"])
def test_an_incomplete_call_ends_in_an_error_object(end: tuple[str, Any]) -> None:
    """After a call has begun, a failure or cancel is sent as an error object, so that clients do not run the call."""
    messages = decode(stream(events(*CALLS[:2], end)))
    assert set(messages[-2][1]) == {"error"}
    assert messages[-1][1] == "[DONE]"
    assert not any(data["choices"][0]["finish_reason"] for _, data in messages[:-2])


def test_an_incomplete_call_ends_in_an_error_object_if_the_stream_is_lost() -> None:
    """After a call has begun, the front end's own failure is sent as an error object too."""
    machine = ChatStream(HEAD, StreamOptions())
    machine.receive(batch(events(*CALLS[:2])))
    machine.fail("stream_lost", "gone")
    assert set(decode(b"".join(machine.tail or ()))[0][1]) == {"error"}


FACTS = st.sampled_from([("text", "t"), ("reasoning", "r"), TOOL, *CALLS])


@given(st.lists(FACTS, max_size=12), st.sampled_from([CALLED, completed("a b"), FAILED, CANCELLED]), st.data())
def test_resuming_continues_byte_for_byte(facts: list[Any], end: Any, data: st.DataObject) -> None:
    """A stream that is resumed after any cursor, also before a call, equals the rest of the whole stream."""
    run = events(*facts, end)
    frames = [frame + b"\n\n" for frame in stream(run).split(b"\n\n") if frame]
    index = data.draw(st.integers(0, len(frames) - 2))  # [DONE] has no id
    cursor = Cursor.parse(frames[index].split(b"\n")[0][4:].decode())
    assert stream(run, after=cursor) == b"".join(frames[index + 1 :])


@given(st.lists(FACTS, max_size=12))
def test_stream_and_completion_say_the_same(facts: list[Any]) -> None:
    """The joined deltas equal the content, reasoning and calls of the folded answer."""
    run = events(*facts, completed(None))
    completion, said = folded(run), deltas(stream(run))
    assert "".join(delta.get("content", "") for delta in said) == completion.content
    assert "".join(delta.get("reasoning_content", "") for delta in said) == completion.reasoning
    arguments = ["" for _ in completion.tool_calls]
    for delta in said:
        for call in delta.get("tool_calls", ()):
            arguments[call["index"]] += call["function"]["arguments"]
    assert arguments == [call["function"]["arguments"] for call in completion.tool_calls]


def test_parts_are_plain_tuples() -> None:
    """The parts for reasoning and calls have the field names that the stream machines use."""
    assert ToolCallDelta(0, "a", "f", "{}")._asdict() == {"index": 0, "id": "a", "name": "f", "arguments": "{}"}
    assert Reasoning("r").text == "r"
