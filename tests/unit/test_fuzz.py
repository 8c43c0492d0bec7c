"""Arbitrary input to the parts without I/O: the stream machine, the codecs, and the state machine of the feed."""

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final, cast
from unittest import mock

import pytest
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from agentstream.errors import AgentStreamError, BusError, InvalidAgentOutput, LogTrimmed
from agentstream.protocol.events import (
    MAX_EVENT_BYTES,
    NAMED_EVENTS,
    TERMINAL_EVENTS,
    TEXT,
    TOOL_CALL_END,
    Batch,
    Cursor,
    Event,
    check_agent_event,
    decode_batch,
    encode_batch,
    encode_event,
)
from agentstream.store.bus import feed as feed_module
from agentstream.store.bus.feed import RunFeed
from agentstream.store.connection.link import Command, Link
from agentstream.stream import sse
from agentstream.stream.chat import DONE, ChatStream, EventFormat, StreamHead, StreamOptions
from agentstream.stream.transcript import AnswerFold
from tests.helpers import CHUNK_FIELDS, batch, completed, decode, events, texts

FORMATS: Final[tuple[EventFormat, ...]] = ("named", "raw", "chunk", "off")
HEAD = StreamHead(run_id="chatcmpl-0", created=1, model="m")

# -- events of an agent ---------------------------------------------------------------------------------

ODD_TEXTS = st.sampled_from(["\r\n\r\ndata: x", "\0", "\u2028\u2029", "\ufeff", "\ud800", "]}", "[DONE]", " ", "\x85"])
TEXTS = st.text(max_size=20) | ODD_TEXTS
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats() | st.sampled_from([1e308, -1e308])
NO_JSON = st.sampled_from([10**400, 2**64, object(), {1: 2}, {"\ud800": 10**400}, (1, 2), b"x"])
FIELD_NAMES = st.sampled_from(
    [
        "tool",
        "arguments",
        "success",
        "latency",
        "result",
        "usage",
        "error",
        "id",
        "object",
        "created",
        "choices",
        "model",
        "type",
        "agent_error",
        "event_usage",
        "agent_event",
        "delta",
    ]
)
KEYS = FIELD_NAMES | TEXTS
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
# Data of tool_call_end: each field is present or absent, and has any value.
TOOL_END_DATA = st.fixed_dictionaries(
    {},
    optional={
        "tool": TEXTS | JSON,
        "success": st.booleans() | JSON,
        "latency": NUMBERS | JSON,
        "result": TEXTS | JSON,
        "arguments": TEXTS | JSON,
    },
)
EVENT_DATA = st.dictionaries(KEYS, JSON, max_size=5) | TOOL_END_DATA
EVENT_TYPES = st.sampled_from(sorted(NAMED_EVENTS)) | st.sampled_from(["note", "agent_turn_end"])
AGENT_FACTS = (
    st.tuples(EVENT_TYPES, EVENT_DATA)
    | st.tuples(st.just(TOOL_CALL_END), TOOL_END_DATA)
    | st.tuples(st.just(TEXT), TEXTS.filter(bool))
    | st.tuples(EVENT_TYPES, st.dictionaries(KEYS, JSON | NO_JSON, max_size=3))
)

TOOL_RESULTS = st.lists(
    st.fixed_dictionaries(
        {"tool_name": TEXTS, "success": st.booleans(), "output": TEXTS, "latency_ms": st.floats(0, 1e9)}
    ),
    max_size=2,
)
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
TERMINALS = (
    st.builds(
        lambda content, results, reason: (
            "run_completed",
            {"content": content, "tool_results": results, "finish_reason": reason, "usage": USAGE},
        ),
        st.none() | TEXTS | st.text(alphabet=" ab\n", max_size=10),
        TOOL_RESULTS,
        st.sampled_from(["stop", "length"]),
    )
    | st.builds(
        lambda code, text: ("run_failed", {"code": code, "message": text}), st.sampled_from(["x", "model_error"]), TEXTS
    )
    | st.just(("run_cancelled", {"usage": USAGE}))
)


@st.composite
def run_events(draw: st.DrawFn) -> list[Event]:
    """The events of a run as decoded from its log: up to three attempts, without events that cannot be encoded."""
    log: list[Event] = []
    attempts = draw(st.integers(1, 3))
    for attempt in range(1, attempts + 1):
        facts: list[tuple[str, Any]] = [("run_started", {}), *draw(st.lists(AGENT_FACTS, max_size=6))]
        if attempt == attempts:
            facts.append(draw(TERMINALS))
        encoded = []
        for kind, data in facts:
            try:
                if kind in NAMED_EVENTS:
                    check_agent_event(kind, data)
                encoded.append(encode_event(TEXT if kind == TEXT else kind, data))
            except InvalidAgentOutput:
                if kind in TERMINAL_EVENTS:
                    encoded.append(encode_event("run_failed", {"code": "x", "message": "y"}))
        log += decode_batch(encode_batch(attempt, 1, encoded)).events()
    return log


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


