"""The SSE codec: it writes frames, and decodes received streams into frames.

Format: WHATWG HTML, section 9.2. Written frames have LF line ends and exactly one ``data:`` line, ASCII only
(raw U+2028 broke httpx-sse 0.3.1). They never have a ``retry:`` line or an empty ``data:`` line.
"""

import codecs
import json
import sys
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from typing import Final, NamedTuple

import orjson

# ONE newline. After a client has received an ``id:``, a blank line makes it dispatch an empty event. Every Python
# client raises on that (measured on 17 clients).
KEEPALIVE: Final = b": keepalive\n"

# The decoder refuses a longer line, so that a peer that never ends a line cannot fill the memory.
MAX_LINE_BYTES: Final = 16 << 20

json_string = encode_basestring_ascii  # returns a str as a JSON string, ASCII only; implemented in C
_escaped_json: Final = json.JSONEncoder(separators=(",", ":")).encode


def json_line(value: object) -> bytes:
    """Return JSON for a ``data:`` line, ASCII only. Most values are ASCII; orjson writes them ten times as fast."""
    try:
        data = orjson.dumps(value)
    except TypeError:  # an integer over 64 bits, for example a sum of two that fit
        data = b""
    return data if data and data.isascii() else _escaped_json(value).encode("ascii")


def frame(data: bytes, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """Return one frame. ``data`` is one line of ASCII; ``event`` and ``event_id`` must not contain line ends."""
    head = f"id: {event_id}\n" if event_id else ""
    if event:
        head += f"event: {event}\n"
    return b"%bdata: %b\n\n" % (head.encode("ascii"), data)


class TextTemplate:
    """Renders frames that differ only in one JSON string, for example the content chunks of a run.

    A frame costs two concatenations and the encoding of the string: 0.2 us. A pydantic model dump costs 3.7 us.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        """Store the JSON before and after the string."""
        self._before = "data: " + before.decode("ascii")
        self._after = sys.intern(after.decode("ascii") + "\n\n")  # the same for every run: one copy in memory

    def render_at(self, text: str, attempt: int, seq: int) -> bytes:
        """Return the frame of a text event; its id is ``attempt-seq``. Most frames are made by this one call."""
        return f"id: {attempt}-{seq}\n{self._before}{json_string(text)}{self._after}".encode("ascii")

    def render(self, text: str, event_id: str | None) -> bytes:
        """Return the frame with ``text``, and with an ``id:`` line unless ``event_id`` is None."""
        head = f"id: {event_id}\n" if event_id else ""
        return f"{head}{self._before}{json_string(text)}{self._after}".encode("ascii")


class NumberedTemplate:
    """Renders frames of one event type that differ in one JSON string and in a number.

    The number is the frame's id and the last field of its JSON.
    """

    __slots__ = ("_before", "_between")

    def __init__(self, event: str, before: bytes, number_field: str) -> None:
        """Store the JSON before the string, and the name of the number's field, which follows the string."""
        self._before = f"\nevent: {event}\ndata: " + before.decode("ascii")
        self._between = f',"{number_field}":'

    def render(self, text: str, number: int) -> bytes:
        """Return the frame with ``text`` and ``number``."""
        return f"id: {number}{self._before}{json_string(text)}{self._between}{number}}}\n\n".encode("ascii")


class ReceivedFrame(NamedTuple):
    """A received frame. ``event`` is "message" if the frame has no ``event:`` line.

    ``last_event_id`` is the id of this frame, or of the latest frame that had one.
    """

    event: str
    data: str
    last_event_id: str


class Decoder:
    """An incremental decoder: it accepts bytes in pieces of any size and yields whole frames."""

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._first = True
        self._data: list[str] = []
        self._event = ""
        self.last_event_id = ""

    def feed(self, chunk: bytes) -> Iterator[ReceivedFrame]:
        """Yield the frames that ``chunk`` completes; raises ValueError if a line exceeds MAX_LINE_BYTES."""
        text = self._rest + self._utf8.decode(chunk)
        if self._first and text:
            self._first = False
            text = text.removeprefix("\ufeff")
        start = 0
        while (line_end := _line_end(text, start)) is not None:
            end, start_of_next = line_end
            frame = self._line(text[start:end])
            start = start_of_next
            if frame is not None:
                yield frame
        self._rest = text[start:]
        if len(self._rest) > MAX_LINE_BYTES:
            message = f"an SSE line is longer than {MAX_LINE_BYTES} characters"
            raise ValueError(message)

    def _line(self, line: str) -> ReceivedFrame | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self.last_event_id = value
        return None  # a field, a comment, or a line that clients ignore

    def _dispatch(self) -> ReceivedFrame | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        if not data:
            return None
        return ReceivedFrame(event or "message", "\n".join(data), self.last_event_id)


def _line_end(text: str, start: int) -> tuple[int, int] | None:
    """Return (end of the line, start of the next line), or None if the line is not complete yet."""
    line_feed = text.find("\n", start)
    # Search only up to the LF: the text may hold many lines.
    carriage_return = text.find("\r", start, line_feed if line_feed != -1 else len(text))
    if carriage_return == -1 or (line_feed != -1 and line_feed < carriage_return):
        return None if line_feed == -1 else (line_feed, line_feed + 1)
    if carriage_return + 1 == len(text):
        return None  # CR at the end of a piece: the next piece may begin with its LF
    return carriage_return, carriage_return + (2 if text[carriage_return + 1] == "\n" else 1)
