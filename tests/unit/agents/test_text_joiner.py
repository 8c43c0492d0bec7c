"""Characters that were cut in two between two pieces of text arrive whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.agents import Run
from agentstream.errors import InvalidAgentOutput
from agentstream.protocol.openai import ChatCompletionRequest
from tests.helpers import RecordingSink

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)


def new_run() -> tuple[Run, RecordingSink]:
    """Return a run and the sink of its events."""
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    return Run("chatcmpl-1", request, sink), sink


def said(sink: RecordingSink, kind: str) -> list[str]:
    """Return the texts of the events of one type."""
    return [data["arguments"] if isinstance(data, dict) else data for event, data in sink.facts if event == kind]


def test_halves_of_a_character_are_joined_in_every_channel() -> None:
    """Text, reasoning and the arguments of a tool call each join their own halves."""
    run, sink = new_run()
    call = run.write_tool_call("f", '{"a": "\ud83d')
    other = run.write_tool_call("g", "\ud83d")
    run.write("one \ud83d")
    run.write_reasoning("\ud83d")
    call.write('\ude00"}')
    run.write("\ude00 two")
    run.write_reasoning("\ude01")
    other.write("\ude02")
    run.cancel()
    assert said(sink, "text") == ["one ", "😀 two"]
    assert said(sink, "reasoning") == ["😁"]
    assert "".join(said(sink, "tool_call_delta")) == '{"a": "😀"}😂'
    assert [data["index"] for kind, data in sink.facts if kind == "tool_call_delta"] == [0, 1, 0, 1]


def test_a_half_without_its_other_half_is_replaced() -> None:
    """A half is replaced where it stands when other text follows it, and at the end of the run."""
    run, sink = new_run()
    run.write("a\ud83d")
    run.write("b")
    run.write("\ude00")
    run.write("c\ud83d")
    run.cancel()
    assert said(sink, "text") == ["a", "\ufffdb", "\ufffd", "c", "\ufffd"]


@given(st.lists(ANY_TEXT, max_size=6))
def test_the_pieces_give_the_same_text_however_it_is_cut(pieces: list[str]) -> None:
    """The joined pieces equal the whole text with its pairs joined and its lone surrogates replaced."""
    run, sink = new_run()
    for piece in pieces:
        run.write(piece)
    run.cancel()
    whole = "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert "".join(said(sink, "text")) == whole


@pytest.mark.parametrize("value", [None, b"x", 7])
def test_a_text_that_is_no_text_is_refused(value: object) -> None:
    """``write`` and ``write_reasoning`` still refuse a value that is no str, and take subclasses of str."""

    class Text(str):
        __slots__ = ()

    run, sink = new_run()
    with pytest.raises(InvalidAgentOutput, match=r"run\.write takes a str"):
        run.write(value)  # type: ignore[arg-type]
    with pytest.raises(InvalidAgentOutput, match=r"run\.write_reasoning takes a str"):
        run.write_reasoning(value)  # type: ignore[arg-type]
    run.write(Text("x"))
    assert said(sink, "text") == ["x"]


def test_a_text_of_a_subclass_is_taken_as_plain_text() -> None:
    """A subclass of str cannot deceive the publisher, which relies on what plain text says of itself."""

    class Text(str):
        __slots__ = ()

        def isascii(self) -> bool:
            return True

        def __len__(self) -> int:
            return 0

    run, sink = new_run()
    run.write(Text("caf\u00e9"))
    run.write_reasoning(Text("\ud83d"))
    run.write_reasoning(Text("\ude00"))
    assert said(sink, "text") == ["caf\u00e9"]
    assert said(sink, "reasoning") == ["\U0001f600"]
    assert {text.__class__ for text in (*said(sink, "text"), *said(sink, "reasoning"))} == {str}
