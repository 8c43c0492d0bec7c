"""The built-in agent with a scripted engine and a recording sink."""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.orchestrator import Orchestrator
from agentstream.engines.base import SUMMARY_PROMPT, EngineDelta, EngineError, EngineToolCall
from agentstream.engines.demo import BuiltinEngine
from agentstream.errors import InvalidAgentOutput, RunCancelled
from agentstream.protocol.events import TEXT, Event
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from agentstream.stream.transcript import AnswerFold
from agentstream.tools.base import Tool, ToolError
from tests.helpers import TIMEOUT_S, RecordingSink
from tests.scripted_engine import WAIT, ScriptedEngine, Turn, answer_turn, call, data_of, kinds, tool_call_turn, toolbox

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


class Meeting:
    """A tool whose calls all wait for each other: it returns only if ``size`` of them run at once."""

    name = "meeting"
    description = "Waits for the others."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {"n": {"type": "integer"}}}

    def __init__(self, size: int) -> None:
        self._barrier = asyncio.Barrier(size)
        self.arrivals = asyncio.Semaphore(0)
        self.cancelled = 0

    async def run(self, arguments: dict[str, Any]) -> str:
        self.arrivals.release()
        try:
            await self._barrier.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"met {arguments.get('n')}"


class Failing:
    name = "failing"
    description = "Fails."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}}

    async def run(self, arguments: dict[str, Any]) -> str:
        del arguments
        message = "it rained"
        raise ToolError(message)


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def run_of(*messages: dict[str, Any]) -> tuple[Run, RecordingSink]:
    sink = RecordingSink()
    conversation = messages or ({"role": "user", "content": "what is 17*23?"},)
    request = ChatCompletionRequest.model_validate({"model": "m1", "messages": conversation})
    return Run("chatcmpl-1", request, sink), sink


async def result_of(
    engine: ScriptedEngine,
    *tools: Tool,
    messages: Sequence[dict[str, Any]] = (),
    timeout_s: float = TIMEOUT_S,
    **options: Any,
) -> tuple[AgentResult, RecordingSink]:
    run, sink = run_of(*messages)
    result = await Orchestrator(engine, toolbox(*tools, timeout_s=timeout_s), **options)(run)
    result.check()
    assert_content_is_what_was_streamed(result, sink)
    assert engine.open == 0
    return result, sink


def assert_content_is_what_was_streamed(result: AgentResult, sink: RecordingSink) -> None:
    """Fold the emitted events as the stream does and compare."""
    completion = AnswerFold()
    for seq, (kind, data) in enumerate(sink.facts, 1):
        completion.receive(Event(1, seq, kind, data))
    assert completion.content == result.content


async def emitted(sink: RecordingSink, kind: str) -> None:
    """Wait until an event of this kind was emitted."""
    while kind not in kinds(sink):
        sink.new.clear()
        await sink.new.wait()


# Turns


