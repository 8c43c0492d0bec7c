"""The SSE codec: written frames, and the incremental decoder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.stream import sse

# From the examples and rules of the WHATWG HTML specification, section 9.2.6.
CASES = [
    (b"data: a\n\n", [("message", "a", "")]),
    (b"data:a\n\ndata:  b\n\n", [("message", "a", ""), ("message", " b", "")]),
    (b"data: a\ndata: b\n\n", [("message", "a\nb", "")]),
    (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
    (b": comment\ndata: a\n\n", [("message", "a", "")]),
    (b"event: ping\n\n", []),
    (b"event: x\ndata: 1\n\ndata: 2\n\n", [("x", "1", ""), ("message", "2", "")]),
    (
        b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
        [("message", "a", "1"), ("message", "b", "1"), ("message", "c", "")],
    ),
    (b"id: 1\0\ndata: a\n\n", [("message", "a", "")]),
    (b"retry: 5\nnonsense: x\ndata: a\n\n", [("message", "a", "")]),
    (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [("message", "a", ""), ("message", "b", ""), ("message", "c", "")]),
    (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),
    ("data: 日本🙂\n\n".encode(), [("message", "日本🙂", "")]),
    (b"data: unfinished\n", []),
]


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
@pytest.mark.parametrize(("stream", "expected"), CASES)
def test_decodes_as_the_specification_says(stream: bytes, expected: list[tuple[str, str, str]], piece: int) -> None:
    """The decoder yields the frames that the specification requires, for pieces of any size."""
    decoder = sse.Decoder()
    got = [
        tuple(frame) for start in range(0, len(stream), piece) for frame in decoder.feed(stream[start : start + piece])
    ]
    assert got == expected


def test_keepalive_between_frames_is_invisible() -> None:
    """A keepalive between two frames with ids adds no frame."""
    stream = sse.frame(b"1", event_id="1-1") + sse.KEEPALIVE + sse.frame(b"2", event_id="1-2")
    assert [frame.data for frame in sse.Decoder().feed(stream)] == ["1", "2"]
    assert sse.KEEPALIVE.count(b"\n") == 1


def test_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder raises if a line exceeds its limit, so a peer that never ends a line cannot fill the memory."""
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="longer than 100"):
        list(sse.Decoder().feed(b"x" * 101))


@given(st.text(), st.one_of(st.none(), st.from_regex(r"[0-9]{1,3}-[0-9]{1,3}", fullmatch=True)))
def test_template_writes_any_text(text: str, event_id: str | None) -> None:
    """A frame of a template decodes to the template's JSON with the text inserted."""
    out = sse.TextTemplate(b'{"a":', b"}").render(text, event_id)
    assert out.isascii()
    [frame] = sse.Decoder().feed(out)
    assert frame.data == '{"a":' + sse.json_string(text) + "}"
    assert frame.last_event_id == (event_id or "")


@given(st.binary(max_size=300), st.integers(1, 7))
def test_decoder_survives_any_bytes(stream: bytes, piece: int) -> None:
    """Any bytes decode to the same frames in pieces of any size, without an error."""
    whole = list(sse.Decoder().feed(stream + b"\n\n"))
    decoder = sse.Decoder()
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)] + [b"\n\n"]
    assert [frame for part in pieces for frame in decoder.feed(part)] == whole
