"""Messages that people send to a run separate the texts before and after them."""

from agentstream.protocol.events import INPUT_APPLIED, REASONING, TEXT, TOOL_CALL_END, TOOL_CALL_START, Event
from agentstream.stream.transcript import AnswerFold, NamedEvent, Reasoning, Text, Transcript

APPLIED = (INPUT_APPLIED, {"inputs": [{"id": "input-1", "message": {"role": "user", "content": "go on"}}]})
TOOL = ((TOOL_CALL_START, {"tool": "t"}), (TOOL_CALL_END, {"tool": "t"}))


def parts_of(*facts: tuple[str, object]) -> list[object]:
    """Return the parts without those of named events."""
    transcript = Transcript()
    events = [Event(1, seq, kind, data) for seq, (kind, data) in enumerate(facts, 1)]
    return [part for event in events for part in transcript.receive(event) if not isinstance(part, NamedEvent)]


def test_texts_before_and_after_a_message_are_separated() -> None:
    """An empty line stands between two texts if a message was applied between them, also if tools ran there."""
    expected = [Text("a"), Text("\n\n"), Text("b"), Text("c")]
    assert parts_of((TEXT, "a"), APPLIED, (TEXT, "b"), (TEXT, "c")) == expected
    assert parts_of((TEXT, "a"), *TOOL, APPLIED, (TEXT, "b"), (TEXT, "c")) == expected
    assert parts_of((TEXT, "a"), APPLIED, APPLIED, (TEXT, "b"), (TEXT, "c")) == expected


def test_a_message_before_the_first_text_separates_nothing() -> None:
    """The answer does not begin with an empty line."""
    assert parts_of(APPLIED, (TEXT, "a")) == [Text("a")]


def test_reasoning_is_separated_too() -> None:
    """The same holds for reasoning."""
    assert parts_of((REASONING, "a"), APPLIED, (REASONING, "b")) == [Reasoning("a"), Reasoning("\n\n"), Reasoning("b")]


def test_the_folded_answer_equals_the_stream() -> None:
    """An answer that is not streamed has the same separation."""
    fold = AnswerFold()
    for seq, (kind, data) in enumerate(((TEXT, "a"), APPLIED, (TEXT, "b")), 1):
        fold.receive(Event(1, seq, kind, data))
    assert fold.content == "a\n\nb"
