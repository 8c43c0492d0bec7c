"""The interruptions of the OpenAI Agents SDK as questions to people."""

from collections.abc import AsyncIterator
from typing import Any

import agents
import pytest
from agents import Agent, OpenAIChatCompletionsModel, RunContextWrapper, function_tool
from openai import AsyncOpenAI

from agentstream.adapters.openai_agents import OpenAIAgent
from agentstream.adapters.resuming import UNKNOWN_OUTCOME
from tests.adapters.model_server import ModelServer
from tests.adapters.people.parked_runs import TIMED_OUT, ParkedRun

pytestmark = pytest.mark.usefixtures("collected")

RAN: list[str] = []


@function_tool(needs_approval=True)
def send_mail(context: RunContextWrapper[Any], to: str) -> str:
    """Send a mail."""
    RAN.append(f"{to} for {context.context}" if context.context else to)
    return f"sent to {to}"


@pytest.fixture
async def chat_model(model: ModelServer) -> AsyncIterator[OpenAIChatCompletionsModel]:
    """A model that calls the tool send_mail, then repeats its result."""
    agents.set_tracing_disabled(disabled=True)
    RAN.clear()
    model.tool, model.arguments = "send_mail", '{"to": "bob"}'
    model.go.set()
    async with AsyncOpenAI(base_url=f"{model.url}/v1", api_key="none") as client:
        yield OpenAIChatCompletionsModel("m", openai_client=client)


def run_of(agent: Agent[Any], **options: Any) -> ParkedRun:
    return ParkedRun(OpenAIAgent(agent, **options), "send_mail")


async def test_an_approval_and_what_is_stored(chat_model: OpenAIChatCompletionsModel, model: ModelServer) -> None:
    """The tool runs when it is approved, the model is not asked again, and the user's context is not stored."""
    context = {"name": "ada", "password": "hunter2"}
    agent = Agent[Any](name="mailer", model=chat_model, tools=[send_mail])
    run = run_of(agent, context=lambda _run: dict(context))
    (question,) = await run.attempt()
    assert (question["id"], question["kind"]) == ("call-oslo", "approval")
    assert question["payload"] == {"tool": "send_mail", "arguments": '{"to": "bob"}'}
    assert "hunter2" not in str(run.facts)
    await run.attempt({"call-oslo": {"approve": True}})
    assert [f"bob for {context}"] == RAN
    assert run.answer == "Let me look. It is sent to bob."
    assert run.tools() == [("start", "send_mail", None), ("end", "send_mail", True)]
    assert len(model.bodies) == 2
    assert len(run.events("agent_turn_start")) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [({"approve": False, "reason": "bob is away"}, "bob is away"), (TIMED_OUT, "nobody answered in time")],
    ids=["denied", "timed out"],
)
async def test_a_denial(chat_model: OpenAIChatCompletionsModel, answer: Any, reason: str) -> None:
    """After a denial, or if nobody answers, the model reads the reason, and the call is shown as failed."""
    run = run_of(Agent[Any](name="mailer", model=chat_model, tools=[send_mail]))
    await run.attempt()
    await run.attempt({"call-oslo": answer})
    assert RAN == []
    assert reason in run.answer
    assert run.tools() == [("start", "send_mail", None), ("end", "send_mail", False)]


async def test_an_approved_tool_is_not_repeated_after_a_loss(chat_model: OpenAIChatCompletionsModel) -> None:
    """An approved tool that had begun when the worker was lost does not run again: the model reads what is known."""
    run = run_of(Agent[Any](name="mailer", model=chat_model, tools=[send_mail]))
    await run.attempt()
    await run.attempt({"call-oslo": {"approve": True}}, lost_after="tool_call_end")
    stored = list(run.facts)
    await run.attempt()
    assert run.answer == "Let me look. It is sent to bob."

    run.facts = [fact for fact in stored if fact[0] != "tool_call_end"]
    await run.attempt()
    assert run.answer == f"Let me look. It is {UNKNOWN_OUTCOME}."
    assert RAN == ["bob"]


async def test_an_agent_that_took_over_asks(chat_model: OpenAIChatCompletionsModel, model: ModelServer) -> None:
    """A question of an agent after a handoff is answered like one of the first agent, which is not asked again."""
    second = Agent[Any](name="second", model=chat_model, tools=[send_mail])
    taking_over = agents.handoff(second, tool_name_override="take_over")
    first = Agent[Any](name="first", model=chat_model, handoffs=[taking_over])
    run = ParkedRun(OpenAIAgent(first), "take_over, then send_mail")
    model.script = [("take_over", "{}", "call-1"), ("send_mail", '{"to": "bob"}', "call-2")]
    (question,) = await run.attempt()
    assert question["id"] == "call-2"
    await run.attempt({"call-2": {"approve": True}})
    assert RAN == ["bob"]
    assert len(model.bodies) == 3
    starts = [data for data in run.events("tool_call_start") if data["tool"] == "send_mail"]
    assert [data["agent_path"] for data in starts] == [["second"]]


async def test_an_agent_as_a_tool_asks(chat_model: OpenAIChatCompletionsModel, model: ModelServer) -> None:
    """A question of an agent that is a tool puts the whole run down, and its answer reaches that agent."""
    helper = Agent[Any](name="helper", model=chat_model, tools=[send_mail])
    as_tool = helper.as_tool(tool_name="ask_helper", tool_description="Ask the helper.")
    model.script = [("ask_helper", '{"input": "send_mail"}', "call-1"), ("send_mail", '{"to": "bob"}', "call-2")]
    run = ParkedRun(OpenAIAgent(Agent[Any](name="boss", model=chat_model, tools=[as_tool])), "ask_helper")
    (question,) = await run.attempt()
    assert (question["id"], question["payload"]["tool"]) == ("call-2", "send_mail")
    assert run.tools() == [("start", "ask_helper", None), ("waiting", "ask_helper", None)]
    await run.attempt({"call-2": {"approve": True}})
    assert RAN == ["bob"]
    assert ("end", "ask_helper", True) in run.tools()
    assert [tool for kind, tool, _ in run.tools() if kind == "start"] == ["ask_helper"]


async def test_an_agent_with_a_session_waits_in_place(chat_model: OpenAIChatCompletionsModel) -> None:
    """An agent that cannot be put down, because its conversation is kept elsewhere, gets the answer in the attempt."""
    session = agents.SQLiteSession("s1")
    run = run_of(Agent[Any](name="mailer", model=chat_model, tools=[send_mail]), session=session)
    assert not run.agent.resumable
    assert await run.attempt(in_place={"approve": True}) == []
    assert RAN == ["bob"]
    assert not run.events("run_checkpoint")
