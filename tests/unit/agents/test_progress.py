"""The progress of a run in a checkpoint: it is read as it was written, is bounded, and is refused if unreadable."""

import json
from typing import Any

import pytest

from agentstream.agents.checkpoint import MAX_STATE_BYTES, Restored, encode_state
from agentstream.agents.contract import Run, ToolResult
from agentstream.agents.orchestrator import Orchestrator
from agentstream.agents.orchestrator.json_rest import rest_of_object
from agentstream.agents.orchestrator.progress import OpenTurn, Progress, read_state
from agentstream.agents.orchestrator.turn import MAX_CONTINUATIONS, MAX_REST_TRIES
from agentstream.engines.base import CONTINUE_PROMPT, EngineDelta, EngineError, EngineToolCall, EngineToolCallDelta
from agentstream.errors import AgentError
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from tests.helpers import RecordingSink
from tests.scripted_engine import ScriptedEngine, answer_turn, call, tool_call_turn, toolbox
from tests.unit.agents.losing_runs import losing_run
from tests.unit.agents.planned_model import check_conversation

USAGE = Usage(prompt_tokens=5, completion_tokens=2, total_tokens=7)
TOO_LONG = EngineError("Error code: 400 - This model's maximum context length is 8192 tokens.")


def progress_of(turns: int, result: str) -> Progress:
    """Return the progress after so many turns, each with one call and this result."""
    progress = Progress(usages=[USAGE] * turns, turns=turns)
    for number in range(turns):
        made = EngineToolCall(f"c{number}", "look", json.dumps({"n": number}))
        progress.guard.refusal(made)
        function = {"name": made.name, "arguments": made.arguments}
        calls = [{"id": made.id, "type": "function", "function": function}]
        progress.added += [
            {"role": "assistant", "content": f"turn {number}", "tool_calls": calls},
            {"role": "tool", "tool_call_id": made.id, "content": f"Error: {result}"},
        ]
        progress.results[made.id] = ToolResult("look", result, success=False, latency_seconds=0.5)
    return progress


def stored(progress: Progress) -> Progress:
    """Return a progress after the way through a checkpoint."""
    return read_state(json.loads(encode_state(progress.as_state())))


def test_a_progress_is_read_as_it_was_written() -> None:
    """Every part of a progress survives a checkpoint; usages become their sum."""
    progress = progress_of(3, "it rained")
    progress.open_turn = OpenTurn("so far", {"reasoning_content": "r"}, [call("look")], {"c1": "refused"}, ["c2"], 2)
    copy = stored(progress)
    assert (copy.added, copy.turns, copy.results, copy.open_turn) == (
        progress.added,
        progress.turns,
        progress.results,
        progress.open_turn,
    )
    assert copy.guard.counts() == progress.guard.counts()
    assert copy.usage() == Usage(prompt_tokens=15, completion_tokens=6, total_tokens=21)
    assert stored(Progress(usages=[USAGE, None])).usage() is None
    assert stored(Progress()).usages == []


@pytest.mark.parametrize("result", ["x" * 20_000, "ü\n" * 10_000, "\x01" * 20_000], ids=["text", "bytes", "escapes"])
def test_a_state_is_bounded(result: str) -> None:
    """However many long results there are, the state fits; the latest turn is kept, and calls keep their results."""
    copy = stored(progress_of(300, result))
    check_conversation([{**message, "reasoning_content": ""} for message in copy.added])
    assert copy.added[-2]["content"] == "turn 299"
    assert len(copy.added) >= 2
    assert len(copy.results) == 300
    assert copy.turns == 300


def test_a_bounded_state_keeps_the_messages_of_people() -> None:
    """Messages that people sent to the run are not left out of a state, however old they are."""
    progress = progress_of(1500, "x" * 2000)
    progress.added.insert(4, {"role": "user", "content": "in euros"})
    assert stored(progress).inputs == [{"role": "user", "content": "in euros"}]


async def test_a_turn_that_is_too_large_cannot_be_continued() -> None:
    """If the latest turn alone is too large for a checkpoint, the loss of the run fails it with a clear code."""
    huge = json.dumps({"text": "x" * MAX_STATE_BYTES})
    state = Progress(open_turn=OpenTurn(calls=[EngineToolCall("c1", "look", huge)])).as_state()
    assert len(encode_state(state)) < 100
    with pytest.raises(AgentError, match="too large") as caught:
        read_state(state)
    assert caught.value.code == "resume_failed"


@pytest.mark.parametrize(
    "state", [{"v": 2}, {}, [], "text", 7, {"v": 1}, {"v": 1, "open_turn": None, "usage": None}], ids=str
)
async def test_an_unreadable_state_is_refused(state: Any) -> None:
    """A state of another version, or a damaged one, fails the run as resume_failed before anything is sent."""
    sink = RecordingSink()
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": [{"role": "user", "content": "hi"}]})
    run = Run("chatcmpl-1", request, sink)
    run.restore(Restored(state=state), 0)
    with pytest.raises(AgentError, match="the checkpoint of the orchestrator") as caught:
        await Orchestrator(ScriptedEngine(), toolbox())(run)
    assert caught.value.code == "resume_failed"
    assert sink.facts == []


# The rest of a JSON text


