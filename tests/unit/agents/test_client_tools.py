"""The orchestrator with the client's tools: which tools are offered, and how calls and results are exchanged."""

from collections.abc import Sequence
from typing import Any

import pytest

from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.orchestrator import Orchestrator
from agentstream.engines.base import EngineDelta, EngineToolCallDelta
from agentstream.protocol.events import REASONING, TOOL_CALL_DELTA, Event
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.stream.transcript import AnswerFold
from tests.helpers import RecordingSink
from tests.scripted_engine import ScriptedEngine, answer_turn, call, data_of, kinds, tool_call_turn, toolbox

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}, "strict": True},
}
OWN = ["calculator", "current_time", "text_statistics"]
QUESTION = {"role": "user", "content": "what now?"}


def tool_named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Mine."}}


async def outcome(
    engine: ScriptedEngine, *messages: dict[str, Any], max_turns: int = 10, **fields: Any
) -> tuple[AgentResult, RecordingSink, AnswerFold]:
    """Run a request; return the result, the sink, and the answer that a client assembles from the events."""
    sink = RecordingSink()
    body = {"model": "m1", "messages": messages or [QUESTION], "tools": [WEATHER], **fields}
    request = ChatCompletionRequest.model_validate(body)
    result = await Orchestrator(engine, toolbox(), max_turns=max_turns)(Run("chatcmpl-1", request, sink))
    result.check()
    completion = AnswerFold()
    for seq, (kind, data) in enumerate(sink.facts, 1):
        completion.receive(Event(1, seq, kind, data))
    assert completion.content == result.content
    return result, sink, completion


def function_calls(completion: AnswerFold) -> list[tuple[str, str, str]]:
    return [(tool_call["id"], *tool_call["function"].values()) for tool_call in completion.tool_calls]


async def test_a_clients_call_ends_the_run() -> None:
    """A call of the client's tool is sent to the client, and the run ends with finish_reason tool_calls."""
    engine = ScriptedEngine(tool_call_turn(call("get_weather", '{"city": "Oslo"}'), text="I will look."))
    result, sink, completion = await outcome(engine)
    assert function_calls(completion) == [("c1", "get_weather", '{"city": "Oslo"}')]
    assert (result.content, result.finish_reason, result.tool_results) == ("I will look.", "tool_calls", [])
    assert "tool_call_start" not in kinds(sink)
    assert engine.offered == [["get_weather", *OWN]]


async def test_the_definition_reaches_the_engine_as_it_was_sent() -> None:
    """The engine receives the client's tool definition unchanged, with strict and without omitted fields."""
    engine = ScriptedEngine(answer_turn("Hi"))
    await outcome(engine)
    assert engine.schemas[0][0].in_openai_form() == WEATHER


async def test_a_call_is_streamed_while_the_model_writes_it() -> None:
    """Pieces of a call of the client's tool are streamed at once, but pieces of an own tool's call are not."""
    turn = [
        EngineDelta(reasoning="hm"),
        EngineDelta(tool_call_deltas=[EngineToolCallDelta(0, "a", "", "")]),
        EngineDelta(
            tool_call_deltas=[
                EngineToolCallDelta(0, "a", "get_weather", '{"ci'),
                EngineToolCallDelta(1, "b", "calculator", "{}"),
            ]
        ),
        EngineDelta(tool_call_deltas=[EngineToolCallDelta(0, "", "", 'ty": 1}')]),
        EngineDelta(
            tool_calls=[call("get_weather", '{"city": 1}', "a"), call("calculator", "{}", "b")],
            finish_reason="tool_calls",
        ),
    ]
    _, sink, completion = await outcome(ScriptedEngine(turn))
    assert data_of(sink, TOOL_CALL_DELTA) == [
        {"index": 0, "id": "a", "name": "get_weather", "arguments": '{"ci'},
        {"index": 0, "arguments": 'ty": 1}'},
    ]
    assert data_of(sink, REASONING) == ["hm"]
    assert function_calls(completion) == [("a", "get_weather", '{"city": 1}')]
    reported = [(tool_call["id"], tool_call["name"]) for tool_call in data_of(sink, "inference_end")[0]["tool_calls"]]
    assert reported == [("a", "get_weather"), ("b", "calculator")]


async def test_own_tools_do_not_run_in_a_turn_that_calls_a_clients_tool() -> None:
    """If a turn calls a client's tool and an own tool, only the client's call is sent and no tool runs."""
    both = tool_call_turn(call("calculator", '{"expression": "1+1"}', "a"), call("get_weather", "{}", "b"))
    result, sink, completion = await outcome(ScriptedEngine(both))
    assert function_calls(completion) == [("b", "get_weather", "{}")]
    assert "tool_call_start" not in kinds(sink)
    assert result.finish_reason == "tool_calls"


