import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.stream import sse

# From the WHATWG specification's own examples and rules, section 9.2.6.
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
def test_decodes_what_the_specification_says(stream: bytes, expected: list[tuple[str, str, str]], piece: int) -> None:
    """Messages come out the same however the bytes are cut, one by one included."""
    decoder = sse.Decoder()
    got = [
        tuple(message)
        for start in range(0, len(stream), piece)
        for message in decoder.feed(stream[start : start + piece])
    ]
    assert got == expected


def test_keepalive_between_frames_is_invisible() -> None:
    """A keepalive after a frame, or between an id line's frames, makes no message."""
    stream = sse.frame(b"1", event_id="1-1") + sse.KEEPALIVE + sse.frame(b"2", event_id="1-2")
    assert [message.data for message in sse.Decoder().feed(stream)] == ["1", "2"]
    assert sse.KEEPALIVE.count(b"\n") == 1


def test_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that never ends a line cannot fill our memory."""
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="longer than 100"):
        list(sse.Decoder().feed(b"x" * 101))


@given(st.text(), st.one_of(st.none(), st.from_regex(r"[0-9]{1,3}-[0-9]{1,3}", fullmatch=True)))
def test_template_writes_any_text(text: str, event_id: str | None) -> None:
    """A template's frame decodes to the JSON with the text in its place."""
    out = sse.TextTemplate(b'{"a":', b"}").render(text, event_id)
    assert out.isascii()
    [message] = sse.Decoder().feed(out)
    assert message.data == '{"a":' + sse.json_string(text) + "}"
    assert message.last_event_id == (event_id or "")


@given(st.binary(max_size=300), st.integers(1, 7))
def test_decoder_survives_any_bytes(stream: bytes, piece: int) -> None:
    """Whatever a peer sends, in whatever pieces, the messages are the same and nothing raises."""
    whole = list(sse.Decoder().feed(stream + b"\n\n"))
    decoder = sse.Decoder()
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)] + [b"\n\n"]
    assert [message for part in pieces for message in decoder.feed(part)] == whole
