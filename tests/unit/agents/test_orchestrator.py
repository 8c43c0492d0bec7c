"""The built-in agent with a scripted engine and a recording sink."""

import asyncio
from typing import Any

import pytest

from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.orchestrator import Orchestrator
from agentstream.engines.base import SUMMARY_PROMPT, EngineDelta, EngineError
from agentstream.engines.demo import BuiltinEngine
from agentstream.errors import InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import TEXT
from agentstream.protocol.openai import Usage
from tests.helpers import TIMEOUT_S, RecordingSink
from tests.scripted_engine import WAIT, ScriptedEngine, Turn, answer_turn, call, data_of, kinds, tool_call_turn, toolbox
from tests.unit.agents.orchestrated import (
    Failing,
    Meeting,
    assert_content_is_the_streamed_text,
    emitted,
    result_of,
    run_of,
)

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


# Turns


async def test_an_answer_is_streamed() -> None:
    """The text is written piece by piece between inference_start and inference_end, and is the result's content."""
    result, sink = await result_of(ScriptedEngine(answer_turn("Hel|lo", usage(5, 2))))
    ended = {"model": "m1", "usage": USAGE, "content": "Hello", "tool_calls": [], "finish_reason": "stop"}
    assert sink.facts == [
        ("agent_turn_start", {"agent": "orchestrator", "input": "what is 17*23?"}),
        ("inference_start", {"model": "m1", "engine": "scripted"}),
        (TEXT, "Hel"),
        (TEXT, "lo"),
        ("inference_end", ended),
        ("agent_turn_end", {"agent": "orchestrator", "turns": 1}),
    ]
    assert result == AgentResult(content="Hello", metadata=USAGE)


async def test_tools_are_run_and_their_results_given_to_the_model() -> None:
    """The calls of a turn run between their events, the model gets the results, and an empty line separates texts."""
    first_turn = tool_call_turn(call("calculator", '{"expression": "17*23"}'), text="Let me see.", usage=usage(20, 8))
    engine = ScriptedEngine(first_turn, answer_turn("It is |391.", usage(40, 7)))
    result, sink = await result_of(engine)
    assert " ".join(kinds(sink)) == (
        "agent_turn_start inference_start text inference_end "
        "tool_call_start run_checkpoint tool_call_end run_checkpoint "
        "inference_start text text inference_end agent_turn_end"
    )
    function = {"name": "calculator", "arguments": '{"expression": "17*23"}'}
    assert data_of(sink, "inference_end")[0]["tool_calls"] == [{"id": "c1", **function}]
    (start,) = data_of(sink, "tool_call_start")
    assert start == {
        "tool": "calculator",
        "arguments": function["arguments"],
        "tool_call_id": "c1",
        "agent": "orchestrator",
    }
    (end,) = data_of(sink, "tool_call_end")
    latency = end.pop("latency")
    assert end == {
        "tool": "calculator",
        "success": True,
        "result": "391",
        "tool_call_id": "c1",
        "agent": "orchestrator",
    }
    assert 0 <= latency < TIMEOUT_S
    calls = [{"id": "c1", "type": "function", "function": function}]
    assert engine.conversations[1][1:] == [
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "391"},
    ]
    assert result.content == "Let me see.\n\nIt is 391."
    (tool_result,) = result.tool_results
    assert (tool_result.tool_name, tool_result.content, tool_result.success) == ("calculator", "391", True)
    assert result.metadata == {"prompt_tokens": 60, "completion_tokens": 15, "total_tokens": 75}
    assert result.finish_reason == "stop"


async def test_without_the_usage_of_a_turn_there_is_no_sum() -> None:
    """If the engine reports no usage for one turn, neither this turn nor the result has a usage."""
    engine = ScriptedEngine(tool_call_turn(call("current_time"), usage=usage(20, 8)), answer_turn("Noon."))
    result, sink = await result_of(engine)
    assert "usage" not in data_of(sink, "inference_end")[1]
    assert result.metadata == {}
    assert result.usage() is None


async def test_a_turn_without_text_leaves_no_gap() -> None:
    """Turns without text add nothing to the content, not even an empty line."""
    silent = tool_call_turn(call("current_time"))
    engine = ScriptedEngine(silent, tool_call_turn(call("current_time"), text="One."), silent, answer_turn("Two."))
    result, _ = await result_of(engine)
    assert result.content == "One.\n\nTwo."
    empty, _ = await result_of(ScriptedEngine(silent, answer_turn("")))
    assert empty.content == ""


