"""The stream machine's fast path for text gives the same bytes as the slow path, in every state of the transcript."""

import itertools
from typing import Any, Final

import pytest

from agentstream.protocol.events import Batch, Cursor
from agentstream.stream.chat import ChatStream, EventFormat, StreamHead, StreamOptions
from agentstream.stream.transcript import Transcript
from tests.helpers import completed

HEAD = StreamHead(run_id="chatcmpl-0", created=1, model="m")
RETRY: Final = "retry"  # a new attempt begins
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


class SlowTranscript(Transcript):
    """A transcript whose ``in_text`` is always false, so that the machine never uses the fast path."""

    @property
    def in_text(self) -> bool:
        """Always false."""
        return False

    @in_text.setter
    def in_text(self, _value: bool) -> None: ...


def batches(facts: tuple[Any, ...]) -> list[Batch]:
    """Return a run with one batch for each attempt."""
    runs: list[list[Any]] = [[]]
    for fact in facts:
        if fact == RETRY:
            runs.append([])
        else:
            runs[-1].append(fact)
    started = ["run_started", {"worker": "w"}]
    return [Batch(attempt, 1, [started, *items]) for attempt, items in enumerate(runs, 1)]


def one_by_one(run: list[Batch]) -> list[Batch]:
    """Return the same run with one batch for each event."""
    return [Batch(batch.attempt, seq, [item]) for batch in run for seq, item in enumerate(batch.items, batch.seq)]


def rendered(machine: ChatStream, run: list[Batch]) -> bytes:
    """Return all bytes of a run's stream."""
    out = machine.open() + b"".join(map(machine.receive, run))
    return out + b"".join(machine.tail or ())


@pytest.mark.parametrize("event_format", ["named", "off"])
def test_the_fast_path_gives_the_same_bytes(event_format: EventFormat) -> None:
    """After any events, and with any cursor, the fast path for text gives the same bytes as the slow path."""
    options = StreamOptions(event_format=event_format)
    lengths = range(5)
    sequences = itertools.chain.from_iterable(itertools.product(FACTS, repeat=length) for length in lengths)
    for number, (facts, after) in enumerate(itertools.product(sequences, AFTER)):
        run = batches((*facts, "text", "text", ENDS[number % len(ENDS)]))
        slow = ChatStream(HEAD, options, after)
        slow._transcript = SlowTranscript()
        assert rendered(ChatStream(HEAD, options, after), run) == rendered(slow, one_by_one(run)), (facts, after)


def test_consecutive_texts_use_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of several consecutive texts goes through ``Transcript.receive``."""
    received: list[str] = []
    receive = Transcript.receive

    def record(self: Transcript, event: Any) -> Any:
        received.append(event.type)
        return receive(self, event)

    monkeypatch.setattr(Transcript, "receive", record)
    rendered(ChatStream(HEAD, StreamOptions()), batches(("text",) * 10))
    assert received == ["run_started", "text"]
