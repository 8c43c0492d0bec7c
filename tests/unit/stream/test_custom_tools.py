"""Custom tools and namespaces in the stream machine of the Responses API."""

import json
from typing import Any

import pytest
from openai.types.responses import Response

from agentstream.protocol.events import Batch
from agentstream.stream.chat import StreamHead
from agentstream.stream.response_output import ResponseFold
from agentstream.stream.responses import ResponseStream
from agentstream.stream.sse import Decoder

HEX = "0" * 31 + "7"
HEAD = StreamHead(run_id=f"chatcmpl-{HEX}", created=1_700_000_000, model="m1")
FUNCTION = {"type": "function", "parameters": {"type": "object"}, "strict": False}
TOOLS = [
    {"type": "custom", "name": "patch"},
    {**FUNCTION, "name": "weather"},
    {
        "type": "namespace",
        "name": "crm",
        "description": "The CRM.",
        "tools": [{**FUNCTION, "name": "get"}, {"type": "custom", "name": "q"}],
    },
]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
END = ["run_completed", {"content": None, "tool_results": [], "finish_reason": "tool_calls", "usage": USAGE}]
PATCH = '*** Begin Patch\n\u4e16 "x"\n'


def call(index: int, name: str, *pieces: str) -> list[Any]:
    """Return the events of a call whose arguments come in pieces."""
    first = {"index": index, "id": f"call_{index}", "name": name, "arguments": pieces[0]}
    return [["tool_call_delta", first], *(["tool_call_delta", {"index": index, "arguments": p}] for p in pieces[1:])]


def sent(items: list[Any], after: int | None = None) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the stream of a run, and its events."""
    machine = ResponseStream(HEAD, {"tools": TOOLS}, agent_events=False, after=after)
    stream = machine.open() + machine.receive(Batch(1, 1, items))
    stream += b"".join(machine.tail or ())
    return stream, [json.loads(frame.data) for frame in Decoder().feed(stream)]


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((json.dumps({"input": PATCH}),), PATCH),
        (('{"inp', 'ut": "a', 'b"}'), "ab"),
        (("*** free ", "text"), "*** free text"),
        (('{"city": "Oslo"}',), '{"city": "Oslo"}'),
        (('{"input": 5}',), '{"input": 5}'),
        (('"text"',), '"text"'),
        (('{"input": ""}',), ""),
        (("",), ""),
    ],
)
def test_a_call_of_a_custom_tool_has_its_input_as_text(pieces: tuple[str, ...], text: str) -> None:
    """The input of a custom tool is the text in the arguments, or the arguments themselves, in all its events."""
    _, events = sent([*call(0, "patch", *pieces), END])
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = ["custom_tool_call_input.delta"] if text else []
    assert kinds[2:] == [
        *("output_item.added", *deltas, "custom_tool_call_input.done", "output_item.done", "completed"),
    ]
    added, done, last = events[2], events[-3], events[-1]
    item = {"id": f"ctc_{HEX}_0", "call_id": "call_0", "name": "patch", "type": "custom_tool_call"}
    assert added["item"] == {**item, "status": "in_progress", "input": ""}
    assert "".join(event["delta"] for event in events if "delta" in event) == text
    assert (done["input"], done["item_id"], done["output_index"]) == (text, item["id"], 0)
    assert last["response"]["output"] == [{**item, "status": "completed", "input": text}]
    assert Response.model_validate(last["response"]).output[0].type == "custom_tool_call"


def test_calls_of_namespaces_have_their_own_names() -> None:
    """A call of a tool in a namespace has the tool's name and the namespace, and an unknown tool keeps its name."""
    run = [*call(0, "crm__get", "{}"), *call(1, "crm__q", '{"input": "i"}'), *call(2, "other", "{}"), END]
    output = sent(run)[1][-1]["response"]["output"]
    assert [(item["type"], item["name"], item.get("namespace")) for item in output] == [
        ("function_call", "get", "crm"),
        ("custom_tool_call", "q", "crm"),
        ("function_call", "other", None),
    ]
    assert output[1]["input"] == "i"


def test_a_stream_with_custom_tools_resumes_and_folds() -> None:
    """A stream with custom tools resumes byte for byte from every number, and the fold gives the same response."""
    run = ["Hi", *call(0, "patch", '{"input": ', '"x"}'), *call(1, "weather", "{}"), END]
    whole, events = sent(run)
    frames = [frame + b"\n\n" for frame in whole.split(b"\n\n")[:-1]]
    for after in range(len(frames)):
        assert sent(run, after)[0] == b"".join(frames[after + 1 :])
    fold = ResponseFold(HEAD, {"tools": TOOLS})
    for event in Batch(1, 1, run).events():
        fold.receive(event)
    assert fold.body() == events[-1]["response"]


def test_a_custom_call_that_is_cut_short_is_left_out() -> None:
    """A custom call of a cancelled run has no input and no done event, because clients run the calls that they hold."""
    _, events = sent([*call(0, "patch", '{"input": "rm'), ["run_cancelled", {"usage": USAGE}]])
    assert [event["type"] for event in events[2:]] == ["response.output_item.added", "response.incomplete"]
    assert events[-1]["response"]["output"] == []
