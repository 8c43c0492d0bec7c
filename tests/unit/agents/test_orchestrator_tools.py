"""The tool calls of the built-in agent."""

import asyncio

import pytest

from agentstream.agents.orchestrator import Orchestrator
from agentstream.engines.base import EngineToolCall
from tests.helpers import TIMEOUT_S
from tests.scripted_engine import ScriptedEngine, answer_turn, call, data_of, kinds, tool_call_turn, toolbox
from tests.unit.agents.orchestrated import (
    Failing,
    Meeting,
    emitted,
    result_of,
    run_of,
)


async def test_tools_of_a_turn_run_concurrently() -> None:
    """All calls of a turn run concurrently, so that three calls that wait for each other return."""
    calls = [call("meeting", f'{{"n": {n}}}', f"c{n}") for n in (1, 2, 3)]
    engine = ScriptedEngine(tool_call_turn(*calls), answer_turn("Done."))
    result, sink = await result_of(engine, Meeting(3))
    assert kinds(sink)[3:10] == ["tool_call_start"] * 3 + ["run_checkpoint"] + ["tool_call_end"] * 3
    assert [tool_result.content for tool_result in result.tool_results] == ["met 1", "met 2", "met 3"]
    assert [message["content"] for message in engine.conversations[1][-3:]] == ["met 1", "met 2", "met 3"]


async def test_a_result_is_reported_at_once() -> None:
    """A fast tool's tool_call_end is emitted while a slow tool runs, but the results keep the order of the calls."""
    engine = ScriptedEngine(
        tool_call_turn(call("meeting", call_id="slow"), call("current_time", call_id="quick")), answer_turn("Ok.")
    )
    run, sink = run_of()
    meeting = Meeting(2)
    task = asyncio.create_task(Orchestrator(engine, toolbox(meeting))(run))
    async with asyncio.timeout(TIMEOUT_S):
        await emitted(sink, "tool_call_end")
        await meeting.run({})  # the second call: now the slow tool can end
        result = await task
    assert [data["tool_call_id"] for data in data_of(sink, "tool_call_end")] == ["quick", "slow"]
    assert [tool_result.tool_name for tool_result in result.tool_results] == ["meeting", "current_time"]


@pytest.mark.parametrize(
    ("tool_call", "reason", "arguments_kept"),
    [
        (call("failing"), "it rained", "{}"),
        (call("telepathy"), "there is no tool called 'telepathy'", "{}"),
        (call("calculator", '{"expression": '), "not valid JSON", "{}"),
        (call("calculator", ""), "expression is required", "{}"),
        (call("calculator", "[1]"), "must be one JSON object", "{}"),
        (call("calculator", '{"formula": "1"}'), "formula is unknown", '{"formula": "1"}'),
        (call("meeting"), "took longer than 0.05 s", "{}"),
    ],
)
async def test_the_model_reads_why_a_call_failed(tool_call: EngineToolCall, reason: str, arguments_kept: str) -> None:
    """A failed call does not end the run: the model gets the reason, and malformed arguments are replaced by {}."""
    engine = ScriptedEngine(tool_call_turn(tool_call), answer_turn("Sorry."))
    result, sink = await result_of(engine, Failing(), Meeting(2), timeout_s=0.05)
    assert data_of(sink, "tool_call_start")[0]["arguments"] == tool_call.arguments
    assert data_of(sink, "tool_call_end")[0]["success"] is False
    assert reason in data_of(sink, "tool_call_end")[0]["result"]
    assistant, tool_message = engine.conversations[1][-2:]
    assert tool_message["content"].startswith("Error: ")
    assert reason in tool_message["content"]
    assert assistant["tool_calls"][0]["function"]["arguments"] == arguments_kept
    assert result.content == "Sorry."
    assert [tool_result.success for tool_result in result.tool_results] == [False]


async def test_a_repeated_call_is_refused_and_then_ends_the_run() -> None:
    """The same call runs three times, is then refused, and at the fifth time the model must write a summary."""
    spellings = ['{"expression": "1+1"}', '{"expression":"1+1"}', '{ "expression": "1+1" }']
    turns = [tool_call_turn(call("calculator", spellings[number % 3])) for number in range(5)]
    engine = ScriptedEngine(*turns, answer_turn("I keep going in circles."))
    result, sink = await result_of(engine)
    assert [tool_result.success for tool_result in result.tool_results] == [True] * 3 + [False] * 2
    assert len(data_of(sink, "tool_call_start")) == len(data_of(sink, "tool_call_end")) == 5
    refusal = engine.conversations[4][-1]["content"]
    assert refusal.startswith(
        "Error: calculator was not run: you have already called it 3 times with the same arguments."
    )
    assert engine.choices[-1] == "none"
    assert (result.content, result.finish_reason) == ("I keep going in circles.", "length")


async def test_different_calls_are_no_loop() -> None:
    """Any number of calls with different arguments run, and so do two equal calls in one turn."""
    turns = [tool_call_turn(call("calculator", f'{{"expression": "{number}"}}')) for number in range(8)]
    same = call("calculator", '{"expression": "7"}')
    result, _ = await result_of(ScriptedEngine(*turns, tool_call_turn(same, same), answer_turn("Done.")))
    assert [tool_result.success for tool_result in result.tool_results] == [True] * 10
    assert result.finish_reason == "stop"


async def test_call_ids_are_unique_in_a_run() -> None:
    """Calls with the same id or without an id get unique ids, which are the same in the events and the conversation."""
    same = call("current_time")
    engine = ScriptedEngine(
        tool_call_turn(same, same, call("current_time", call_id="")), tool_call_turn(same), answer_turn("Done.")
    )
    _, sink = await result_of(engine)
    ids = [data["tool_call_id"] for data in data_of(sink, "tool_call_start")]
    assert ids == ["c1", "c1_2", "call", "c1_3"]
    assert [message["tool_call_id"] for message in engine.conversations[2] if message["role"] == "tool"] == ids


async def test_the_agent_works_as_a_sub_agent() -> None:
    """As a sub-agent it calls tools and makes no checkpoints, because these belong to the whole run."""
    engine = ScriptedEngine(tool_call_turn(call("current_time")), answer_turn("Noon."))
    run, sink = run_of()
    result = await Orchestrator(engine, toolbox())(run.child("helper"))
    assert result.content == "Noon."
    assert "run_checkpoint" not in kinds(sink)
    assert data_of(sink, "tool_call_end")[0]["agent_path"] == ["helper"]
