"""The built-in agent asks people before it runs some tools, and takes their messages between its turns."""

import json
from typing import Any

import pytest

from agentstream.agents.contract import AgentResult, Run
from agentstream.agents.interrupts import MAX_PAYLOAD_BYTES
from agentstream.agents.orchestrator import Orchestrator
from agentstream.agents.orchestrator.approvals import MAX_QUESTIONS, question_id
from agentstream.protocol.events import INPUT_APPLIED, INTERRUPT
from agentstream.protocol.interrupts import NAME
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.tools.approval import ApprovalRule
from agentstream.tools.toolbox import Toolbox
from tests.helpers import TIMEOUT_S, RecordingSink
from tests.scripted_engine import ScriptedEngine, answer_turn, call, data_of, kinds, tool_call_turn
from tests.unit.agents.losing_runs import Effects

YES = {"approve": True}
FUNCTION = {"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {}}}}


def pay(number: int, call_id: str = "c1") -> Any:
    return call("pay", json.dumps({"n": number}), call_id)


def asked_about(*call_ids: str) -> dict[str, Any]:
    """Return answers that approve the calls."""
    return dict.fromkeys(map(question_id, call_ids), YES)


async def run_with(
    engine: ScriptedEngine,
    tool: Effects | None = None,
    answers: dict[str, Any] | None = None,
    inputs: list[str] | None = None,
    max_turns: int = 10,
    rule: ApprovalRule | None = None,
    **fields: Any,
) -> tuple[AgentResult, RecordingSink]:
    """Run the agent with a tool that needs approval."""
    sink = RecordingSink(answers=answers or {}, inputs=[{"role": "user", "content": text} for text in inputs or ()])
    body = {"model": "m1", "messages": [{"role": "user", "content": "pay"}], **fields}
    run = Run("chatcmpl-1", ChatCompletionRequest.model_validate(body), sink)
    toolbox = Toolbox([tool or Effects("pay", needs_approval=True)], TIMEOUT_S, approval=rule)
    result = await Orchestrator(engine, toolbox, max_turns=max_turns)(run)
    result.check()
    return result, sink


async def test_the_model_reads_why_a_call_was_denied() -> None:
    """A denied call does not run: clients see it fail, and the model gets the reason of the person."""
    engine = ScriptedEngine(tool_call_turn(pay(1)), answer_turn("Sorry"))
    tool = Effects("pay", needs_approval=True)
    answer = {question_id("c1"): {"approve": False, "reason": "no money"}}
    _, sink = await run_with(engine, tool, answer)
    assert tool.calls == []
    (end,) = data_of(sink, "tool_call_end")
    assert (end["success"], end["result"]) == (False, "pay was not run: a person denied it, and wrote: no money")
    assert engine.conversations[1][-1]["content"] == f"Error: {end['result']}"
    assert kinds(sink).index("tool_call_start") == kinds(sink).index("tool_call_end") - 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"n": "one"}', "n must be integer"),
        ("[]", "one JSON object"),
        (json.dumps({"n": 1, "note": "x" * MAX_PAYLOAD_BYTES}), f"the limit is {MAX_PAYLOAD_BYTES}"),
    ],
    ids=["a wrong type", "no object", "too long to show"],
)
async def test_nobody_is_asked_about_a_call_that_cannot_run(arguments: str, reason: str) -> None:
    """A call with wrong arguments, or arguments that are too long to show, fails without a question."""
    tool = Effects("pay", needs_approval=True)
    _, sink = await run_with(ScriptedEngine(tool_call_turn(call("pay", arguments)), answer_turn("Sorry")), tool)
    assert INTERRUPT not in kinds(sink)
    assert tool.calls == []
    (end,) = data_of(sink, "tool_call_end")
    assert not end["success"]
    assert reason in end["result"]


async def test_people_are_asked_about_few_calls_at_once() -> None:
    """If the model makes very many calls in one turn, people see the first ones, and the model reads of the others."""
    names = [f"c{number}" for number in range(MAX_QUESTIONS + 1)]
    engine = ScriptedEngine(tool_call_turn(*(pay(n, name) for n, name in enumerate(names))), answer_turn("Done"))
    tool = Effects("pay", needs_approval=True)
    _, sink = await run_with(engine, tool, asked_about(*names))
    assert tool.calls == list(range(MAX_QUESTIONS))
    failed = [end["result"] for end in data_of(sink, "tool_call_end") if not end["success"]]
    assert len(failed) == 1
    assert "Call it again later" in failed[0]


async def test_a_repeated_call_is_refused_without_a_question() -> None:
    """The fourth equal call is refused as for every tool, so nobody is asked about it."""
    turns = [tool_call_turn(pay(1, f"c{number}")) for number in range(4)]
    tool = Effects("pay", needs_approval=True)
    names = [f"c{number}" for number in range(3)]
    _, sink = await run_with(ScriptedEngine(*turns, answer_turn("Done")), tool, asked_about(*names))
    assert tool.calls == [1, 1, 1]
    assert data_of(sink, INTERRUPT) == []
    assert "already called it 3 times" in data_of(sink, "tool_call_end")[-1]["result"]