async def test_the_models_finish_reason_is_kept() -> None:
    """The last turn's finish_reason is the run's if it is length or content_filter, and any other becomes stop."""
    for reason, expected in (("length", "length"), ("content_filter", "content_filter"), ("eos", "stop")):
        result, _ = await result_of(ScriptedEngine(answer_turn("", finish_reason=reason)))
        assert result.finish_reason == expected


async def test_calls_of_a_truncated_turn_are_not_run() -> None:
    """If the model ran out of tokens while it wrote its calls, none of them runs."""
    engine = ScriptedEngine([EngineDelta(tool_calls=[call("current_time", '{"pl')], finish_reason="length")])
    result, sink = await result_of(engine)
    assert "tool_call_start" not in kinds(sink)
    assert (result.finish_reason, result.tool_results) == ("length", [])


TRIED = "I stopped after 2 turns without an answer. I tried: "


@pytest.mark.parametrize(
    "summary", [answer_turn(""), [EngineError("no tools, no answer")], tool_call_turn(call("current_time"))]
)
async def test_without_a_summary_the_answer_lists_the_tools(summary: Turn) -> None:
    """If the model gives no summary after max_turns, the text lists the tools, with finish_reason length."""
    calls = call("current_time"), call("failing", call_id="c2")
    engine = ScriptedEngine(tool_call_turn(*calls, text="Hm."), tool_call_turn(calls[0]), summary)
    result, sink = await result_of(engine, Failing(), max_turns=2)
    assert result.content == f"Hm.\n\n{TRIED}current_time (2 calls), failing (1 call, 1 failed)."
    assert result.finish_reason == "length"
    assert len(result.tool_results) == 3
    assert data_of(sink, "agent_turn_end") == [{"agent": "orchestrator", "turns": 2}]


async def test_the_model_summarises_after_the_last_turn() -> None:
    """After max_turns the model is asked for a summary without tool calls, and the usage includes the summary."""
    engine = ScriptedEngine(
        tool_call_turn(call("current_time"), usage=usage(20, 8)), answer_turn("It is |late.", usage(40, 2))
    )
    result, _ = await result_of(engine, max_turns=1)
    assert (result.content, result.finish_reason) == ("It is late.", "length")
    assert engine.choices == [None, "none"]
    assert engine.offered[1] == engine.offered[0]  # servers refuse a conversation with calls and no tools
    assert engine.conversations[1][-1] == {"role": "user", "content": SUMMARY_PROMPT}
    assert engine.conversations[1][-2]["role"] == "tool"
    assert result.metadata["total_tokens"] == 70


async def test_a_summary_that_breaks_is_a_failure() -> None:
    """An error after a part of the summary was streamed ends the run."""
    engine = ScriptedEngine(tool_call_turn(call("current_time")), [EngineDelta(text="half"), EngineError("cut")])
    with pytest.raises(EngineError, match="cut"):
        await Orchestrator(engine, toolbox(), max_turns=1)(run_of()[0])


async def test_the_demo_summarises() -> None:
    """When the demo engine is asked for a summary, it answers with the results so far."""
    run, _ = run_of({"role": "user", "content": "what is 17*23?"})
    result = await Orchestrator(BuiltinEngine(), toolbox(), max_turns=1)(run)
    assert result.content == "17*23 = 391."


def test_max_turns_is_at_least_one() -> None:
    """An orchestrator with max_turns 0 cannot be created."""
    with pytest.raises(ValueError, match="at least 1"):
        Orchestrator(ScriptedEngine(), toolbox(), max_turns=0)


# Requests to the model


async def test_every_turn_offers_the_tools() -> None:
    """Every turn offers the tools of the toolbox to the model."""
    engine = ScriptedEngine(tool_call_turn(call("current_time")), answer_turn("Done."))
    await result_of(engine)
    assert engine.offered == [["calculator", "current_time", "text_statistics"]] * 2


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_a_clients_system_message_replaces_the_system_prompt(role: str) -> None:
    """The system prompt is the first message, unless the conversation has a system or developer message."""
    engine = ScriptedEngine(answer_turn("Hi"), answer_turn("Hi"))
    orchestrator = Orchestrator(engine, toolbox(), system_prompt="Be brief.")
    await orchestrator(run_of()[0])
    await orchestrator(run_of({"role": role, "content": "Be long."}, {"role": "user", "content": "hi"})[0])
    assert [message["content"] for message in engine.conversations[0]] == ["Be brief.", "what is 17*23?"]
    assert [message["content"] for message in engine.conversations[1]] == ["Be long.", "hi"]


