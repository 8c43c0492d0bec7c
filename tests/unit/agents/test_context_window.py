"""Trimming a conversation: what goes, in which order, and what never does."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentstream.agents.context_window import LEAST_RESULT_CHARS, OLD_RESULT_CHARS, Message, TrimResult, size_of, trim

LONG = OLD_RESULT_CHARS * 4


def said(role: str, text: str = "x" * 400, **fields: Any) -> Message:
    return {"role": role, "content": text, **fields}


def called(call_id: str) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }


def result(call_id: str, characters: int = LONG) -> Message:
    return said("tool", "a" * (characters // 2) + "z" * (characters // 2), tool_call_id=call_id)


SYSTEM = said("system")
QUESTION = said("user", "the question")
OLD = [said("user", "old"), called("o"), result("o"), said("assistant")]
OLDER = [said("user", "older"), called("p"), result("p"), said("assistant")]
FIRST_TURN = [called("a"), result("a")]
LATEST = [called("b"), result("b")]
WHOLE = [SYSTEM, *OLDER, *OLD, QUESTION, *FIRST_TURN, *LATEST]


def trimmed(target_chars: int, messages: list[Message] = WHOLE) -> TrimResult:
    shorter = trim(messages, target_chars, {id(QUESTION)})
    assert shorter is not None
    return shorter


def lengths_of_results(messages: list[Message]) -> dict[str, int]:
    return {each["tool_call_id"]: len(each["content"]) for each in messages if each["role"] == "tool"}


def test_old_results_go_first() -> None:
    """Results that are not the latest turn's are cut to their ends, the oldest first and only as many as must."""
    shorter = trimmed(size_of(WHOLE) - 4000)
    assert (shorter.results_shortened, shorter.messages_dropped) == (2, 0)
    lengths = lengths_of_results(shorter.messages)
    assert lengths["p"] == lengths["o"] < OLD_RESULT_CHARS + 100
    assert lengths["a"] == lengths["b"] == LONG
    cut = shorter.messages[3]["content"]
    assert cut.startswith("aaa")
    assert cut.endswith("zzz")
    assert f"[{LONG - OLD_RESULT_CHARS} characters left out]" in cut


def test_exchanges_before_the_question_go_next() -> None:
    """Whole exchanges are left out, the oldest first, so that a user's message still stands behind the system's."""
    shorter = trimmed(LONG + 4000)
    assert shorter.messages_dropped == len(OLDER)
    assert [each["role"] for each in shorter.messages[:2]] == ["system", "user"]
    assert shorter.messages[1] is OLD[0]


def test_turns_before_the_latest_go_after_that() -> None:
    """When nothing is left before the question, earlier turns go, calls with their results; the latest stays whole."""
    assert trimmed(LONG + 600).messages == [SYSTEM, QUESTION, *LATEST]


def test_the_latest_results_are_the_last_to_be_cut() -> None:
    """At the very least the latest results keep their ends, and the question and the system prompt everything."""
    system, question, call, told = trimmed(0).messages
    assert (system, question, call) == (SYSTEM, QUESTION, LATEST[0])
    assert LEAST_RESULT_CHARS < len(told["content"]) < LEAST_RESULT_CHARS + 50
    shared = trimmed(size_of([SYSTEM, QUESTION, *LATEST]) - 1000).messages[-1]["content"]
    assert LONG - 1100 < len(shared) < LONG - 900


def test_what_cannot_be_trimmed_is_told() -> None:
    """A conversation of system prompt, question and short results is not trimmed: None."""
    assert trim([SYSTEM, said("developer"), QUESTION], 0, {id(QUESTION)}) is None
    assert trim([SYSTEM, QUESTION, called("a"), result("a", 100)], 0, {id(QUESTION)}) is None


def test_nothing_goes_from_what_is_small_enough() -> None:
    """A conversation within the target is left alone."""
    assert trim(WHOLE, size_of(WHOLE), {id(QUESTION)}) is None


def test_images_have_a_size_of_their_own() -> None:
    """A data URL's length is not the size of its image; text parts count as text."""
    picture = {"type": "image_url", "image_url": {"url": "data:," + "x" * 1_000_000}}
    assert size_of([{"role": "user", "content": [picture]}]) < 10_000
    assert size_of([said("user", "abc")]) == size_of([{"role": "user", "content": [{"type": "text", "text": "abc"}]}])


MESSAGES = st.lists(
    st.one_of(
        st.builds(said, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=2000)),
        st.integers(0, LONG).map(lambda characters: [called("x"), result("x", characters)]),
    ).map(lambda drawn: drawn if isinstance(drawn, list) else [drawn]),
    max_size=8,
).map(lambda groups: [dict(message) for group in groups for message in group])


@given(MESSAGES, MESSAGES, st.integers(0, 20_000))
def test_what_is_trimmed_is_still_a_conversation(before: list[Message], after: list[Message], target: int) -> None:
    """Whatever is trimmed gets smaller, keeps every system message and the question, and no result without its call."""
    question = said("user", "q")
    whole = [*before, question, *after]
    shorter = trim(whole, target, {id(question)})
    if shorter is None:
        return
    left = shorter.messages
    assert size_of(left) < size_of(whole)
    assert any(each is question for each in left)
    systems = [each for each in whole if each["role"] == "system"]
    assert [each for each in left if each["role"] == "system"] == systems
    for index, each in enumerate(left):
        if each["role"] == "tool":
            assert left[index - 1].get("tool_calls") or left[index - 1]["role"] == "system"
    assert len(whole) - len(left) == shorter.messages_dropped
