"""Events, cursors, and the batches that carry events."""

import json
import re
from decimal import Decimal
from typing import Any

import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import BusError, InvalidAgentOutput
from agentstream.protocol.events import (
    MAX_EVENT_BYTES,
    NAMED_EVENTS,
    RESERVED_EVENTS,
    START,
    TEXT,
    Cursor,
    Event,
    check_agent_event,
    decode_batch,
    encode_batch,
    encode_event,
)

cursors = st.builds(
    Cursor, st.integers(0, 10**9 - 1), st.integers(0, 10**15 - 1), st.integers(0, 10**9 - 1)
)  # up to the largest valid cursor
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))
any_text = st.text(st.characters())  # lone surrogates included
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | unicode_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(unicode_text, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
event_types = st.from_regex(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}", fullmatch=True).filter(
    lambda name: name not in RESERVED_EVENTS
)
batch_like = st.fixed_dictionaries({"a": json_values, "s": json_values, "e": json_values | st.lists(json_values)})
facts = st.tuples(st.just(TEXT), unicode_text) | st.tuples(event_types, st.dictionaries(unicode_text, json_values))


@given(cursors)
def test_a_cursor_survives_its_text(cursor: Cursor) -> None:
    """The text of a cursor parses to the same cursor and contains only digits, hyphens and dots."""
    assert Cursor.parse(str(cursor)) == cursor
    assert set(str(cursor)) <= set("0123456789-.")


@given(st.text(alphabet="0123456789-. \n+a\u0663"))
def test_only_a_cursors_text_parses(text: str) -> None:
    """A text parses to the cursor that it spells, or raises a ValueError that contains the text."""
    try:
        cursor = Cursor.parse(text)
    except ValueError as exc:
        assert repr(text[:40]) in str(exc)  # noqa: PT017 -- some texts parse, others raise
    else:
        attempt, _, position = text.partition("-")
        seq, _, part = position.partition(".")
        assert cursor == (int(attempt), int(seq), int(part or 0))


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "1-2.", "1-2.3.4", "1-2\n", " 1-2", "1--2", "a-b", "\u0661-\u0662", "1" * 10 + "-1"]
)
def test_a_malformed_cursor_is_refused(text: str) -> None:
    """A text that is almost a cursor raises a ValueError that states the expected form."""
    with pytest.raises(ValueError, match="expected 'attempt-seq'"):
        Cursor.parse(text)


def test_cursors_sort_in_stream_order() -> None:
    """Cursors sort by attempt, seq and part, which is the order of their frames; the role chunk's cursor is first."""
    in_order = [START, Cursor(1, 1), Cursor(1, 2, 1), Cursor(1, 2, 10), Cursor(1, 10), Cursor(2, 1)]
    assert sorted({*in_order}) == in_order
    assert [str(cursor) for cursor in in_order[:3]] == ["0-0", "1-1", "1-2.1"]


@given(st.integers(1, 10**6), st.integers(1, 10**12), st.lists(facts, max_size=5))
def test_a_batch_survives_the_wire(attempt: int, first_seq: int, batch: list[tuple[str, Any]]) -> None:
    """Encoding and decoding a batch returns the same events, each with its attempt and seq."""
    payload = encode_batch(attempt, first_seq, [encode_event(kind, data) for kind, data in batch])
    expected = [Event(attempt, seq, kind, data) for seq, (kind, data) in enumerate(batch, first_seq)]
    assert decode_batch(payload).events() == expected


def test_unknown_keys_of_a_batch_are_ignored() -> None:
    """A batch of a newer writer is decoded without its unknown keys, so that a rolling upgrade loses no events."""
    payload = b'{"v":2,"a":1,"s":4,"sent":1.5,"e":["x",["note",{},"more"]]}'
    assert decode_batch(payload).events() == [Event(1, 4, TEXT, "x"), Event(1, 5, "note", {})]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"a":1,"s":1}',
        b'{"a":"x","s":1,"e":[]}',
        b'{"a":1,"s":null,"e":[]}',
        b'{"a":1,"s":1,"e":5}',
        b'{"a":1,"s":1,"e":"text"}',
        b'{"a":1,"s":1,"e":{"note":1}}',
        b'{"a":1.0,"s":1,"e":[]}',
        b'{"a":true,"s":1,"e":[]}',
        b'{"a":1,"s":"1","e":[]}',
        b'{"a":1,"s":1,"e":null}',
    ],
    ids=repr,
)
def test_a_foreign_message_is_refused(payload: bytes) -> None:
    """A message that is not a batch raises a BusError that contains its first bytes."""
    with pytest.raises(BusError, match="not an event batch"):
        decode_batch(payload)


@pytest.mark.parametrize("item", [5, None, {"note": 1}, [], ["note"], [5, {}], [None, None]], ids=repr)
def test_an_item_that_is_not_an_event_is_refused(item: object) -> None:
    """An item that is not an event raises a BusError that contains the item and its position."""
    batch = decode_batch(orjson.dumps({"a": 2, "s": 7, "e": ["x", item]}))
    with pytest.raises(BusError, match=re.escape(f"not an event: {item!r} (2-8)")):
        batch.events()


@given(st.integers(1, 9), st.integers(1, 9), st.lists(facts, min_size=1, max_size=6), st.data())
def test_since_cuts_a_batch(attempt: int, first: int, run: list[tuple[str, Any]], data: st.DataObject) -> None:
    """``Batch.since`` keeps the events from a seq on, and their seqs."""
    batch = decode_batch(encode_batch(attempt, first, [encode_event(kind, value) for kind, value in run]))
    seq = data.draw(st.integers(batch.seq, batch.last_seq))
    assert batch.since(seq).events() == batch.events()[seq - first :]
    assert batch.since(seq).last_seq == batch.last_seq == batch.events()[-1].seq