async def test_own_tools_run_in_earlier_turns() -> None:
    """Own tools of earlier turns run, and their results are in the result of a run that a client's call ends."""
    engine = ScriptedEngine(
        tool_call_turn(call("calculator", '{"expression": "1+1"}')), tool_call_turn(call("get_weather"))
    )
    result, sink, completion = await outcome(engine)
    assert [tool_result.content for tool_result in result.tool_results] == ["2"]
    assert function_calls(completion) == [("c1_2", "get_weather", "{}")]
    assert kinds(sink).count("tool_call_end") == 1


async def test_the_next_request_brings_the_results() -> None:
    """The model receives the calls and results of the next request unchanged, and its new calls get unused ids."""
    asked = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    history: list[dict[str, Any]] = [
        QUESTION,
        {"role": "assistant", "tool_calls": [asked], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "nobody knows", "content": "?"},
    ]
    engine = ScriptedEngine(tool_call_turn(call("get_weather", "{}", "c1")))
    _, _, completion = await outcome(engine, *history)
    assert engine.conversations == [history]
    assert function_calls(completion) == [("c1_2", "get_weather", "{}")]


async def test_a_clients_tool_replaces_an_own_tool_of_the_same_name() -> None:
    """If a client's tool has the name of an own tool, only the client's is offered, and calls go to the client."""
    engine = ScriptedEngine(tool_call_turn(call("calculator", '{"a": 1}')))
    result, sink, completion = await outcome(engine, tools=[tool_named("calculator")])
    assert engine.offered == [["calculator", "current_time", "text_statistics"]]
    assert engine.schemas[0][0].description == "Mine."
    assert function_calls(completion) == [("c1", "calculator", '{"a": 1}')]
    assert (result.finish_reason, "tool_call_start" in kinds(sink)) == ("tool_calls", False)


async def test_none_removes_the_clients_tools_only() -> None:
    """With tool_choice none only the own tools are offered, and the engine receives no tool_choice."""
    engine = ScriptedEngine(answer_turn("Hi"))
    await outcome(engine, tool_choice="none")
    assert (engine.offered, engine.choices) == ([OWN], [None])


@pytest.mark.parametrize("choice", [None, "auto"])
async def test_auto_is_passed_on(choice: str | None) -> None:
    """Without a forced choice every turn offers the client's and the own tools, with the client's tool_choice."""
    engine = ScriptedEngine(tool_call_turn(call("current_time")), answer_turn("Hi"))
    await outcome(engine, tool_choice=choice)
    assert engine.choices == [choice] * 2
    assert engine.offered == [["get_weather", *OWN]] * 2


async def test_required_applies_to_every_turn() -> None:
    """With tool_choice required the model may call own tools first, but the last turn offers the client's only."""
    engine = ScriptedEngine(*[tool_call_turn(call("current_time"))] * 2, tool_call_turn(call("get_weather")))
    result, _, _ = await outcome(engine, tool_choice="required", max_turns=3)
    assert engine.choices == ["required"] * 3
    assert engine.offered == [["get_weather", *OWN]] * 2 + [["get_weather"]]
    assert result.finish_reason == "tool_calls"


async def test_a_named_tool_is_required_once() -> None:
    """A tool_choice that names a tool applies to the first turn only."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    engine = ScriptedEngine(tool_call_turn(call("current_time")), answer_turn("Hi"))
    await outcome(engine, tool_choice=named)
    assert engine.choices == [named, None]


async def test_a_truncated_call_ends_the_run_with_length() -> None:
    """If the model ran out of tokens within a client's call, the finish_reason is length, as in OpenAI's API."""
    part = EngineDelta(tool_call_deltas=[EngineToolCallDelta(0, "a", "get_weather", '{"ci')])
    truncated = [part, EngineDelta(tool_calls=[call("get_weather", '{"ci', "a")], finish_reason="length")]
    result, _, completion = await outcome(ScriptedEngine(truncated))
    assert (result.finish_reason, function_calls(completion)) == ("length", [("a", "get_weather", '{"ci')])


async def test_each_call_has_a_unique_id() -> None:
    """Calls with the same id or without an id get unique ids, both streamed calls and complete ones."""
    parts = [EngineToolCallDelta(0, "x", "get_weather", "{}"), EngineToolCallDelta(1, "x", "get_weather", "{}")]
    calls = [call("get_weather", "{}", "x")] * 2 + [call("get_weather", "{}", "")] * 2
    turn: Sequence[EngineDelta] = [
        EngineDelta(tool_call_deltas=parts),
        EngineDelta(tool_calls=calls, finish_reason="stop"),
    ]
    result, _, completion = await outcome(ScriptedEngine(turn))
    assert [call_id for call_id, *_ in function_calls(completion)] == ["x", "x_2", "call", "call_2"]
    assert result.finish_reason == "tool_calls"


async def test_echo_fields_are_sent_back() -> None:
    """The assistant's message of a turn with tool calls has the engine's echo fields."""
    turn = [EngineDelta(reasoning="hm"), EngineDelta(tool_calls=[call("current_time")], finish_reason="tool_calls",
                                         echo={"reasoning_content": "hm"})]  # fmt: skip
    engine = ScriptedEngine(turn, answer_turn("Noon."))
    await outcome(engine)
    assert engine.conversations[1][1]["reasoning_content"] == "hm"
