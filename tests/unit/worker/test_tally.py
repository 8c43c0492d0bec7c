"""What a run has shown, and what it cost so far."""

import pytest

from agentstream.protocol.events import REASONING, TEXT, TOOL_CALL_DELTA
from agentstream.protocol.openai import ChatMessage, Usage, estimate_usage
from agentstream.worker.tally import Tally

MESSAGES = [ChatMessage(role="user", content="x" * 40)]


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def told(prompt: int, completion: int) -> tuple[str, dict[str, object]]:
    return "inference_end", {"model": "m", "usage": usage(prompt, completion)}


def tally_of(*facts: tuple[str, object]) -> Tally:
    tally = Tally()
    for event_type, data in facts:
        tally.record(event_type, data)
    return tally


@pytest.mark.parametrize(
    ("facts", "retryable"),
    [
        ((), True),
        ((("agent_turn_start", {}), ("inference_start", {}), ("my_note", {"text": "x"})), True),
        ((told(3, 4),), True),
        (((TEXT, "a"),), False),
        ((("tool_call_start", {"tool": "t"}),), False),
        (((REASONING, "hm"),), False),
        (((TOOL_CALL_DELTA, {"index": 0, "id": "a", "name": "f", "arguments": ""}),), False),
        ((("agent_turn_start", {}), (TEXT, "a"), ("tool_call_start", {"tool": "t"})), False),
    ],
)
def test_retryable_while_nothing_was_written_and_no_tool_run(
    facts: tuple[tuple[str, object], ...], *, retryable: bool
) -> None:
    """Text, reasoning, a client's call and tool calls, and nothing else, keep a run from being handed back."""
    assert tally_of(*facts).retryable is retryable


def test_reasoning_and_calls_are_written_too() -> None:
    """A quarter of the characters of reasoning and of a call's name and arguments is counted as that of text is."""
    facts = (REASONING, "r" * 40), (TOOL_CALL_DELTA, {"index": 0, "id": "a" * 99, "name": "four", "arguments": ""})
    more = (TOOL_CALL_DELTA, {"index": 0, "arguments": "x" * 16})
    tally = tally_of(*facts, more)
    assert (tally.written_characters, tally.text_characters, tally.has_client_calls) == (60, 0, True)
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 60)
    assert tally_of(told(10, 100), *facts, more).usage(MESSAGES).completion_tokens == 115


def test_nothing_shown_costs_nothing() -> None:
    """A run cancelled before it showed or told anything has used no tokens, not even its prompt's."""
    assert tally_of(("inference_start", {})).usage(MESSAGES) == Usage()


def test_usage_is_estimated_from_the_text_if_no_inference_told_it() -> None:
    """Without a word from the model the usage is the estimate for prompt and text shown."""
    tally = tally_of((TEXT, "four"), (TEXT, "more"))
    assert tally.text_characters == 8
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 8) == tally.estimate(MESSAGES)


def test_estimate_may_be_for_text_that_was_not_streamed() -> None:
    """The estimate is for what was written and the content that was not."""
    assert tally_of((REASONING, "four")).estimate(MESSAGES, 400) == estimate_usage(MESSAGES, 404)
    assert tally_of().estimate(MESSAGES, 400) == estimate_usage(MESSAGES, 400)


def test_usage_told_by_inferences_is_added_up() -> None:
    """What several inferences told is summed; text shown before they told it is not counted twice."""
    tally = tally_of((TEXT, "x" * 400), told(10, 100), (TEXT, "y" * 400), told(120, 100))
    assert tally.usage(MESSAGES) == Usage(prompt_tokens=130, completion_tokens=200, total_tokens=330)


def test_text_after_the_last_told_usage_is_estimated() -> None:
    """Text of an inference that was cut off before it told its usage is added as a quarter of its characters."""
    tally = tally_of((TEXT, "x" * 400), told(10, 100), (TEXT, "y" * 43))
    assert tally.usage(MESSAGES) == Usage(prompt_tokens=10, completion_tokens=110, total_tokens=120)


@pytest.mark.parametrize("nonsense", [None, 17, "many", [], {"prompt_tokens": "x"}, {"total_tokens": -1}])
def test_agents_own_idea_of_usage_is_ignored(nonsense: object) -> None:
    """An inference_end whose usage is not OpenAI's leaves the text before it to the estimate."""
    tally = tally_of((TEXT, "x" * 40), ("inference_end", {"usage": nonsense}))
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 40)


def test_inference_end_without_usage_tells_nothing() -> None:
    """An inference_end without usage leaves the text before it to the estimate."""
    tally = tally_of((TEXT, "x" * 40), ("inference_end", {"model": "m"}))
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 40)