@pytest.mark.parametrize(
    ("beginning", "answer", "rest"),
    [
        ('{"a": "x', ' y"}', ' y"}'),
        ('{"a": ', "```json\n1}\n```", "1}"),
        ('{"a": ', '{"a": 1}', "1}"),
        ('{"a": ', ' \n{"a": 1}\n', "1}"),
        ("", '{"a": 1}', '{"a": 1}'),
        ('{"a": ', '{"b": 1}', None),
        ('{"a": ', "I am sorry.", None),
        ('{"a": ', "1", None),
        ("", "[1]", None),
        ("", "", None),
    ],
)
def test_the_rest_completes_the_object(beginning: str, answer: str, rest: str | None) -> None:
    """The rest is accepted alone, in the whole object or in a fence, if both parts together are an object."""
    assert rest_of_object(beginning, answer) == rest


BOOK = {"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {}}}}


def delta(name: str, arguments: str) -> Any:
    return EngineToolCallDelta(0, "call_1", name, arguments)


async def test_a_call_that_the_model_cannot_complete_fails_the_run() -> None:
    """If the model twice does not complete the arguments that the client has, the run fails, and nothing is added."""
    begun = [EngineDelta(text="Well."), EngineDelta(tool_call_deltas=[delta("book", '{"city": "Os')])]
    engine = ScriptedEngine([*begun, EngineDelta(finish_reason="stop")], *[answer_turn("I am sorry.")] * MAX_REST_TRIES)
    run = losing_run(engine, fields={"tools": [BOOK]})
    await run.attempt(4)
    with pytest.raises(AgentError, match="could not complete") as caught:
        await run.attempt()
    assert caught.value.code == "resume_failed"
    assert len(engine.conversations) == 1 + MAX_REST_TRIES


async def test_a_rejected_answer_is_not_shown() -> None:
    """Clients see nothing of an answer that does not complete a JSON text, and the next answer may complete it."""
    begun = [EngineDelta(tool_call_deltas=[delta("book", '{"city": "Os')]), EngineDelta(finish_reason="stop")]
    engine = ScriptedEngine(begun, answer_turn("I am sorry."), answer_turn('lo"}'))
    run = losing_run(engine, fields={"tools": [BOOK]})
    await run.attempt(3)
    result = await run.attempt()
    assert result is not None
    assert run.fold().content == ""
    assert [made["function"]["arguments"] for made in run.fold().tool_calls] == ['{"city": "Oslo"}']
    assert engine.choices[1:] == ["none", "none"]
    assert [end["finish_reason"] for end in run.data_of("inference_end")] == ["worker_lost", "rejected", "accepted"]


# Requests after a loss


async def test_a_lost_conversation_is_trimmed_again() -> None:
    """If the model server refuses the continuation as too long, the conversation is trimmed, and the text goes on."""
    looks = [tool_call_turn(call("look", json.dumps({"n": n}), f"c{n}"), usage=USAGE) for n in range(3)]
    engine = ScriptedEngine(*looks, answer_turn("One, |two, |three."), [TOO_LONG], answer_turn("two, |three."))
    run = losing_run(engine)
    await run.attempt(3 * 6 + 3)
    result = await run.attempt()
    assert result is not None
    assert run.fold().content == "One, two, three."
    assert run.data_of("inference_start")[-1]["trimmed"]["messages_dropped"] > 0
    assert engine.conversations[-1][-2:] == [
        {"role": "assistant", "content": "One, "},
        {"role": "user", "content": CONTINUE_PROMPT},
    ]
    assert len(engine.conversations[-1]) < len(engine.conversations[-2])


async def test_a_continuation_keeps_the_clients_limit() -> None:
    """The text that was shown counts for the client's limit of output tokens."""
    limits: list[int | None] = []

    class Limited(ScriptedEngine):
        def stream(self, request: ChatCompletionRequest, *rest: Any) -> Any:
            limits.append(request.output_token_limit)
            return super().stream(request, *rest)

    engine = Limited(answer_turn("x" * 80), answer_turn("y"))
    run = losing_run(engine, fields={"max_tokens": 50})
    await run.attempt(3)
    await run.attempt()
    assert limits == [50, 30]


async def test_a_model_error_after_a_loss_ends_the_run() -> None:
    """If the model server cannot continue the text that clients have seen, the run fails with its error."""
    run = losing_run(ScriptedEngine(answer_turn("One, |two."), [EngineError("busy")]))
    await run.attempt(3)
    with pytest.raises(EngineError, match="busy"):
        await run.attempt()


async def test_continuations_are_limited_over_all_attempts() -> None:
    """A truncated answer is continued MAX_CONTINUATIONS times, also if the worker is lost in between."""
    truncated = answer_turn("One, ", finish_reason="length")
    engine = ScriptedEngine(*[truncated] * (1 + MAX_CONTINUATIONS + 2))
    run = losing_run(engine)
    await run.attempt(4 + 4 + 4 + 2)  # the third continuation has written its text
    result = await run.attempt()
    assert result is not None
    assert result.finish_reason == "length"
    reasons = [end["finish_reason"] for end in run.data_of("inference_end")]
    assert reasons.count("length") == 1 + MAX_CONTINUATIONS


async def test_a_fixed_summary_is_written_once() -> None:
    """If the worker is lost after the fixed summary, which follows a failed inference, the model is not asked again."""
    engine = ScriptedEngine(tool_call_turn(call("look", '{"n": 1}')), [EngineError("busy")])
    run = losing_run(engine, max_turns=1)
    await run.attempt()
    whole = run.fold().content
    assert whole.startswith("I stopped after 1 turn")
    again = losing_run(ScriptedEngine(), max_turns=1)
    again.attempts = [run.facts[:-1]]
    result = await again.attempt()
    assert result is not None
    assert again.fold().content == result.content == whole