# -- codecs ---------------------------------------------------------------------------------------------

BATCHES = st.fixed_dictionaries(
    {},
    optional={
        "v": JSON,
        "a": st.integers(0, 5) | JSON,
        "s": st.integers(0, 5) | JSON,
        "e": st.lists(TEXTS | st.tuples(TEXTS, EVENT_DATA) | JSON, max_size=4) | JSON,
    },
)


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


# -- the feed ------------------------------------------------------------------------------------------

PAGE_ENTRIES: Final = 3  # small, so that a catch-up reads several pages


class ScriptedLink:
    """A link on which commands, replies and messages advance only when the test calls a method."""

    def __init__(self) -> None:
        self.log: list[bytes] = []  # payloads of the entries; the id of an entry is the position of its last event
        self.subscribers: set[RunFeed] = set()
        self.handlers: list[Callable[[bytes], None]] = []
        self.commands: list[tuple[Command, str]] = []  # sent, not executed yet
        self.replies: list[tuple[Command, str, list[Any]]] = []  # executed, reply not received yet

    async def subscribe(self, _channel: bytes, handler: Callable[[bytes], None]) -> None:
        self.handlers.append(handler)

    def unsubscribe(self, _channel: bytes, handler: Callable[[bytes], None]) -> None:
        self.handlers.remove(handler)

    def send(self, *args: Any, on_reply: Callable[[Any], None]) -> Command:
        name, _channel, after, end, _, count = args
        assert (name, end, count) == ("XRANGE", "+", PAGE_ENTRIES)
        command = Command(b"", on_reply)
        self.commands.append((command, after))
        return command

    def push(self, payload: bytes) -> None:
        """Deliver a message."""
        for handler in list(self.handlers):
            handler(payload)

    def execute(self) -> None:
        """Execute the oldest command on the current log."""
        command, after = self.commands.pop(0)
        entries = [
            [b"%d-%d" % last, [b"b", payload]]
            for payload in self.log
            for last in [decode_batch(payload).events()[-1][:2]]
            if after == "-" or last > Cursor.parse(after.removeprefix("("))[:2]
        ]
        self.replies.append((command, after, entries[:PAGE_ENTRIES]))

    def answer(self) -> None:
        """Deliver the oldest reply, unless its command was cancelled."""
        command, _, page = self.replies.pop(0)
        if not command.cancelled:
            command.on_reply(page)

    def reconnect(self) -> None:
        """Lose all replies in flight, and send their commands again."""
        unanswered = [(command, after) for command, after, _ in self.replies] + self.commands
        self.commands = [(command, after) for command, after in unanswered if not command.cancelled]
        self.replies.clear()
        for subscriber in list(self.subscribers):
            subscriber.resync()


