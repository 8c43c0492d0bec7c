"""The short way of a text through the stream machine against the long one, in every state of the transcript."""

import itertools
from typing import Any, Final

import pytest

from agentstream.protocol.events import Batch, Cursor
from agentstream.stream.chat import ChatStream, EventFormat, StreamHead, StreamOptions
from agentstream.stream.transcript import Transcript
from tests.helpers import completed

HEAD = StreamHead(run_id="chatcmpl-0", created=1, model="m")
RETRY: Final = "retry"  # another worker begins the run again
FACTS: Final[tuple[Any, ...]] = (
    "text",
    ["tool_call_start", {"tool": "t", "arguments": {}}],
    ["tool_call_end", {"tool": "t", "result": "r"}],
    ["agent_turn_start", {}],
    ["note", {}],
    RETRY,
)
ENDS: Final[tuple[Any, ...]] = (
    list(completed(None)),
    list(completed("a b")),
    ["run_failed", {"code": "x", "message": "y"}],
    ["run_cancelled", {"usage": {}}],
)
AFTER: Final = (None, Cursor(0, 0), Cursor(1, 3), Cursor(1, 3, 1), Cursor(2, 2))


class LongWay(Transcript):
    """A transcript that never says that a text is simply a text."""

    @property
    def in_text(self) -> bool:
        """Never."""
        return False

    @in_text.setter
    def in_text(self, _value: bool) -> None: ...


def batches(facts: tuple[Any, ...]) -> list[Batch]:
    """Return a run in one batch an attempt."""
    runs: list[list[Any]] = [[]]
    for fact in facts:
        if fact == RETRY:
            runs.append([])
        else:
            runs[-1].append(fact)
    started = ["run_started", {"worker": "w"}]
    return [Batch(attempt, 1, [started, *items]) for attempt, items in enumerate(runs, 1)]


def one_by_one(run: list[Batch]) -> list[Batch]:
    """Return the same run in one batch an event."""
    return [Batch(batch.attempt, seq, [item]) for batch in run for seq, item in enumerate(batch.items, batch.seq)]


def rendered(machine: ChatStream, run: list[Batch]) -> bytes:
    """Return all bytes of a run's stream."""
    out = machine.open() + b"".join(map(machine.receive, run))
    return out + b"".join(machine.tail or ())


@pytest.mark.parametrize("event_format", ["named", "off"])
def test_a_text_takes_the_short_way_to_the_same_bytes(event_format: EventFormat) -> None:
    """Whatever led to a text, with or without a cursor to resume from, its frame is that of the long way."""
    options = StreamOptions(event_format=event_format)
    lengths = range(5)
    sequences = itertools.chain.from_iterable(itertools.product(FACTS, repeat=length) for length in lengths)
    for number, (facts, after) in enumerate(itertools.product(sequences, AFTER)):
        run = batches((*facts, "text", "text", ENDS[number % len(ENDS)]))
        long = ChatStream(HEAD, options, after)
        long._transcript = LongWay()
        assert rendered(ChatStream(HEAD, options, after), run) == rendered(long, one_by_one(run)), (facts, after)


def test_texts_in_a_row_do_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many texts in a row only the first is asked about; else the comparison above would compare nothing."""
    asked: list[str] = []
    receive = Transcript.receive

    def note(self: Transcript, event: Any) -> Any:
        asked.append(event.type)
        return receive(self, event)

    monkeypatch.setattr(Transcript, "receive", note)
    rendered(ChatStream(HEAD, StreamOptions()), batches(("text",) * 10))
    assert asked == ["run_started", "text"]