async def test_a_turn_with_a_call_of_the_client_asks_nobody() -> None:
    """A turn that calls a tool of the client ends the run: its other calls neither run nor need an answer."""
    engine = ScriptedEngine(tool_call_turn(pay(1), call("book", "{}", "c2")))
    tool = Effects("pay", needs_approval=True)
    result, sink = await run_with(engine, tool, tools=[FUNCTION], inputs=["wait"])
    assert (result.finish_reason, tool.calls) == ("tool_calls", [])
    assert INTERRUPT not in kinds(sink)
    assert len(sink.inputs) == 1


@pytest.mark.parametrize("choice", ["none", "required", "auto"])
async def test_people_are_asked_with_every_tool_choice(choice: str) -> None:
    """The client's tool_choice does not change that a person must approve a tool of the agent."""
    engine = ScriptedEngine(tool_call_turn(pay(1)), answer_turn("Done"))
    tool = Effects("pay", needs_approval=True)
    await run_with(engine, tool, asked_about("c1"), tools=[FUNCTION], tool_choice=choice)
    assert tool.calls == [1]


async def test_a_deployment_decides_which_tools_need_approval() -> None:
    """A tool that declares nothing needs approval if the rule of the deployment names it."""
    tool = Effects("pay")
    turns = (tool_call_turn(pay(1)), answer_turn("Done"))
    answer = {question_id("c1"): {"approve": False}}
    await run_with(ScriptedEngine(*turns), tool, answer, rule=ApprovalRule(["p*"]))
    assert tool.calls == []
    await run_with(ScriptedEngine(*turns), tool, rule=ApprovalRule(["other"]))
    assert tool.calls == [1]


async def test_a_sub_agent_runs_no_tool_that_needs_approval() -> None:
    """The built-in agent as a sub-agent cannot wait for people, because it has no checkpoints: the call fails."""
    sink = RecordingSink()
    body = {"model": "m1", "messages": [{"role": "user", "content": "pay"}]}
    run = Run("chatcmpl-1", ChatCompletionRequest.model_validate(body), sink)
    tool = Effects("pay", needs_approval=True)
    engine = ScriptedEngine(tool_call_turn(pay(1)), answer_turn("Sorry"))
    await Orchestrator(engine, Toolbox([tool], TIMEOUT_S))(run.child("payer"))
    assert tool.calls == []
    assert "which a sub-agent cannot ask for" in data_of(sink, "tool_call_end")[0]["result"]


@pytest.mark.parametrize("call_id", ["c1", "9Ab", "call id", "x" * 200, "ü\ud800", ""])
def test_every_call_has_a_valid_question_id(call_id: str) -> None:
    """A question's id comes from the id of the call, whatever characters the model server uses in it."""
    assert NAME.fullmatch(question_id(call_id))
    assert question_id(call_id) == question_id(call_id) != question_id(f"{call_id}2")


# Messages for the run


async def test_a_message_during_the_answer_is_answered_in_a_new_turn() -> None:
    """If people have sent a message when the answer is complete, the model answers it before the run ends."""
    engine = ScriptedEngine(answer_turn("One"), answer_turn("Two"))
    result, _ = await run_with(engine, inputs=["and now?"])
    assert result.content == "One\n\nTwo"
    assert [message["content"] for message in engine.conversations[1]] == ["pay", "One", "and now?"]


@pytest.mark.parametrize(
    ("max_turns", "fields"),
    [(1, {}), (10, {"response_format": {"type": "json_object"}})],
    ids=["no turn is left", "a JSON answer stays alone"],
)
async def test_a_message_is_not_taken_if_the_run_must_end(max_turns: int, fields: dict[str, Any]) -> None:
    """After the last turn, and after a JSON answer, the run ends, and the message counts as not applied."""
    result, sink = await run_with(ScriptedEngine(answer_turn("{}")), inputs=["more"], max_turns=max_turns, **fields)
    assert (result.content, result.finish_reason) == ("{}", "stop")
    assert len(sink.inputs) == 1


async def test_messages_and_the_question_stay_in_a_trimmed_conversation() -> None:
    """If the conversation is too long for the model, the question and the messages of people are not left out."""
    result = Effects("pay")
    result.run = _long_text  # type: ignore[method-assign]
    turns = [tool_call_turn(call("pay", json.dumps({"n": number}), f"c{number}")) for number in range(6)]
    engine = ScriptedEngine(*turns, answer_turn("Done"))
    sink = RecordingSink(inputs=[{"role": "user", "content": "in euros"}])
    body = {"model": "m1", "messages": [{"role": "user", "content": "pay all"}]}
    run = Run("chatcmpl-1", ChatCompletionRequest.model_validate(body), sink)
    await Orchestrator(engine, Toolbox([result], TIMEOUT_S), context_tokens=1200)(run)
    assert len(engine.conversations[-1]) < 14
    assert [m["content"] for m in engine.conversations[-1] if m["role"] == "user"] == ["pay all", "in euros"]


async def _long_text(arguments: dict[str, Any]) -> str:
    return "x" * 2000 + str(arguments)


async def test_an_agent_without_messages_stores_nothing_more() -> None:
    """A run without approvals and messages has the events and checkpoints that it had before these existed."""
    engine = ScriptedEngine(tool_call_turn(pay(1)), answer_turn("Done"))
    _, sink = await run_with(engine, Effects("pay"))
    assert INPUT_APPLIED not in kinds(sink)
    assert " ".join(kinds(sink)) == (
        "agent_turn_start inference_start inference_end tool_call_start run_checkpoint tool_call_end run_checkpoint "
        "inference_start text inference_end agent_turn_end"
    )