@given(st.binary() | st.builds(orjson.dumps, json_values | batch_like))
def test_decoding_raises_no_other_error(payload: bytes) -> None:
    """Any message on a run's channel decodes to a batch or raises BusError."""
    try:
        events = decode_batch(payload).events()
    except BusError:
        return
    assert all(isinstance(event.type, str) for event in events)


@pytest.mark.parametrize("event_type", sorted(RESERVED_EVENTS))
def test_reserved_event_types_are_refused(event_type: str) -> None:
    """An agent may not emit a reserved event type, and the error names the type."""
    with pytest.raises(InvalidAgentOutput, match=f"'{event_type}' belongs to agentstream"):
        check_agent_event(event_type, {})


@pytest.mark.parametrize(
    "event_type", ["", "1note", "a b", "a\nb", "a\rb", "a\0b", "note\n", "n\u00f6te", "a" * 65, "_x", None, 5, b"note"]
)
def test_an_event_type_that_could_break_a_frame_is_refused(event_type: object) -> None:
    """An event type that is not a short ASCII name is refused, and the error says what is allowed."""
    with pytest.raises(InvalidAgentOutput, match="use a letter, then up to 63 letters"):
        check_agent_event(event_type, {})


@pytest.mark.parametrize("data", [None, [], "text", 5, [("a", 1)]])
def test_event_data_must_be_a_dict(data: object) -> None:
    """Event data that is not a dict is refused, and the error names its type."""
    with pytest.raises(InvalidAgentOutput, match=f"needs a dict as data, got {type(data).__name__}"):
        check_agent_event("note", data)


@given(event_types)
def test_other_event_types_are_allowed(event_type: str) -> None:
    """An agent may emit every other short ASCII name, and the named events."""
    for allowed in (event_type, *NAMED_EVENTS):
        check_agent_event(allowed, {"tool": "clock"})


class _Raises(pydantic.BaseModel):
    @pydantic.model_serializer
    def serialize(self) -> Any:
        message = "no"
        raise KeyError(message)


@pytest.mark.parametrize("value", [object(), object, _Raises()], ids=["object", "class", "model that raises"])
def test_data_that_is_not_json_is_refused(value: object) -> None:
    """Data that cannot be written as JSON raises an InvalidAgentOutput that names the event."""
    with pytest.raises(InvalidAgentOutput, match="event 'note' cannot be written as JSON"):
        encode_event("note", {"value": value})


def test_data_that_json_lacks_is_written() -> None:
    """Values such as sets, Decimals and int keys do not fail the run, and a reader gets them as JSON."""
    [event] = decode_batch(encode_batch(1, 1, [encode_event("note", {"set": {1}, 5: Decimal("1.5")})])).events()
    assert event.data == {"set": [1], "5": "1.5"}


def test_data_that_contains_itself_is_refused() -> None:
    """A dict that contains itself raises InvalidAgentOutput."""
    data: dict[str, Any] = {}
    data["self"] = data
    with pytest.raises(InvalidAgentOutput, match="event 'note'"):
        encode_event("note", data)


@given(any_text)
def test_lone_surrogates_in_text_are_replaced(text: str) -> None:
    """A lone surrogate in streamed text is replaced, and the rest of the text is unchanged."""
    [event] = decode_batch(encode_batch(1, 1, [encode_event(TEXT, text)])).events()
    assert event.data == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    event.data.encode()


@pytest.mark.parametrize("data", [{"result": "half \ud83d"}, {"deep": [{"\udc00": 1}]}, {"content": "\ud83d\ude00"}])
def test_lone_surrogates_in_data_are_replaced(data: dict[str, Any]) -> None:
    """A lone surrogate anywhere in an event's data is replaced, as in streamed text."""
    [event] = decode_batch(encode_batch(1, 1, [encode_event("note", data)])).events()
    escaped = json.dumps(data, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert event.data == json.loads(escaped)


def test_an_event_has_a_size_limit() -> None:
    """An event of exactly 1 MiB is accepted, and a larger one is refused with its size and the limit."""
    around = len(encode_event("note", {"x": ""}))
    assert len(encode_event("note", {"x": "y" * (MAX_EVENT_BYTES - around)})) == MAX_EVENT_BYTES
    with pytest.raises(InvalidAgentOutput, match=f"is {MAX_EVENT_BYTES + 1} bytes; the limit is {MAX_EVENT_BYTES}"):
        encode_event("note", {"x": "y" * (MAX_EVENT_BYTES - around + 1)})


@pytest.mark.parametrize("event_type", ["tool_call_start", "tool_call_end"])
@pytest.mark.parametrize("data", [{}, {"tool": ""}, {"tool": None}, {"tool": 3}, {"name": "clock"}, {"Tool": "clock"}])
def test_events_of_a_tool_call_name_the_tool(event_type: str, data: dict[str, Any]) -> None:
    """An event of a tool call without the name of the tool is refused, with the name of the missing field."""
    with pytest.raises(InvalidAgentOutput, match=rf"'{event_type}' needs the name of the tool .* 'tool'"):
        check_agent_event(event_type, data)
    check_agent_event(event_type, {**data, "tool": "clock"})
