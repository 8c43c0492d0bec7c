"""The tally of a run: whether it may be retried, and its usage so far."""

import pytest

from agentstream.protocol.events import REASONING, TEXT, TOOL_CALL_DELTA
from agentstream.protocol.openai import ChatMessage, Usage, estimate_usage
from agentstream.worker.tally import Tally

MESSAGES = [ChatMessage(role="user", content="x" * 40)]


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def reported(prompt: int, completion: int) -> tuple[str, dict[str, object]]:
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
        ((reported(3, 4),), True),
        (((TEXT, "a"),), False),
        ((("tool_call_start", {"tool": "t"}),), False),
        (((REASONING, "hm"),), False),
        (((TOOL_CALL_DELTA, {"index": 0, "id": "a", "name": "f", "arguments": ""}),), False),
        ((("agent_turn_start", {}), (TEXT, "a"), ("tool_call_start", {"tool": "t"})), False),
    ],
)
def test_retryable_while_nothing_was_written_and_no_tool_ran(
    facts: tuple[tuple[str, object], ...], *, retryable: bool
) -> None:
    """Only text, reasoning, calls of the client's tools and tool calls make a run impossible to retry."""
    assert tally_of(*facts).retryable is retryable


def test_reasoning_and_calls_count_like_text() -> None:
    """Reasoning and the names and arguments of calls count in the estimate like text: a quarter of their characters."""
    facts = (REASONING, "r" * 40), (TOOL_CALL_DELTA, {"index": 0, "id": "a" * 99, "name": "four", "arguments": ""})
    more = (TOOL_CALL_DELTA, {"index": 0, "arguments": "x" * 16})
    tally = tally_of(*facts, more)
    assert (tally.written_characters, tally.text_characters, tally.client_calls) == (60, 0, 1)
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 60)
    assert tally_of(reported(10, 100), *facts, more).usage(MESSAGES).completion_tokens == 115


def test_without_output_the_usage_is_zero() -> None:
    """A run that was cancelled before it published anything has used no tokens."""
    assert tally_of(("inference_start", {})).usage(MESSAGES) == Usage()


def test_usage_is_estimated_if_no_inference_reported_it() -> None:
    """If no inference reported its usage, the usage is the estimate for the prompt and the text."""
    tally = tally_of((TEXT, "four"), (TEXT, "more"))
    assert tally.text_characters == 8
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 8) == tally.estimate(MESSAGES)


def test_estimate_includes_text_that_was_not_streamed() -> None:
    """The estimate includes content that was not streamed."""
    assert tally_of((REASONING, "four")).estimate(MESSAGES, 400) == estimate_usage(MESSAGES, 404)
    assert tally_of().estimate(MESSAGES, 400) == estimate_usage(MESSAGES, 400)


def test_reported_usage_is_added_up() -> None:
    """The reported usage of several inferences is added up, and their text is not counted again."""
    tally = tally_of((TEXT, "x" * 400), reported(10, 100), (TEXT, "y" * 400), reported(120, 100))
    assert tally.usage(MESSAGES) == Usage(prompt_tokens=130, completion_tokens=200, total_tokens=330)


def test_text_after_the_last_reported_usage_is_estimated() -> None:
    """Text after the last reported usage counts as a quarter of its characters."""
    tally = tally_of((TEXT, "x" * 400), reported(10, 100), (TEXT, "y" * 43))
    assert tally.usage(MESSAGES) == Usage(prompt_tokens=10, completion_tokens=110, total_tokens=120)


@pytest.mark.parametrize("nonsense", [None, 17, "many", [], {"prompt_tokens": "x"}, {"total_tokens": -1}])
def test_malformed_usage_is_ignored(nonsense: object) -> None:
    """A reported usage that is not in OpenAI's form is ignored, and the text before it is estimated."""
    tally = tally_of((TEXT, "x" * 40), ("inference_end", {"usage": nonsense}))
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 40)


def test_inference_end_without_usage_changes_nothing() -> None:
    """After an inference_end without usage, the text before it is estimated."""
    tally = tally_of((TEXT, "x" * 40), ("inference_end", {"model": "m"}))
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 40)


def test_a_repeated_tool_hides_no_other() -> None:
    """The end of a tool that an earlier attempt started does not hide a tool that runs now."""
    tally = Tally()
    tally.record("tool_call_end", {"tool": "look"})
    tally.record("tool_call_start", {"tool": "once"})
    assert tally.running_tools == 1


def test_a_tool_that_waits_for_people_does_not_run() -> None:
    """A call that waits for people keeps no run in its worker, and its end is not counted twice."""
    tally = Tally()
    tally.record("tool_call_start", {"tool": "a"})
    tally.record("tool_call_waiting", {"tool": "a"})
    assert tally.running_tools == 0
    tally.record("tool_call_end", {"tool": "a"})
    assert tally.running_tools == 0


def test_streamed_text_counts_like_recorded_text() -> None:
    """Text that the publisher counts makes a run impossible to retry, and is in its usage, also after a checkpoint."""
    streamed = 0
    tally = tally_of((TEXT, "t" * 4), (REASONING, "r" * 8))
    tally.count_streamed(lambda: streamed)
    streamed = 20
    assert (tally.text_characters, tally.written_characters, tally.retryable) == (24, 32, False)
    assert tally.usage(MESSAGES) == estimate_usage(MESSAGES, 32)
    tally.record(*reported(10, 5))
    streamed = 32
    assert tally.usage(MESSAGES).completion_tokens == 5 + 3
    restored = Tally()
    restored.restore(tally.counts())
    assert restored.counts() == tally.counts()
    assert restored.usage(MESSAGES) == tally.usage(MESSAGES)
