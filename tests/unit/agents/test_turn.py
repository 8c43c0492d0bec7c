"""One turn of the model: continued when its server cut it short, made to fit when its server finds it too long."""

from typing import Any

import pytest

from agentstream.agents.context_window import size_of
from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.orchestrator import Orchestrator
from agentstream.agents.turn import MAX_CONTINUATIONS, TRIMMED_TO
from agentstream.engines.base import CONTINUE_PROMPT, SUMMARY_PROMPT, EngineDelta, EngineError
from agentstream.errors import CONTEXT_LENGTH, failure_code
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from tests.helpers import RecordingSink
from tests.scripted_engine import ScriptedEngine, Turn, answer_turn, call, data_of, kinds, tool_call_turn, toolbox

TOO_LONG = EngineError("Error code: 400 - This model's maximum context length is 8192 tokens.")
SYSTEM = {"role": "system", "content": "s" * 2000}
HISTORY = [
    message
    for number in range(20)
    for message in ({"role": "user", "content": f"{number} " * 100}, {"role": "assistant", "content": "a" * 300})
]
QUESTION = {"role": "user", "content": "and now?"}
CUT = answer_turn("One, |two, ", finish_reason="length")


async def outcome(
    engine: ScriptedEngine, *messages: dict[str, Any], context_tokens: int | None = None, **fields: Any
) -> tuple[AgentResult, RecordingSink]:
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": messages or [QUESTION], **fields})
    orchestrator = Orchestrator(engine, toolbox(), context_tokens=context_tokens)
    result = await orchestrator(Run("chatcmpl-1", request, sink))
    assert result.content == "".join(data_of(sink, "text"))
    return result, sink


# Cut short


async def test_an_answer_cut_at_the_servers_limit_is_gone_on_with() -> None:
    """The model is asked to go on from what it said; the pieces are one text, and the usage is that of all of them."""
    each = Usage(prompt_tokens=5, completion_tokens=2, total_tokens=7)
    engine = ScriptedEngine(answer_turn("One, |two, ", each, "length"), answer_turn("three.", each))
    result, sink = await outcome(engine)
    assert (result.content, result.finish_reason) == ("One, two, three.", "stop")
    assert result.metadata["total_tokens"] == 14
    assert engine.conversations[1] == [
        QUESTION,
        {"role": "assistant", "content": "One, two, "},
        {"role": "user", "content": CONTINUE_PROMPT},
    ]
    assert kinds(sink).count("inference_start") == kinds(sink).count("inference_end") == 2


async def test_a_continuation_may_call_tools() -> None:
    """What the model calls when it goes on is run, and its whole text stands in the message it is told in."""
    engine = ScriptedEngine(CUT, tool_call_turn(call("current_time"), text="let me see."), answer_turn("Noon."))
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [QUESTION]})
    result = await Orchestrator(engine, toolbox())(Run("chatcmpl-1", request, sink))
    assert result.content == "One, two, let me see.\n\nNoon."
    assert engine.conversations[2][1]["content"] == "One, two, let me see."
    assert [message["role"] for message in engine.conversations[2]] == ["user", "assistant", "tool"]


async def test_continuations_are_few() -> None:
    """An answer that never ends is left as it is after a few continuations, finish_reason length."""
    engine = ScriptedEngine(*[CUT] * (1 + MAX_CONTINUATIONS))
    result, _ = await outcome(engine)
    assert result.content == "One, two, " * (1 + MAX_CONTINUATIONS)
    assert result.finish_reason == "length"


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"response_format": {"type": "json_object"}}],
    ids=str,
)
async def test_an_answer_that_was_meant_to_be_cut_stays_so(fields: dict[str, Any]) -> None:
    """The client's own limit is final, and half a JSON document is not gone on with: finish_reason length."""
    result, _ = await outcome(ScriptedEngine(CUT), **fields)
    assert (result.content, result.finish_reason) == ("One, two, ", "length")


@pytest.mark.parametrize(
    "more", [answer_turn("", finish_reason="length"), [EngineError("busy")]], ids=["empty", "refused"]
)
async def test_an_answer_that_cannot_be_gone_on_with_is_kept(more: Turn) -> None:
    """If the model adds nothing, or its server refuses, what was said stays the answer, finish_reason length."""
    result, _ = await outcome(ScriptedEngine(CUT, more))
    assert (result.content, result.finish_reason) == ("One, two, ", "length")


async def test_a_continuation_that_breaks_off_is_a_failure() -> None:
    """An error after more text was shown is the run's, as it is in a first answer."""
    with pytest.raises(EngineError, match="cut"):
        await outcome(ScriptedEngine(CUT, [EngineDelta(text="thr"), EngineError("cut")]))