class World:
    """A run that publishes, a network that loses, duplicates and reorders messages, and a reader that pauses.

    The model is the list of all published events. The delivered events must always be the beginning of this list, and
    in the end the whole list, unless the feed failed because the log was trimmed before the feed read it.
    """

    def __init__(self, choices: Random) -> None:
        self.choices = choices
        self.link = ScriptedLink()
        self.published: list[Event] = []
        self.messages: list[bytes] = []  # in flight
        self.delivered: list[Event] = []
        self.failures: list[AgentStreamError] = []
        self.attempt, self.seq = 1, 0
        self.pause_at: int | None = None  # the consumer pauses in the callback that reaches this number of events
        self.paused = False
        self.trimmed = False
        self.promised = 0  # number of events that a resumed feed must deliver without another resync
        self.feed = RunFeed(cast("Link", self.link), "log")
        self.feed.deliver_to(self)

    def on_failure(self, error: AgentStreamError) -> None:
        """Store the failure."""
        self.failures.append(error)

    def on_batch(self, delivered: Batch) -> None:
        """Compare the delivered events with the model."""
        assert delivered.items, "the batch is empty"
        assert not self.failures, "events were delivered after the failure"
        assert not self.paused, "events were delivered during a pause"
        self.delivered += delivered.events()
        assert self.delivered == self.published[: len(self.delivered)], "the delivered events are not the next ones"
        if self.pause_at is not None and len(self.delivered) >= self.pause_at:
            self.pause_at, self.paused, self.promised = None, True, 0
            self.feed.pause()

    async def open(self, past: int) -> None:
        """Open the feed of a new run, or read a run with ``past`` batches from its log."""
        if not past:
            await self.feed.open()
            return
        for _ in range(past):
            self.publish()
        self.messages.clear()
        opening = asyncio.create_task(self.feed.open_from_log())
        await asyncio.sleep(0)
        while self.link.commands:
            self.link.execute()
            self.link.answer()
        assert await opening
        assert self.delivered == self.published

    def check(self) -> None:
        """Assert that the feed failed at most once, and only because the log was trimmed."""
        assert len(self.failures) <= 1
        for failure in self.failures:
            assert isinstance(failure, LogTrimmed), failure
            assert self.trimmed, failure

    # -- the run ------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Append a batch and send it as a message."""
        size = self.choices.randint(1, 4)
        texts_of_batch = [encode_event(TEXT, f"{self.attempt}-{self.seq + number}") for number in range(1, size + 1)]
        payload = encode_batch(self.attempt, self.seq + 1, texts_of_batch)
        self.seq += size
        self.link.log.append(payload)
        self.published += decode_batch(payload).events()
        self.messages.append(payload)

    def next_attempt(self) -> None:
        """Begin a new attempt."""
        self.attempt, self.seq = self.attempt + 1, 0
        self.publish()

    # -- the network --------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Deliver the next message."""
        if self.messages:
            self.link.push(self.messages.pop(0))

    def deliver_out_of_order(self) -> None:
        """Deliver any message."""
        if self.messages:
            self.link.push(self.messages.pop(self.choices.randrange(len(self.messages))))

    def deliver_twice(self) -> None:
        """Deliver the next message, and keep it in flight."""
        if self.messages:
            self.link.push(self.messages[0])

    def lose(self) -> None:
        """Lose a message."""
        if self.messages:
            self.messages.pop(self.choices.randrange(len(self.messages)))

    def execute(self) -> None:
        """Execute a read of the log."""
        if self.link.commands:
            self.link.execute()

    def answer(self) -> None:
        """Deliver the reply of a read."""
        if self.link.replies:
            self.link.answer()

    def reconnect(self) -> None:
        """Reconnect: messages and replies in flight are lost."""
        self.messages.clear()
        self.link.reconnect()

    # -- the reader ---------------------------------------------------------------------------------

    def resync(self) -> None:
        """Compare the feed with the log."""
        self.feed.resync()

    def pause_soon(self) -> None:
        """Pause inside a later ``on_batch``."""
        self.pause_at = len(self.delivered) + self.choices.randint(1, 8)

    def pause(self) -> None:
        """Pause between two batches."""
        self.paused, self.promised = True, 0
        self.feed.pause()

    def resume(self) -> None:
        """Resume after a pause."""
        if self.paused:
            self.paused, self.promised = False, len(self.published)
        self.feed.resume()

    # -- the size limit of the log ------------------------------------------------------------------

    def trim(self) -> None:
        """Trim the beginning of the log, as its size limit does: within an attempt, and never its last entry."""
        kept = self.link.log[self.choices.randint(0, max(0, len(self.link.log) - 1)) :]
        if kept and decode_batch(kept[0]).seq > 1:
            self.link.log, self.trimmed = kept, True

    # -- the end ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Resume and resync until nothing is in flight; assert that the feed has delivered all events or has failed.

        It repeats this because the feed ignores a resync while it reads the log.
        """
        self.pause_at = None
        self.messages.clear()
        self.resume()
        for _ in range(3):
            while self.link.commands or self.link.replies:
                self.execute()
                self.answer()
            assert self.failures or len(self.delivered) >= self.promised, "a resumed feed did not catch up"
            self.feed.resync()
        self.check()
        assert self.failures or self.delivered == self.published


USUAL: Final[dict[Callable[[World], None], int]] = {
    World.publish: 4,
    World.deliver: 5,
    World.execute: 4,
    World.answer: 4,
    World.resume: 1,
}
TROUBLES: Final = (
    *(World.next_attempt, World.deliver_out_of_order, World.deliver_twice, World.lose, World.reconnect),
    *(World.resync, World.pause_soon, World.pause, World.trim, World.settle),
)


@given(
    st.sets(st.sampled_from(TROUBLES), max_size=4),
    st.integers(0, 6),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_a_feed_delivers_every_event_once_and_in_order_or_fails(
    troubles: set[Callable[[World], None]], past: int, seed: int
) -> None:
    """With lost, duplicated and reordered messages and with pauses, a feed delivers all events in order or fails."""
    steps = list(USUAL | dict.fromkeys(sorted(troubles, key=TROUBLES.index), 1))
    weights = [USUAL.get(step, 1) for step in steps]

    async def live() -> None:
        world = World(Random(seed))  # noqa: S311 -- repeatable, not secret
        await world.open(past)
        taken = world.choices.choices(steps, weights, k=120)
        for number, step in enumerate(taken, 1):
            step(world)
            try:
                world.check()
            except AssertionError:
                note(" ".join(taken_step.__name__ for taken_step in taken[:number]))
                raise
        world.settle()
        world.feed.close()

    with mock.patch.object(feed_module, "PAGE_ENTRIES", PAGE_ENTRIES):
        asyncio.run(live())