async def test_an_answer_is_streamed_as_it_comes() -> None:
    """Text goes to the run piece by piece between inference_start and inference_end, and is the content."""
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
    """A turn's calls are announced, run and told to the model, whose next text follows after an empty line."""
    wanted = tool_call_turn(call("calculator", '{"expression": "17*23"}'), text="Let me see.", usage=usage(20, 8))
    engine = ScriptedEngine(wanted, answer_turn("It is |391.", usage(40, 7)))
    result, sink = await result_of(engine)
    assert " ".join(kinds(sink)) == (
        "agent_turn_start inference_start text inference_end tool_call_start tool_call_end "
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
    (told,) = result.tool_results
    assert (told.tool_name, told.content, told.success) == ("calculator", "391", True)
    assert result.metadata == {"prompt_tokens": 60, "completion_tokens": 15, "total_tokens": 75}
    assert result.finish_reason == "stop"


async def test_usage_missing_for_a_turn_is_not_invented() -> None:
    """If the engine told no usage for one turn, neither that turn nor the run claims any."""
    engine = ScriptedEngine(tool_call_turn(call("current_time"), usage=usage(20, 8)), answer_turn("Noon."))
    result, sink = await result_of(engine)
    assert "usage" not in data_of(sink, "inference_end")[1]
    assert result.metadata == {}
    assert result.usage() is None


async def test_a_turn_without_text_leaves_no_gap() -> None:
    """Turns that only call tools add nothing to the text, and an empty answer is an empty content."""
    silent = tool_call_turn(call("current_time"))
    engine = ScriptedEngine(silent, tool_call_turn(call("current_time"), text="One."), silent, answer_turn("Two."))
    result, _ = await result_of(engine)
    assert result.content == "One.\n\nTwo."
    empty, _ = await result_of(ScriptedEngine(silent, answer_turn("")))
    assert empty.content == ""


async def test_the_models_way_of_ending_is_kept() -> None:
    """Of the last turn's finish_reason, length and content_filter are passed on; any other word is stop."""
    for word, expected in (("length", "length"), ("content_filter", "content_filter"), ("eos", "stop")):
        result, _ = await result_of(ScriptedEngine(answer_turn("", finish_reason=word)))
        assert result.finish_reason == expected


async def test_calls_of_a_turn_that_was_cut_short_are_not_run() -> None:
    """If the model ran out of tokens while it wrote its calls, none of them is run."""
    engine = ScriptedEngine([EngineDelta(tool_calls=[call("current_time", '{"pl')], finish_reason="length")])
    result, sink = await result_of(engine)
    assert "tool_call_start" not in kinds(sink)
    assert (result.finish_reason, result.tool_results) == ("length", [])


TRIED = "I stopped after 2 turns without reaching an answer. What I tried: "


@pytest.mark.parametrize(
    "summary", [answer_turn(""), [EngineError("no tools, no answer")], tool_call_turn(call("current_time"))]
)
async def test_turns_come_to_an_end(summary: Turn) -> None:
    """A model that cannot sum up after max_turns has it said what was tried, finish_reason length."""
    calls = call("current_time"), call("failing", call_id="c2")
    engine = ScriptedEngine(tool_call_turn(*calls, text="Hm."), tool_call_turn(calls[0]), summary)
    result, sink = await result_of(engine, Failing(), max_turns=2)
    assert result.content == f"Hm.\n\n{TRIED}current_time (2 calls), failing (1 call, 1 failed)."
    assert result.finish_reason == "length"
    assert len(result.tool_results) == 3
    assert data_of(sink, "agent_turn_end") == [{"agent": "orchestrator", "turns": 2}]


async def test_the_model_sums_up_when_turns_run_out() -> None:
    """After max_turns the model, told so and forbidden more calls, says what was found; its usage counts."""
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


async def test_a_summary_that_breaks_off_is_a_failure() -> None:
    """Once some of the summary was shown, an error in it is the run's: our words would run on from half a sentence."""
    engine = ScriptedEngine(tool_call_turn(call("current_time")), [EngineDelta(text="half"), EngineError("cut")])
    with pytest.raises(EngineError, match="cut"):
        await Orchestrator(engine, toolbox(), max_turns=1)(run_of()[0])


async def test_the_demo_sums_up() -> None:
    """The demo engine, out of turns, answers with the results it has."""
    run, _ = run_of({"role": "user", "content": "what is 17*23?"})
    result = await Orchestrator(BuiltinEngine(), toolbox(), max_turns=1)(run)
    assert result.content == "17*23 = 391."


def test_no_turns_are_refused() -> None:
    """An orchestrator that may not ask the model even once is not made."""
    with pytest.raises(ValueError, match="at least 1"):
        Orchestrator(ScriptedEngine(), toolbox(), max_turns=0)


# Tools


async def test_tools_of_a_turn_run_at_the_same_time() -> None:
    """All calls of a turn are under way together: three that wait for each other all return."""
    calls = [call("meeting", f'{{"n": {n}}}', f"c{n}") for n in (1, 2, 3)]
    engine = ScriptedEngine(tool_call_turn(*calls), answer_turn("Done."))
    result, sink = await result_of(engine, Meeting(3))
    assert kinds(sink)[3:9] == ["tool_call_start"] * 3 + ["tool_call_end"] * 3
    assert [each.content for each in result.tool_results] == ["met 1", "met 2", "met 3"]
    assert [message["content"] for message in engine.conversations[1][-3:]] == ["met 1", "met 2", "met 3"]


async def test_a_result_is_reported_when_it_is_there() -> None:
    """A quick tool's end is emitted while a slow one of the same turn still runs; the order of results stays."""
    engine = ScriptedEngine(
        tool_call_turn(call("meeting", call_id="slow"), call("current_time", call_id="quick")), answer_turn("Ok.")
    )
    run, sink = run_of()
    meeting = Meeting(2)
    task = asyncio.create_task(Orchestrator(engine, toolbox(meeting))(run))
    async with asyncio.timeout(TIMEOUT_S):
        await emitted(sink, "tool_call_end")
        await meeting.run({})  # the second to arrive: now the slow one may end
        result = await task
    assert [data["tool_call_id"] for data in data_of(sink, "tool_call_end")] == ["quick", "slow"]
    assert [each.tool_name for each in result.tool_results] == ["meeting", "current_time"]


@pytest.mark.parametrize(
    ("wanted", "words", "arguments_kept"),
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
async def test_a_failed_call_is_told_to_the_model(wanted: EngineToolCall, words: str, arguments_kept: str) -> None:
    """Failures of any kind end no run: the model reads what went wrong, and gets no unparsable JSON back."""
    engine = ScriptedEngine(tool_call_turn(wanted), answer_turn("Sorry."))
    result, sink = await result_of(engine, Failing(), Meeting(2), timeout_s=0.05)
    assert data_of(sink, "tool_call_start")[0]["arguments"] == wanted.arguments
    assert data_of(sink, "tool_call_end")[0]["success"] is False
    assert words in data_of(sink, "tool_call_end")[0]["result"]
    assistant, told = engine.conversations[1][-2:]
    assert told["content"].startswith("Error: ")
    assert words in told["content"]
    assert assistant["tool_calls"][0]["function"]["arguments"] == arguments_kept
    assert result.content == "Sorry."
    assert [each.success for each in result.tool_results] == [False]


async def test_a_call_made_again_and_again_is_refused_and_then_the_run_is_stopped() -> None:
    """The same call is run three times, then answered without running it, then the model must sum up."""
    spellings = ['{"expression": "1+1"}', '{"expression":"1+1"}', '{ "expression": "1+1" }']
    turns = [tool_call_turn(call("calculator", spellings[number % 3])) for number in range(5)]
    engine = ScriptedEngine(*turns, answer_turn("I keep going in circles."))
    result, sink = await result_of(engine)
    assert [each.success for each in result.tool_results] == [True] * 3 + [False] * 2
    assert len(data_of(sink, "tool_call_start")) == len(data_of(sink, "tool_call_end")) == 5
    told = engine.conversations[4][-1]["content"]
    assert told.startswith("Error: calculator was not run: it was called with these very arguments 3 times already.")
    assert engine.choices[-1] == "none"
    assert (result.content, result.finish_reason) == ("I keep going in circles.", "length")


async def test_other_calls_are_no_loop() -> None:
    """Calls that differ in their arguments, however many, are all run; so are two of the same in one turn."""
    turns = [tool_call_turn(call("calculator", f'{{"expression": "{number}"}}')) for number in range(8)]
    same = call("calculator", '{"expression": "7"}')
    result, _ = await result_of(ScriptedEngine(*turns, tool_call_turn(same, same), answer_turn("Done.")))
    assert [each.success for each in result.tool_results] == [True] * 10
    assert result.finish_reason == "stop"


async def test_ids_are_made_unique_over_the_run() -> None:
    """Calls that share an id, or have none, get ids of their own, the same in events and conversation."""
    same = call("current_time")
    engine = ScriptedEngine(
        tool_call_turn(same, same, call("current_time", call_id="")), tool_call_turn(same), answer_turn("Done.")
    )
    _, sink = await result_of(engine)
    ids = [data["tool_call_id"] for data in data_of(sink, "tool_call_start")]
    assert ids == ["c1", "c1_2", "call", "c1_3"]
    assert [message["tool_call_id"] for message in engine.conversations[2] if message["role"] == "tool"] == ids


# What the model is given


async def test_the_model_is_offered_the_tools() -> None:
    """Every turn offers the toolbox's tools."""
    engine = ScriptedEngine(tool_call_turn(call("current_time")), answer_turn("Done."))
    await result_of(engine)
    assert engine.offered == [["calculator", "current_time", "text_statistics"]] * 2


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_the_system_prompt_gives_way_to_the_clients(role: str) -> None:
    """Our system prompt comes first in conversations that have none, and is left out of those that do."""
    engine = ScriptedEngine(answer_turn("Hi"), answer_turn("Hi"))
    orchestrator = Orchestrator(engine, toolbox(), system_prompt="Be brief.")
    await orchestrator(run_of()[0])
    await orchestrator(run_of({"role": role, "content": "Be long."}, {"role": "user", "content": "hi"})[0])
    assert [message["content"] for message in engine.conversations[0]] == ["Be brief.", "what is 17*23?"]
    assert [message["content"] for message in engine.conversations[1]] == ["Be long.", "hi"]


async def test_the_conversation_is_passed_on_without_nulls() -> None:
    """Messages reach the model as the client sent them, parts and unknown fields included, nulls left out."""
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
    """EngineError passes through unchanged: its words decide what the client is told."""
    engine = ScriptedEngine([EngineDelta(text="half"), EngineError("Error code: 400 - no")])
    with pytest.raises(EngineError, match="Error code: 400 - no"):
        await Orchestrator(engine, toolbox())(run_of()[0])


async def test_an_answer_without_an_end_is_an_error() -> None:
    """An engine that stops without a finish_reason has failed."""
    with pytest.raises(EngineError, match="without a finish_reason"):
        await Orchestrator(ScriptedEngine([EngineDelta(text="half")]), toolbox())(run_of()[0])


async def test_cancelling_closes_the_engines_iterator() -> None:
    """A run cancelled while the model is silent leaves no request open."""
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
    """A run cancelled while it waits for the sink, not the model, closes the request at once all the same."""

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
    """A run cancelled while tools run cancels them all."""
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
async def test_a_sink_that_refuses_a_tools_end_is_told_by_its_own_error(fault: Exception) -> None:
    """What emit raises while tools run reaches the worker as itself, not inside a group."""

    class RefusingSink(RecordingSink):
        def put(self, event_type: str, data: Any) -> None:
            super().put(event_type, data)
            if event_type == "tool_call_end":
                raise fault

    engine = ScriptedEngine(tool_call_turn(call("current_time"), call("current_time")))
    with pytest.raises(type(fault), match=str(fault)):
        await Orchestrator(engine, toolbox())(Run("chatcmpl-1", run_of()[0].request, RefusingSink()))


# With the built-in engine


async def test_the_demo_answers_with_real_tools() -> None:
    """Without a model, a question with two parts is answered through two tools in one turn, failures told."""
    run, sink = run_of({"role": "user", "content": "what is 17*23, and the time in Atlantis?"})
    result = await Orchestrator(BuiltinEngine(), toolbox())(run)
    assert_content_is_what_was_streamed(result, sink)
    assert result.content.startswith("17*23 = 391. I could not tell the time in Atlantis: no time zone is known")
    assert kinds(sink)[3:7] == ["tool_call_start", "tool_call_start", "tool_call_end", "tool_call_end"]
    assert result.metadata["total_tokens"] > 0
