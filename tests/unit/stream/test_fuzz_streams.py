"""Arbitrary events in the stream machine, and arbitrary bytes in the decoder of streams."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentstream.protocol.events import Cursor, Event
from agentstream.stream import sse
from agentstream.stream.chat import DONE, ChatStream, EventFormat, StreamHead, StreamOptions
from agentstream.stream.transcript import AnswerFold
from tests.helpers import CHUNK_FIELDS, batch, completed, decode, events, texts
from tests.unit.strategies import run_events

FORMATS: Final[tuple[EventFormat, ...]] = ("named", "raw", "chunk", "off")
HEAD = StreamHead(run_id="chatcmpl-0", created=1, model="m")


def stream(log: Sequence[Event], options: StreamOptions, after: Cursor | None = None) -> list[bytes]:
    """Return the frames of a run without empty ones."""
    machine = ChatStream(HEAD, options, after)
    frames = [machine.open()]
    for event in log:
        data = machine.receive(batch([event]))
        pieces = re.findall(rb".+?\n\n", data, re.DOTALL)
        assert b"".join(pieces) == data, "the bytes do not end with a blank line"
        lines = data.split(b"\n")
        assert len(pieces) == sum(line.startswith(b"data: ") for line in lines), "a frame has not exactly one data line"
        assert len(pieces) == len(list(sse.Decoder().feed(data))), "a frame is not decoded as one frame"
        frames += pieces
    frames += machine.tail or ()
    return [frame for frame in frames if frame]


def strict_json(text: str) -> Any:
    """Parse JSON as a browser does: NaN and Infinity are invalid."""

    def refuse(constant: str) -> Any:
        message = f"{constant} is not JSON"
        raise ValueError(message)

    return json.loads(text, parse_constant=refuse)


OPTIONS = st.builds(
    StreamOptions,
    event_format=st.sampled_from(FORMATS),
    include_usage=st.booleans(),
    strict_errors=st.booleans(),
)


HUGE_LATENCY = events(("tool_call_end", {"latency": 1e308}), ("text", "x"), completed(None))


@given(run_events(), OPTIONS)
@example(HUGE_LATENCY, StreamOptions())
def test_any_events_give_a_well_formed_stream(log: list[Event], options: StreamOptions) -> None:
    """Any events of an agent give frames of strict JSON with increasing ids, and the last frame is [DONE]."""
    frames = stream(log, options)
    cursors = []
    for frame in frames:
        [decoded] = sse.Decoder().feed(frame)
        assert frame.endswith(b"\n\n")
        assert frame.isascii()
        if frame == DONE:
            continue
        data = strict_json(decoded.data)
        assert isinstance(data, dict)
        cursors.append(Cursor.parse(decoded.last_event_id))
        if decoded.event == "message" and "error" not in data:
            assert set(data) >= CHUNK_FIELDS
        if options.event_format == "named" and decoded.event != "message":
            assert set(data) >= CHUNK_FIELDS
            assert (data["id"], data["object"]) == (HEAD.run_id, "chat.completion.chunk")
            assert not {"usage", "error"} & set(data)
    assert cursors == sorted(set(cursors))
    assert frames[-1] == DONE
    assert frames.count(DONE) == 1


@given(run_events(), st.sampled_from(FORMATS), st.sampled_from(FORMATS), st.data())
def test_resuming_after_any_frame_gives_the_rest(
    log: list[Event], first: EventFormat, second: EventFormat, data: st.DataObject
) -> None:
    """A stream that is resumed after any frame equals the rest byte for byte, or the same rest in another format."""
    whole = stream(log, StreamOptions(event_format=first))
    cut = data.draw(st.integers(1, len(whole) - 1))
    decoder = sse.Decoder()
    after = Cursor.parse([list(decoder.feed(frame)) for frame in whole[:cut]][-1][0].last_event_id)
    assert whole[:cut] + stream(log, StreamOptions(event_format=first), after) == whole
    other = stream(log, StreamOptions(event_format=second))
    rest = stream(log, StreamOptions(event_format=second), after)
    assert rest == other[len(other) - len(rest) :]
    said = "".join(texts(decode(b"".join(whole[:cut])))) + "".join(texts(decode(b"".join(rest))))
    assert said == "".join(texts(decode(b"".join(whole))))


@given(run_events())
def test_the_folded_answer_equals_the_stream(log: list[Event]) -> None:
    """For any events, the content of the folded answer equals the joined deltas of the stream."""
    completion = AnswerFold()
    for event in log:
        completion.receive(event)
    assert completion.finished
    if completion.failure is None:
        frames = stream(log, StreamOptions())
        assert "".join(texts(decode(b"".join(frames)))) == completion.content


@given(run_events(), OPTIONS, st.none() | st.builds(Cursor, st.integers(0, 3), st.integers(0, 8)), st.data())
def test_any_split_into_batches_gives_the_same_bytes(
    log: list[Event], options: StreamOptions, after: Cursor | None, data: st.DataObject
) -> None:
    """For any split of the events into batches, and any cursor, the stream is the same byte for byte."""
    machine = ChatStream(HEAD, options, after)
    out = machine.open()
    start = 0
    for end, (event, following) in enumerate(itertools.pairwise([*log, None]), 1):
        assert event is not None
        if following is None or following.attempt != event.attempt or data.draw(st.booleans()):
            out += machine.receive(batch(log[start:end]))
            start = end
    out += b"".join(machine.tail or ())
    assert out == b"".join(stream(log, options, after))


def reference_frames(stream_bytes: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield the frames of a whole SSE stream, decoded line by line as the specification says."""
    text = stream_bytes.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split(r"\r\n|\r|\n", text)[:-1]
    data: list[str] = []
    event, last_id = "", ""
    for line in lines:
        if line == "":
            if data:
                yield event or "message", "\n".join(data), last_id
            data, event = [], ""
            continue
        match = re.fullmatch(r"([^:]*)(?:: ?(.*))?", line, re.DOTALL)
        assert match is not None
        field, value = match[1], match[2] or ""
        if field == "data":
            data.append(value)
        elif field == "event":
            event = value
        elif field == "id" and "\0" not in value:
            last_id = value


SSE_PIECES = st.sampled_from(
    [
        b"data",
        b"event",
        b"id",
        b":",
        b": ",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\x00",
        b"\xef\xbb\xbf",
        b"retry",
        b"x",
        b"\xe2\x80\xa8",
        b"\xf0\x9f",
        b"\x99\x82",
        b"\xff",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        b"\xc2\x85",
    ]
)


@given(st.lists(SSE_PIECES | st.binary(max_size=4), max_size=40), st.lists(st.integers(0, 160), max_size=12))
@settings(max_examples=300)
def test_an_sse_stream_decodes_in_any_pieces(pieces: list[bytes], cuts: list[int]) -> None:
    """For pieces of any size, the decoder yields the frames that the specification requires for the whole stream."""
    whole = b"".join(pieces) + b":end\n"  # ends the last line: the two may differ for an incomplete line
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(whole)), len(whole)]
    decoder = sse.Decoder()
    got = [tuple(frame) for start, end in itertools.pairwise(bounds) for frame in decoder.feed(whole[start:end])]
    assert got == list(reference_frames(whole))
