"""The chat stream for clients of the older form of tools."""

import json
from typing import Any

from agentstream.protocol.events import Batch, Cursor
from agentstream.stream.chat import StreamHead, StreamOptions
from agentstream.stream.views import OLDER_CHAT_VIEW

HEAD = StreamHead(run_id="chatcmpl-1", created=1_700_000_000, model="m1")
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
RUN = [
    ["run_started", {"worker": "w"}],
    "So: ",
    ["tool_call_delta", {"index": 0, "id": "call_1", "name": "f", "arguments": '{"a": '}],
    ["tool_call_delta", {"index": 0, "arguments": "1}"}],
    ["tool_call_delta", {"index": 1, "id": "call_2", "name": "g", "arguments": "{}"}],
    ["run_completed", {"content": None, "tool_results": [], "finish_reason": "tool_calls", "usage": USAGE}],
]


def frames(after: Cursor | None = None) -> list[bytes]:
    """Return the frames of the run's stream."""
    machine = OLDER_CHAT_VIEW.machine(HEAD, StreamOptions(), after)
    stream = machine.open() + machine.receive(Batch(1, 1, RUN)) + b"".join(machine.tail or ())
    return [frame + b"\n\n" for frame in stream.split(b"\n\n")[:-1]]


def choices() -> list[dict[str, Any]]:
    found = []
    for frame in frames()[:-1]:
        [line] = [line for line in frame.split(b"\n") if line.startswith(b"data: ")]
        found.append(json.loads(line[6:])["choices"][0])
    return found


def test_the_first_call_is_streamed_as_function_call() -> None:
    """The first call comes as function_call, further calls as tool_calls, and the finish reason is function_call."""
    deltas = [choice["delta"] for choice in choices()]
    assert [delta["function_call"] for delta in deltas if "function_call" in delta] == [
        {"name": "f", "arguments": '{"a": '},
        {"arguments": "1}"},
    ]
    [second] = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert second[0]["id"] == "call_2"
    assert choices()[-1]["finish_reason"] == "function_call"


def test_the_stream_resumes_and_the_fold_agrees() -> None:
    """A stream in the older form resumes byte for byte, and the whole answer holds the same call."""
    whole = frames()
    for number in range(2, len(RUN)):
        [at] = [index for index, frame in enumerate(whole) if frame.startswith(b"id: 1-%d\n" % number)]
        assert frames(Cursor(1, number)) == whole[at + 1 :]
    fold = OLDER_CHAT_VIEW.fold(HEAD)
    assert fold.body()["choices"][0]["message"]["content"] == ""
    for event in Batch(1, 1, RUN).events():
        fold.receive(event)
    [choice] = fold.body()["choices"]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a": 1}'}
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_2"]
    assert choice["finish_reason"] == "function_call"
