"""One turn of the model: a truncated answer is continued, and a conversation that is too long is trimmed."""

from typing import Any

import pytest

from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.orchestrator import Orchestrator
from agentstream.agents.orchestrator.context_window import size_of
from agentstream.agents.orchestrator.inference import TRIMMED_TO
from agentstream.agents.orchestrator.turn import MAX_CONTINUATIONS
from agentstream.engines.base import CONTINUE_PROMPT, SUMMARY_PROMPT, EngineDelta, EngineError
from agentstream.errors import CONTEXT_LENGTH
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
TRUNCATED = answer_turn("One, |two, ", finish_reason="length")


async def outcome(
    engine: ScriptedEngine, *messages: dict[str, Any], context_tokens: int | None = None, **fields: Any
) -> tuple[AgentResult, RecordingSink]:
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": messages or [QUESTION], **fields})
    orchestrator = Orchestrator(engine, toolbox(), context_tokens=context_tokens)
    result = await orchestrator(Run("chatcmpl-1", request, sink))
    assert result.content == "".join(data_of(sink, "text"))
    return result, sink


# Truncated answers


async def test_a_truncated_answer_is_continued() -> None:
    """The model is asked to continue, the pieces form one text, and the usage is the sum of all inferences."""
    usage = Usage(prompt_tokens=5, completion_tokens=2, total_tokens=7)
    engine = ScriptedEngine(answer_turn("One, |two, ", usage, "length"), answer_turn("three.", usage))
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
    """Tool calls in a continuation are run, and the assistant's message then has the whole text of the answer."""
    engine = ScriptedEngine(TRUNCATED, tool_call_turn(call("current_time"), text="let me see."), answer_turn("Noon."))
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [QUESTION]})
    result = await Orchestrator(engine, toolbox())(Run("chatcmpl-1", request, sink))
    assert result.content == "One, two, let me see.\n\nNoon."
    assert engine.conversations[2][1]["content"] == "One, two, let me see."
    assert [message["role"] for message in engine.conversations[2]] == ["user", "assistant", "tool"]


async def test_continuations_are_limited() -> None:
    """An answer that is always truncated is continued MAX_CONTINUATIONS times, and its finish_reason is length."""
    engine = ScriptedEngine(*[TRUNCATED] * (1 + MAX_CONTINUATIONS))
    result, _ = await outcome(engine)
    assert result.content == "One, two, " * (1 + MAX_CONTINUATIONS)
    assert result.finish_reason == "length"


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"response_format": {"type": "json_object"}}],
    ids=str,
)
async def test_not_every_truncated_answer_is_continued(fields: dict[str, Any]) -> None:
    """An answer at the client's own limit, or a JSON answer, is not continued and has finish_reason length."""
    result, _ = await outcome(ScriptedEngine(TRUNCATED), **fields)
    assert (result.content, result.finish_reason) == ("One, two, ", "length")


@pytest.mark.parametrize(
    "more", [answer_turn("", finish_reason="length"), [EngineError("busy")]], ids=["empty", "refused"]
)
async def test_an_answer_without_continuation_is_kept(more: Turn) -> None:
    """If the continuation is empty or refused, the truncated answer is kept with finish_reason length."""
    result, _ = await outcome(ScriptedEngine(TRUNCATED, more))
    assert (result.content, result.finish_reason) == ("One, two, ", "length")


async def test_a_continuation_that_breaks_is_a_failure() -> None:
    """An error after a part of the continuation was streamed ends the run."""
    with pytest.raises(EngineError, match="cut"):
        await outcome(ScriptedEngine(TRUNCATED, [EngineDelta(text="thr"), EngineError("cut")]))


async def test_trimming_for_a_continuation_keeps_question_and_answer() -> None:
    """If the conversation is too long for a continuation, the question and the truncated answer are kept."""
    engine = ScriptedEngine(TRUNCATED, [TOO_LONG], answer_turn("three."))
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


# Conversations that are too long


async def test_a_refused_conversation_is_trimmed_and_sent_again() -> None:
    """The oldest exchanges are dropped, the system message and the question are kept, and the events count the loss."""
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


async def test_a_trimmed_conversation_stays_trimmed() -> None:
    """Later turns of the run use the trimmed conversation, so that they are not refused again."""
    engine = ScriptedEngine([TOO_LONG], tool_call_turn(call("current_time")), answer_turn("Noon."))
    _, sink = await outcome(engine, SYSTEM, *HISTORY, QUESTION)
    assert engine.conversations[2][: len(engine.conversations[1])] == engine.conversations[1]
    assert "trimmed" not in data_of(sink, "inference_start")[2]


async def test_trimming_is_tried_a_few_times() -> None:
    """A conversation that the server still refuses after every step of TRIMMED_TO fails as context_length_exceeded."""
    engine = ScriptedEngine(*[[TOO_LONG]] * (1 + len(TRIMMED_TO)))
    with pytest.raises(EngineError) as caught:
        await outcome(engine, SYSTEM, *HISTORY, QUESTION)
    assert caught.value.code == CONTEXT_LENGTH
    sizes = [size_of(conversation) for conversation in engine.conversations]
    assert sizes == sorted(set(sizes), reverse=True)
    assert [engine.conversations[-1][0], engine.conversations[-1][-1]] == [SYSTEM, QUESTION]


async def test_a_question_that_is_too_long_fails_at_once() -> None:
    """A question that is too long by itself is not cut, and the server's refusal is raised."""
    engine = ScriptedEngine([TOO_LONG])
    with pytest.raises(EngineError, match="context length"):
        await outcome(engine, SYSTEM, QUESTION)
    assert len(engine.conversations) == 1


async def test_a_started_answer_is_not_repeated() -> None:
    """If the context is full in the middle of an answer, the error is raised and no text is streamed twice."""
    with pytest.raises(EngineError, match="context length"):
        await outcome(ScriptedEngine([EngineDelta(text="half"), TOO_LONG]), SYSTEM, *HISTORY, QUESTION)


async def test_a_known_context_window_is_respected() -> None:
    """With a known context window, a longer conversation is trimmed before it is sent, and a shorter one is not."""
    engine = ScriptedEngine(answer_turn("Fine."), answer_turn("Fine."))
    _, sink = await outcome(engine, SYSTEM, *HISTORY, QUESTION, context_tokens=4096)
    assert data_of(sink, "inference_start")[0]["trimmed"]["messages_dropped"] > 0
    assert size_of(engine.conversations[0]) < (4096 - 1024) * 3
    assert [engine.conversations[0][0], engine.conversations[0][-1]] == [SYSTEM, QUESTION]
    _, sink = await outcome(engine, QUESTION, context_tokens=4096)
    assert "trimmed" not in data_of(sink, "inference_start")[0]


async def test_trimming_for_a_summary_keeps_the_question() -> None:
    """If the conversation is trimmed for the summary, both the question and the summary prompt are kept."""
    long_calls = [call("text_statistics", f'{{"text": "{number}{"x" * 1500}"}}') for number in range(2)]
    engine = ScriptedEngine(
        tool_call_turn(long_calls[0]), tool_call_turn(long_calls[1]), [TOO_LONG], answer_turn("In short.")
    )
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [SYSTEM, QUESTION]})
    result = await Orchestrator(engine, toolbox(), max_turns=2)(Run("chatcmpl-1", request, sink))
    assert result.content == "In short."
    last = engine.conversations[-1]
    assert [last[0], last[1], last[-1]] == [SYSTEM, QUESTION, {"role": "user", "content": SUMMARY_PROMPT}]
    assert len(last) == len(engine.conversations[-2]) - 2
