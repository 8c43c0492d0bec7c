"""The stream machine of the Responses API."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.responses import Response

from agentstream.errors import AGENT_ERROR, STREAM_LOST, BusError
from agentstream.protocol.events import Batch
from agentstream.stream import responses as response_stream
from agentstream.stream.chat import StreamHead
from agentstream.stream.response_output import ResponseFold
from agentstream.stream.responses import ResponseStream
from agentstream.stream.sse import Decoder

HEX = "0" * 31 + "7"
HEAD = StreamHead(run_id=f"chatcmpl-{HEX}", created=1_700_000_000, model="m1")
ECHO = {"instructions": "Be brief.", "metadata": {"a": "b"}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
STARTED = ["run_started", {"worker": "w"}]
CALL = [
    ["tool_call_delta", {"index": 0, "id": "call_1", "name": "weather", "arguments": '{"city": '}],
    ["tool_call_delta", {"index": 0, "arguments": '"Oslo"}'}],
]
TOOL = [
    ["tool_call_start", {"tool": "clock", "arguments": {"zone": "UTC"}}],
    ["tool_call_end", {"tool": "clock", "success": True, "latency": 0.5, "result": "noon"}],
]
EVERYTHING = [STARTED, ["reasoning", "Hm"], ["reasoning", "m."], "It ", "is", *TOOL, "noon \u2028\u4e16.", *CALL]

Typed = tuple[str, dict[str, Any]]


def ending(reason: str = "stop", content: str | None = None) -> list[Any]:
    """Return the terminal event of a run that completed."""
    data: dict[str, Any] = {"content": content, "tool_results": [], "finish_reason": reason, "usage": USAGE}
    return ["run_completed", data]


CANCELLED = ["run_cancelled", {"usage": USAGE}]
FAILED = ["run_failed", {"code": AGENT_ERROR, "message": "no"}]
RUNS: dict[str, list[Any]] = {
    "everything": [*EVERYTHING, ending("tool_calls")],
    "replayed": [STARTED, ending(content="three short words")],
    "empty": [STARTED, ending(content="")],
    "cut short": [STARTED, "It is", ending("length")],
    "cancelled": [*EVERYTHING, CANCELLED],
    "failed": [*EVERYTHING, FAILED],
    "cancelled before it began": [CANCELLED],
}


def frames(items: list[Any], *, after: int | None = None, agent_events: bool = False, size: int = 1) -> bytes:
    """Return a run's whole stream, its events in batches of ``size``."""
    machine = ResponseStream(HEAD, ECHO, agent_events=agent_events, after=after)
    out = machine.open()
    for start in range(0, len(items), size):
        out += machine.receive(Batch(1, start + 1, items[start : start + size]))
    assert machine.tail is not None
    return out + b"".join(machine.tail)


def decoded(stream: bytes) -> list[Typed]:
    """Return name and data of each event; assert that the name equals the type in the data."""
    typed = [(frame.event, json.loads(frame.data)) for frame in Decoder().feed(stream)]
    assert all(data["type"] == name for name, data in typed)
    return typed


def names(stream: bytes) -> list[str]:
    """Return the types of a stream's events."""
    return [name.removeprefix("response.") for name, _ in decoded(stream)]


def pieces(stream: bytes) -> Iterator[bytes]:
    """Yield a stream's frames."""
    for frame in stream.split(b"\n\n")[:-1]:
        yield frame + b"\n\n"


def test_a_text_is_an_item_built_by_its_events() -> None:
    """A streamed answer is one message item, with the events that OpenAI's API sends for it, in order."""
    stream = frames([STARTED, "Hel", "lo", ending()])
    assert names(stream) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    response = Response.model_validate(decoded(stream)[-1][1]["response"])
    assert response.output_text == "Hello"
    assert response.id == f"resp_{HEX}"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (3, 4, 7)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})


