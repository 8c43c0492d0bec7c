"""Trimming a conversation: which parts are removed, in which order, and which parts are always kept."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentstream.agents.orchestrator.context_window import (
    LEAST_RESULT_CHARS,
    OLD_RESULT_CHARS,
    Message,
    TrimResult,
    size_of,
    trim,
)

LONG = OLD_RESULT_CHARS * 4


def message_of(role: str, text: str = "x" * 400, **fields: Any) -> Message:
    return {"role": role, "content": text, **fields}


def called(call_id: str) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }


def result(call_id: str, characters: int = LONG) -> Message:
    return message_of("tool", "a" * (characters // 2) + "z" * (characters // 2), tool_call_id=call_id)


SYSTEM = message_of("system")
QUESTION = message_of("user", "the question")
OLD = [message_of("user", "old"), called("o"), result("o"), message_of("assistant")]
OLDER = [message_of("user", "older"), called("p"), result("p"), message_of("assistant")]
FIRST_TURN = [called("a"), result("a")]
LATEST = [called("b"), result("b")]
WHOLE = [SYSTEM, *OLDER, *OLD, QUESTION, *FIRST_TURN, *LATEST]


def trimmed(target_chars: int, messages: list[Message] = WHOLE) -> TrimResult:
    shorter = trim(messages, target_chars, {id(QUESTION)})
    assert shorter is not None
    return shorter


def lengths_of_results(messages: list[Message]) -> dict[str, int]:
    return {message["tool_call_id"]: len(message["content"]) for message in messages if message["role"] == "tool"}


def test_old_results_are_shortened_first() -> None:
    """Results of earlier turns are cut to their beginning and end, the oldest first and no more than necessary."""
    shorter = trimmed(size_of(WHOLE) - 4000)
    assert (shorter.results_shortened, shorter.messages_dropped) == (2, 0)
    lengths = lengths_of_results(shorter.messages)
    assert lengths["p"] == lengths["o"] < OLD_RESULT_CHARS + 100
    assert lengths["a"] == lengths["b"] == LONG
    cut = shorter.messages[3]["content"]
    assert cut.startswith("aaa")
    assert cut.endswith("zzz")
    assert f"[{LONG - OLD_RESULT_CHARS} characters left out]" in cut


def test_exchanges_before_the_question_are_dropped_next() -> None:
    """Whole exchanges are dropped, the oldest first, so that a user message always follows the system message."""
    shorter = trimmed(LONG + 4000)
    assert shorter.messages_dropped == len(OLDER)
    assert [message["role"] for message in shorter.messages[:2]] == ["system", "user"]
    assert shorter.messages[1] is OLD[0]


def test_turns_before_the_latest_are_dropped_after_that() -> None:
    """After all earlier exchanges, earlier turns are dropped with their results, and the latest turn is kept."""
    assert trimmed(LONG + 600).messages == [SYSTEM, QUESTION, *LATEST]


def test_the_latest_results_are_shortened_last() -> None:
    """The system message and the question are never cut, and the latest results keep their beginning and end."""
    system, question, call, tool_message = trimmed(0).messages
    assert (system, question, call) == (SYSTEM, QUESTION, LATEST[0])
    assert LEAST_RESULT_CHARS < len(tool_message["content"]) < LEAST_RESULT_CHARS + 50
    shared = trimmed(size_of([SYSTEM, QUESTION, *LATEST]) - 1000).messages[-1]["content"]
    assert LONG - 1100 < len(shared) < LONG - 900


def test_a_conversation_without_removable_parts_is_not_trimmed() -> None:
    """For a conversation of system message, question and short results, trim returns None."""
    assert trim([SYSTEM, message_of("developer"), QUESTION], 0, {id(QUESTION)}) is None
    assert trim([SYSTEM, QUESTION, called("a"), result("a", 100)], 0, {id(QUESTION)}) is None


def test_a_short_conversation_is_not_trimmed() -> None:
    """For a conversation within the target, trim returns None."""
    assert trim(WHOLE, size_of(WHOLE), {id(QUESTION)}) is None


def test_images_have_a_fixed_size() -> None:
    """An image counts with a fixed size, whatever the length of its data URL, and a text part counts as text."""
    image = {"type": "image_url", "image_url": {"url": "data:," + "x" * 1_000_000}}
    assert size_of([{"role": "user", "content": [image]}]) < 10_000
    in_parts = {"role": "user", "content": [{"type": "text", "text": "abc"}]}
    assert size_of([message_of("user", "abc")]) == size_of([in_parts])


MESSAGES = st.lists(
    st.one_of(
        st.builds(message_of, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=2000)),
        st.integers(0, LONG).map(lambda characters: [called("x"), result("x", characters)]),
    ).map(lambda drawn: drawn if isinstance(drawn, list) else [drawn]),
    max_size=8,
).map(lambda groups: [dict(message) for group in groups for message in group])


@given(MESSAGES, MESSAGES, st.integers(0, 20_000))
def test_a_trimmed_conversation_is_valid(before: list[Message], after: list[Message], target: int) -> None:
    """A trimmed conversation is shorter, has all system messages and the question, and no result without its call."""
    question = message_of("user", "q")
    whole = [*before, question, *after]
    shorter = trim(whole, target, {id(question)})
    if shorter is None:
        return
    left = shorter.messages
    assert size_of(left) < size_of(whole)
    assert any(message is question for message in left)
    systems = [message for message in whole if message["role"] == "system"]
    assert [message for message in left if message["role"] == "system"] == systems
    for index, message in enumerate(left):
        if message["role"] == "tool":
            assert left[index - 1].get("tool_calls") or left[index - 1]["role"] == "system"
    assert len(whole) - len(left) == shorter.messages_dropped