async def test_a_continuation_keeps_question_and_answer_when_it_is_too_long() -> None:
    """When the longer conversation does not fit any more, what goes is neither the question nor what was said."""
    engine = ScriptedEngine(CUT, [TOO_LONG], answer_turn("three."))
    result, _ = await outcome(engine, SYSTEM, *HISTORY, QUESTION)
    assert result.content == "One, two, three."
    ends = [
        SYSTEM,
        QUESTION,
        {"role": "assistant", "content": "One, two, "},
        {"role": "user", "content": CONTINUE_PROMPT},
    ]
    assert [engine.conversations[2][0], *engine.conversations[2][-3:]] == ends
    assert len(engine.conversations[2]) < len(engine.conversations[1])


# Too long


async def test_a_conversation_the_server_finds_too_long_is_trimmed_and_sent_again() -> None:
    """The oldest exchanges go, system prompt and question stay, and the events say what was lost."""
    engine = ScriptedEngine([TOO_LONG], answer_turn("Fine."))
    result, sink = await outcome(engine, SYSTEM, *HISTORY, QUESTION)
    assert (result.content, result.finish_reason) == ("Fine.", "stop")
    whole, shorter = engine.conversations
    assert size_of(shorter) <= TRIMMED_TO[0] * size_of(whole)
    assert [shorter[0], shorter[-1]] == [SYSTEM, QUESTION]
    assert shorter[1:] == whole[-len(shorter) + 1 :]
    starts, ends = data_of(sink, "inference_start"), data_of(sink, "inference_end")
    assert "trimmed" not in starts[0]
    assert starts[1]["trimmed"] == {"results_shortened": 0, "messages_dropped": len(whole) - len(shorter)}
    assert [end["finish_reason"] for end in ends] == [CONTEXT_LENGTH, "stop"]


async def test_trimming_goes_on_over_the_turns() -> None:
    """What was trimmed stays trimmed in the run's later turns; it is not found out anew each time."""
    engine = ScriptedEngine([TOO_LONG], tool_call_turn(call("current_time")), answer_turn("Noon."))
    _, sink = await outcome(engine, SYSTEM, *HISTORY, QUESTION)
    assert engine.conversations[2][: len(engine.conversations[1])] == engine.conversations[1]
    assert "trimmed" not in data_of(sink, "inference_start")[2]


async def test_tries_are_few_and_then_the_servers_word_stands() -> None:
    """A conversation that is still too long after a few trims fails as context_length_exceeded."""
    engine = ScriptedEngine(*[[TOO_LONG]] * (1 + len(TRIMMED_TO)))
    with pytest.raises(EngineError) as caught:
        await outcome(engine, SYSTEM, *HISTORY, QUESTION)
    assert failure_code(str(caught.value)) == CONTEXT_LENGTH
    sizes = [size_of(conversation) for conversation in engine.conversations]
    assert sizes == sorted(set(sizes), reverse=True)
    assert [engine.conversations[-1][0], engine.conversations[-1][-1]] == [SYSTEM, QUESTION]


async def test_what_cannot_be_trimmed_fails_at_once() -> None:
    """A question that is too long by itself is not cut: the server's refusal is the answer."""
    engine = ScriptedEngine([TOO_LONG])
    with pytest.raises(EngineError, match="context length"):
        await outcome(engine, SYSTEM, QUESTION)
    assert len(engine.conversations) == 1


async def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    """A server that finds out half-way that the context is full has failed: nothing is said twice."""
    with pytest.raises(EngineError, match="context length"):
        await outcome(ScriptedEngine([EngineDelta(text="half"), TOO_LONG]), SYSTEM, *HISTORY, QUESTION)


async def test_a_known_limit_is_kept_beforehand() -> None:
    """With a known context window nothing longer is sent, and a conversation that fits goes out as it is."""
    engine = ScriptedEngine(answer_turn("Fine."), answer_turn("Fine."))
    _, sink = await outcome(engine, SYSTEM, *HISTORY, QUESTION, context_tokens=4096)
    assert data_of(sink, "inference_start")[0]["trimmed"]["messages_dropped"] > 0
    assert size_of(engine.conversations[0]) < (4096 - 1024) * 3
    assert [engine.conversations[0][0], engine.conversations[0][-1]] == [SYSTEM, QUESTION]
    _, sink = await outcome(engine, QUESTION, context_tokens=4096)
    assert "trimmed" not in data_of(sink, "inference_start")[0]


async def test_summing_up_keeps_the_question_when_it_is_too_long() -> None:
    """The words that ask for a summary do not take the place of the question that is kept."""
    long_ago = [call("text_statistics", f'{{"text": "{number}{"x" * 1500}"}}') for number in range(2)]
    engine = ScriptedEngine(
        tool_call_turn(long_ago[0]), tool_call_turn(long_ago[1]), [TOO_LONG], answer_turn("In short.")
    )
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [SYSTEM, QUESTION]})
    result = await Orchestrator(engine, toolbox(), max_turns=2)(Run("chatcmpl-1", request, sink))
    assert result.content == "In short."
    last = engine.conversations[-1]
    assert [last[0], last[1], last[-1]] == [SYSTEM, QUESTION, {"role": "user", "content": SUMMARY_PROMPT}]
    assert len(last) == len(engine.conversations[-2]) - 2