async def test_the_conversation_is_passed_on_without_nulls() -> None:
    """The model receives the client's messages with content parts and unknown fields, but without null fields."""
    sent: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache": True}], "name": None},
        {"role": "assistant", "content": None, "mood": "good", "tool_calls": None},
        {"role": "user", "content": "again"},
    ]
    engine = ScriptedEngine(answer_turn("Hi"))
    _, sink = await result_of(engine, messages=sent)
    sent[0].pop("name")
    assert engine.conversations[0] == [sent[0], {"role": "assistant", "mood": "good"}, sent[2]]
    assert data_of(sink, "agent_turn_start")[0]["input"] == "again"


# Failures and cancellation


async def test_an_engines_error_ends_the_run_with_its_text() -> None:
    """An EngineError is raised unchanged, because the client's error text depends on it."""
    engine = ScriptedEngine([EngineDelta(text="half"), EngineError("Error code: 400 - no")])
    with pytest.raises(EngineError, match="Error code: 400 - no"):
        await Orchestrator(engine, toolbox())(run_of()[0])


async def test_an_answer_without_a_finish_reason_is_an_error() -> None:
    """If the engine's answer ends without a finish_reason, EngineError is raised."""
    with pytest.raises(EngineError, match="without a finish_reason"):
        await Orchestrator(ScriptedEngine([EngineDelta(text="half")]), toolbox())(run_of()[0])


async def test_cancelling_closes_the_engines_iterator() -> None:
    """Cancelling a run that waits for the model closes the engine's request."""
    engine = ScriptedEngine([EngineDelta(text="half"), WAIT])
    task = asyncio.create_task(Orchestrator(engine, toolbox())(run_of()[0]))
    async with asyncio.timeout(TIMEOUT_S):
        await engine.silent.wait()
        assert engine.open == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert engine.open == 0


async def test_cancelling_while_there_is_no_room_closes_the_engines_iterator() -> None:
    """Cancelling a run that waits for room in the sink closes the engine's request too."""

    class FullSink(RecordingSink):
        async def wait_for_room(self) -> None:
            await asyncio.get_running_loop().create_future()

    engine = ScriptedEngine(answer_turn("Hel|lo"))
    sink = FullSink()
    task = asyncio.create_task(Orchestrator(engine, toolbox())(Run("chatcmpl-1", run_of()[0].request, sink)))
    async with asyncio.timeout(TIMEOUT_S):
        await emitted(sink, TEXT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert engine.open == 0


async def test_cancelling_stops_the_tools() -> None:
    """Cancelling a run cancels all its running tools."""
    meeting = Meeting(3)
    engine = ScriptedEngine(tool_call_turn(call("meeting"), call("meeting", call_id="c2")))
    task = asyncio.create_task(Orchestrator(engine, toolbox(meeting))(run_of()[0]))
    async with asyncio.timeout(TIMEOUT_S):
        await meeting.arrivals.acquire()
        await meeting.arrivals.acquire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert meeting.cancelled == 2


@pytest.mark.parametrize("fault", [RunCancelled("gone"), InvalidAgentOutput("too large")])
async def test_an_error_of_emit_is_raised_without_a_group(fault: Exception) -> None:
    """An error that emit raises while tools run is raised itself, not inside an exception group."""

    class RefusingSink(RecordingSink):
        def put(self, event_type: str, data: Any) -> None:
            super().put(event_type, data)
            if event_type == "tool_call_end":
                raise fault

    engine = ScriptedEngine(tool_call_turn(call("current_time"), call("current_time")))
    with pytest.raises(type(fault), match=str(fault)):
        await Orchestrator(engine, toolbox())(Run("chatcmpl-1", run_of()[0].request, RefusingSink()))


# With the demo engine


async def test_the_demo_answers_with_real_tools() -> None:
    """The demo engine answers two parts of a question with two tool calls in one turn and reports the failed call."""
    run, sink = run_of({"role": "user", "content": "what is 17*23, and the time in Atlantis?"})
    result = await Orchestrator(BuiltinEngine(), toolbox())(run)
    assert_content_is_the_streamed_text(result, sink)
    assert result.content.startswith("17*23 = 391. I could not tell the time in Atlantis: no time zone is known")
    assert kinds(sink)[3:8] == ["tool_call_start"] * 2 + ["run_checkpoint"] + ["tool_call_end"] * 2
    assert result.metadata["total_tokens"] > 0