@pytest.mark.parametrize("agent_events", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_numbers_are_contiguous_from_zero(run: str, agent_events: bool) -> None:
    """Events are numbered from 0 without gaps, each number is also the SSE id, and exactly one last event is sent."""
    stream = frames(RUNS[run], agent_events=agent_events)
    assert [data["sequence_number"] for _, data in decoded(stream)] == list(range(len(decoded(stream))))
    assert [int(frame.last_event_id) for frame in Decoder().feed(stream)] == list(range(len(decoded(stream))))
    ends = {"response.completed", "response.incomplete", "response.failed"}
    assert [name in ends for name, _ in decoded(stream)] == [False] * (len(decoded(stream)) - 1) + [True]


@pytest.mark.parametrize("run", RUNS)
def test_a_stream_resumes_byte_for_byte_from_every_number(run: str) -> None:
    """A stream that is resumed after any number equals the rest of the whole stream, for batches of any size."""
    whole = frames(RUNS[run])
    every = list(pieces(whole))
    for after in range(len(every)):
        for size in (1, 3, 100):
            assert frames(RUNS[run], after=after, size=size) == b"".join(every[after + 1 :])


def test_resuming_after_the_end_is_an_error() -> None:
    """If ``after`` is larger than the last number of the response, the stream sends an error event."""
    [(name, data)] = decoded(frames(RUNS["replayed"], after=99))
    assert name == "error"
    assert data["error"]["type"] == "invalid_request_error"
    assert "99" in data["message"]


def test_everything_becomes_items_in_order() -> None:
    """Reasoning, text and each call become separate items, and the agent's own tools do not split the text item."""
    response = decoded(frames(RUNS["everything"]))[-1][1]["response"]
    Response.model_validate(response)
    reasoning, message, call = response["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "It is\n\nnoon \u2028\u4e16."
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_1", "weather", '{"city": "Oslo"}')
    assert [item["id"] for item in response["output"]] == [f"rs_{HEX}_0", f"msg_{HEX}_1", f"fc_{HEX}_2"]
    assert {item["status"] for item in response["output"]} == {"completed"}


def test_deltas_join_to_what_is_done() -> None:
    """The joined deltas of an item equal the text or arguments in its done event."""
    deltas: dict[tuple[str, str], str] = {}
    done: dict[tuple[str, str], str] = {}
    for name, data in decoded(frames(RUNS["everything"])):
        kind, _, last = name.rpartition(".")
        place = kind, str(data.get("item_id"))
        if last == "delta":
            deltas[place] = deltas.get(place, "") + data["delta"]
        elif last == "done" and ("text" in data or "arguments" in data):
            done[place] = data["text"] if "text" in data else data["arguments"]
    assert deltas == done
    assert len(done) == 3


def test_agent_events_are_sent_only_if_asked_for() -> None:
    """The events of the agent are sent with the type agentstream.<name>, but only if the client asked for them."""
    sent = [data for name, data in decoded(frames(RUNS["everything"], agent_events=True)) if "agentstream" in name]
    assert [data["type"].partition(".")[2] for data in sent] == ["tool_call_start", "tool_call_end", "tool_results"]
    assert sent[0]["data"] == {"tool": "clock", "arguments": '{"zone": "UTC"}'}
    assert "agentstream" not in frames(RUNS["everything"]).decode()


@pytest.mark.parametrize(
    ("run", "status", "reason", "last"),
    [
        ("replayed", "completed", None, "completed"),
        ("empty", "completed", None, "completed"),
        ("cut short", "incomplete", "max_output_tokens", "incomplete"),
        ("cancelled", "cancelled", "cancelled", "incomplete"),
        ("failed", "failed", None, "failed"),
        ("cancelled before it began", "cancelled", "cancelled", "incomplete"),
    ],
)
def test_the_last_event_shows_how_the_run_ended(run: str, status: str, reason: str | None, last: str) -> None:
    """The last event and its response show whether the answer is complete, and why it is not."""
    name, data = decoded(frames(RUNS[run]))[-1]
    response = data["response"]
    assert name == f"response.{last}"
    assert response["status"] == status
    assert (response["incomplete_details"] or {}).get("reason") == reason
    assert (response["error"] is not None) == (status == "failed")
    assert (response["usage"] is None) == (status == "failed")


@pytest.mark.parametrize("run", ["cancelled", "failed"])
def test_a_call_that_is_cut_short_is_not_done(run: str) -> None:
    """A call of a run that did not complete has no done event, because clients run the calls that they hold."""
    typed = decoded(frames(RUNS[run]))
    assert [data["item"]["type"] for name, data in typed if name == "response.output_item.done"] == [
        "reasoning",
        "message",
    ]
    assert [item["type"] for item in typed[-1][1]["response"]["output"]] == ["reasoning", "message"]


def test_a_failure_has_openais_code_and_the_exact_code() -> None:
    """A failed response has the error fields that clients parse, and the error text is not part of the answer."""
    response = decoded(frames(RUNS["failed"]))[-1][1]["response"]
    sentence = "Sorry, an error occurred: no"
    assert response["error"] == {"code": "server_error", "message": sentence, "type": "server_error", "param": None}
    assert response["agent_error"]["code"] == AGENT_ERROR
    assert response["output"][1]["content"][0]["text"] == "It is\n\nnoon \u2028\u4e16."


def test_an_empty_answer_has_no_items() -> None:
    """A run without text completes with an empty output."""
    assert names(frames(RUNS["empty"])) == ["created", "in_progress", "completed"]


def test_a_lost_stream_ends_in_an_error_that_has_the_last_number() -> None:
    """The error event has both forms that clients know, and repeats the number of the last event."""
    machine = ResponseStream(HEAD, {}, agent_events=False)
    stream = machine.open() + machine.receive(Batch(1, 1, [STARTED, "a"]))
    machine.fail(STREAM_LOST, "gone")
    assert machine.tail is not None
    *earlier, (name, error) = decoded(stream + b"".join(machine.tail))
    assert name == "error"
    assert error["sequence_number"] == earlier[-1][1]["sequence_number"]
    assert error["code"] == error["error"]["code"] == STREAM_LOST
    assert "gone" in error["message"]
    assert not machine.completed


def test_a_resumed_stream_repeats_the_number_of_its_client() -> None:
    """If a resumed stream sends no event and is lost, its frames have the number after which the client resumed."""
    machine = ResponseStream(HEAD, {}, agent_events=False, after=40)
    assert machine.open() == b""
    assert decoded(machine.empty_chunk())[0][1]["sequence_number"] == 40
    machine.fail(STREAM_LOST, "gone")
    assert machine.tail is not None
    assert decoded(b"".join(machine.tail))[0][1]["sequence_number"] == 40


def test_an_invalid_batch_does_not_change_the_last_number() -> None:
    """After a batch with an invalid item, the error event has the number of the last event that was sent."""
    machine = ResponseStream(HEAD, {}, agent_events=False)
    stream = machine.open() + machine.receive(Batch(1, 1, [STARTED, "a"]))
    with pytest.raises(BusError):
        machine.receive(Batch(1, 3, ["b", 7]))
    machine.fail(STREAM_LOST, "gone")
    assert machine.tail is not None
    *earlier, (_, error) = decoded(stream + b"".join(machine.tail))
    assert error["sequence_number"] == earlier[-1][1]["sequence_number"]


def test_a_too_long_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that exceeds its limit raises BusError, because the stream holds the whole answer in memory."""
    monkeypatch.setattr(response_stream, "MAX_OUTPUT_CHARACTERS", 5)
    machine = ResponseStream(HEAD, {}, agent_events=False)
    machine.receive(Batch(1, 1, [STARTED, "12345"]))
    with pytest.raises(BusError, match="chat completion"):
        machine.receive(Batch(1, 3, ["6"]))


@pytest.mark.parametrize("run", RUNS)
def test_folded_and_streamed_are_the_same_response(run: str) -> None:
    """The folded response equals the response in the last event of the stream."""
    fold = ResponseFold(HEAD, ECHO)
    for event in Batch(1, 1, RUNS[run]).events():
        fold.receive(event)
    assert fold.finished
    assert fold.body() == decoded(frames(RUNS[run]))[-1][1]["response"]


def test_an_open_response_shows_the_output_so_far() -> None:
    """A queued response has the status queued, and a running one shows the text so far as an item in progress."""
    fold = ResponseFold(HEAD, {})
    assert fold.body(status="queued")["status"] == "queued"
    for event in Batch(1, 1, [STARTED, "It ", "is"]).events():
        fold.receive(event)
    body = fold.body()
    assert body["status"] == "in_progress"
    [message] = body["output"]
    assert (message["status"], message["content"][0]["text"]) == ("in_progress", "It is")
