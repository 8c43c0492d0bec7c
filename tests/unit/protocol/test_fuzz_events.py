"""Arbitrary events, batches and cursors in the codecs of the protocol."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentstream.errors import BusError, InvalidAgentOutput
from agentstream.protocol.events import (
    MAX_EVENT_BYTES,
    NAMED_EVENTS,
    Cursor,
    check_agent_event,
    decode_batch,
    encode_batch,
    encode_event,
)
from tests.unit.strategies import EVENT_DATA, JSON, KEYS, NO_JSON, TEXTS

BATCHES = st.fixed_dictionaries(
    {},
    optional={
        "v": JSON,
        "a": st.integers(0, 5) | JSON,
        "s": st.integers(0, 5) | JSON,
        "e": st.lists(TEXTS | st.tuples(TEXTS, EVENT_DATA) | JSON, max_size=4) | JSON,
    },
)


@given(
    st.text(max_size=70) | st.sampled_from(sorted(NAMED_EVENTS)),
    NO_JSON | JSON | EVENT_DATA | st.dictionaries(KEYS, NO_JSON),
)
def test_an_emitted_event_is_refused_or_decodes(event_type: str, data: Any) -> None:
    """An event raises InvalidAgentOutput, or decodes to one event of the same type with a dict as data."""
    try:
        check_agent_event(event_type, data)
        encoded = encode_event(event_type, data)
    except InvalidAgentOutput:
        return
    assert len(encoded) <= MAX_EVENT_BYTES
    (event,) = decode_batch(encode_batch(1, 7, [encoded])).events()
    assert (event.attempt, event.seq, event.type) == (1, 7, event_type)
    assert isinstance(event.data, dict)


def as_json(value: Any) -> bytes:
    """Return JSON as Python writes it, with integers that no double can represent and with escaped lone surrogates."""
    return json.dumps(value, default=str).encode()


@given(st.binary(max_size=200) | BATCHES.map(as_json))
@example(b'{"a":1e999,"s":1,"e":[]}')
@example(b'{"a":1e308,"s":1,"e":["x"]}')
@example(b"[" * 100_000)
def test_a_batch_decodes_or_is_refused(payload: bytes) -> None:
    """Any bytes decode to events of one attempt with contiguous seqs, or raise BusError."""
    try:
        decoded = decode_batch(payload).events()
    except BusError:
        return
    assert [event.seq - decoded[0].seq for event in decoded] == list(range(len(decoded)))
    assert len({event.attempt for event in decoded}) <= 1
    assert all(isinstance(event.type, str) for event in decoded)


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{0,11}-[0-9]{0,17}(\.[0-9]{0,11})?[\r\n]?", fullmatch=True))
def test_a_cursor_is_parsed_exactly_or_refused(text: str) -> None:
    """Cursor.parse accepts ASCII ``attempt-seq[.part]`` of bounded length, and raises ValueError for any other text."""
    if re.fullmatch(r"[0-9]{1,9}-[0-9]{1,15}(\.[0-9]{1,9})?", text) is None:
        with pytest.raises(ValueError, match="not a cursor"):
            Cursor.parse(text)
        return
    cursor = Cursor.parse(text)
    assert Cursor.parse(str(cursor)) == cursor
    assert list(cursor) == [int(part) for part in re.split("[-.]", text)] + [0] * (
        2 - text.count("-") - text.count(".")
    )
