"""Events of types that are an agent's own: clients get those that they ask for."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream.protocol.events import Batch, Cursor, Event
from agentstream.protocol.requested_events import RequestedEvents
from agentstream.stream.chat import ChatStream, EventFormat, StreamHead, StreamMachine, StreamOptions
from agentstream.stream.views import CHAT_VIEW, COMPLETION_VIEW, OLDER_CHAT_VIEW, View, response_view
from tests.helpers import batch, completed, decode, events

HEAD = StreamHead(run_id=f"chatcmpl-{'0' * 32}", created=1_700_000_000, model="m1")
NONE: RequestedEvents = frozenset()
ALL: RequestedEvents = None
PROGRESS = ("progress", {"done": 3, "type": "step", "usage": 1, "agent_path": ["researcher"]})
RUN = events(
    ("run_started", {"worker": "w"}),
    PROGRESS,
    ("tool_call_start", {"tool": "clock", "arguments": {}, "agent_path": ["researcher"]}),
    ("tool_call_end", {"tool": "clock", "result": "noon"}),
    ("text", "It is "),
    ("agent_text", {"agent_path": ["researcher"], "text": "noon?"}),
    ("text", "noon."),
    ("run_checkpoint", {}),
    ("inference_echo", {"content": "internal"}),
    ("note", {}),
    completed(),
)
OWN = ["progress", "agent_text", "note"]
STANDARD = ["tool_call_start", "tool_call_end", "tool_results"]
VIEWS = {
    "chat": CHAT_VIEW,
    "older chat": OLDER_CHAT_VIEW,
    "completions": COMPLETION_VIEW,
    "responses": response_view({}),
}


def whole(machine: StreamMachine, run: list[Event], size: int = 100) -> bytes:
    """Return all frames of a run, its events in batches of ``size``."""
    out = machine.open()
    for start in range(0, len(run), size):
        out += machine.receive(batch(run[start : start + size]))
    assert machine.tail is not None
    return out + b"".join(machine.tail)


def stream(
    types: RequestedEvents, event_format: EventFormat = "named", *, after: Cursor | None = None, view: View = CHAT_VIEW
) -> bytes:
    """Return the stream of RUN for a client that asked for these types."""
    return whole(view.machine(HEAD, StreamOptions(event_format=event_format, event_types=types), after), RUN)


def names(frames: bytes) -> list[str]:
    """Return the names of the agent events in a stream, in any format and any API."""
    found = []
    for name, data in decode(frames):
        if data != "[DONE]" and (event := data.get("agent_event")):
            found.append(event["type"])
        elif name is not None and not name.startswith("response."):
            found.append(name.removeprefix("agentstream."))
    return found


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("event_format", ["named", "raw", "chunk"])
def test_clients_get_the_types_that_they_ask_for(event_format: EventFormat, view: str) -> None:
    """In every format and API a client gets the types that it asked for in the agent's order, and no others."""
    sent = {
        types: names(stream(types, event_format, view=VIEWS[view]))
        for types in (NONE, ALL, frozenset({"progress", "unknown"}))
    }
    assert sent[NONE] == STANDARD
    assert sent[ALL] == ["progress", *STANDARD, "agent_text", "note"]
    assert sent[frozenset({"progress", "unknown"})] == ["progress", *STANDARD]


@pytest.mark.parametrize("view", VIEWS)
def test_off_sends_no_types(view: str) -> None:
    """In the format off, types that were asked for are not sent either."""
    assert names(stream(ALL, "off", view=VIEWS[view])) == []
    assert stream(ALL, "off", view=VIEWS[view]) == stream(NONE, "off", view=VIEWS[view])


def test_the_formats_show_the_fields() -> None:
    """Each format sends the fields of an agent's own event as it does those of other events, under its own cursor."""
    fields = PROGRESS[1]
    [named] = [data for name, data in decode(stream(ALL)) if name == "progress"]
    assert named["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    assert {key: named[key] for key in ("done", "type", "event_usage", "agent_path")} == {
        "done": 3, "type": "step", "event_usage": 1, "agent_path": ["researcher"]
    }  # fmt: skip
    assert [data for name, data in decode(stream(ALL, "raw")) if name == "progress"] == [fields]
    [chunk] = [data["agent_event"] for _, data in decode(stream(ALL, "chunk")) if "progress" in json.dumps(data)]
    assert chunk == {
        **{key: fields[key] for key in ("done", "usage", "agent_path")},
        "type": "progress",
        "event_type": "step",
    }
    [typed] = [d for name, d in decode(stream(ALL, view=VIEWS["responses"])) if name == "agentstream.progress"]
    assert typed["data"] == fields
    for event_format in ("named", "raw", "chunk"):
        assert [
            frame.split(b"\n")[0] for frame in stream(ALL, event_format).split(b"\n\n") if b"progress" in frame
        ] == [b"id: 1-2"]


def test_the_rest_of_the_stream_does_not_change() -> None:
    """A stream without an agent's own events has the same frames, byte for byte, as one with them."""
    frames = stream(ALL).split(b"\n\n")
    standard = [frame for frame in frames if not any(f"event: {name}\n".encode() in frame for name in OWN)]
    assert len(standard) == len(frames) - len(OWN)
    assert b"\n\n".join(standard) == stream(NONE)


TYPES = st.one_of(st.none(), st.frozensets(st.sampled_from(OWN)))
FORMATS = st.sampled_from(["named", "raw", "chunk", "off"])


@settings(deadline=None)
@given(TYPES, TYPES, FORMATS, st.integers(1, 4), st.data())
def test_a_client_may_resume_with_other_types(
    before: RequestedEvents, later: RequestedEvents, event_format: EventFormat, size: int, data: st.DataObject
) -> None:
    """After any cursor a client may resume with other types: it gets exactly the frames after that cursor."""
    cursors = [frame.split(b"\n")[0][4:].decode() for frame in stream(before, event_format).split(b"\n\n")]
    after = Cursor.parse(data.draw(st.sampled_from([cursor for cursor in cursors if cursor[:1].isdigit()])))
    expected = b"".join(
        frame + b"\n\n"
        for frame in stream(later, event_format).split(b"\n\n")[:-1]
        if not frame.startswith(b"id: ") or Cursor.parse(frame.split(b"\n")[0][4:].decode()) > after
    )
    machine = ChatStream(HEAD, StreamOptions(event_format=event_format, event_types=later), after)
    assert whole(machine, RUN, size) == expected


@settings(deadline=None)
@given(TYPES, st.integers(1, 4), st.data())
def test_a_response_resumes_byte_for_byte(types: RequestedEvents, size: int, data: st.DataObject) -> None:
    """With the same types a stream of the Responses API continues after any number, byte for byte."""
    options = StreamOptions(event_types=types)
    frames = [frame + b"\n\n" for frame in stream(types, view=VIEWS["responses"]).split(b"\n\n")[:-1]]
    number = data.draw(st.integers(0, len(frames) - 1))
    machine = response_view({}, after=number).machine(HEAD, options, None)
    assert whole(machine, RUN, size) == b"".join(frames[number + 1 :])


@pytest.mark.parametrize("data", [None, [], "text", 7])
def test_an_event_of_a_newer_writer_is_ignored(data: Any) -> None:
    """An event of an unknown type whose data is no object gives no frames, also to clients that want all types."""
    machine = ChatStream(HEAD, StreamOptions(event_types=ALL))
    machine.open()
    assert machine.receive(Batch(1, 1, [["from_the_future", data]])) == b""
