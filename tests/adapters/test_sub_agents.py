"""The sub-agents of the frameworks: sub-graphs, handoffs, and agents of adapters that work for another agent."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    RunContextWrapper,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from langchain_core.callbacks import adispatch_custom_event
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import RunContext
from pydantic_ai.models.test import TestModel

from agentstream import AgentResult, EmittedEvent, Restored, Run
from agentstream.adapters.command import CommandAgent
from agentstream.adapters.langgraph import LangGraphAgent
from agentstream.adapters.openai_agents import OpenAIAgent
from agentstream.adapters.pydantic_ai import PydanticAIAgent
from agentstream.adapters.run_reporter import RunReporter
from agentstream.adapters.sub_agents import SubAgents, custom_event
from agentstream.agents.sub_agents import MAX_DEPTH
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.testing import AgentOutcome, run_agent_async, run_agent_with_kills_async
from tests.adapters.counting_model import numbers, run_counting_model
from tests.helpers import RecordingSink

REQUEST = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]})


def paths(outcome: AgentOutcome) -> list[tuple[str, list[str] | None]]:
    """Return the type and the path of each event."""
    return [(event.type, event.data.get("agent_path")) for event in outcome.events]


# LangGraph


def graph_of(node: Any) -> Any:
    """Return a graph of one node."""
    return StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile()


@tool
def search(query: str) -> str:
    """Find something."""
    return f"found {query}"


async def ask_model(state: MessagesState) -> Any:
    if any(message.type == "tool" for message in state["messages"]):
        model = GenericFakeChatModel(messages=iter(["It is noon."]))
        await adispatch_custom_event("progress", {"found": 1})
        return {"messages": [await model.ainvoke(state["messages"])]}
    return {"messages": [AIMessage("", tool_calls=[ToolCall(name="search", args={"query": "time"}, id="c1")])]}


def researcher() -> Any:
    graph = StateGraph(MessagesState).add_node("ask", ask_model).add_node("tools", ToolNode([search]))
    graph.add_node("answer", ask_model).add_edge(START, "ask").add_edge("ask", "tools").add_edge("tools", "answer")
    return graph.compile()


async def test_sub_graphs_of_langgraph_have_a_path() -> None:
    """The events of a sub-graph have the path of the nodes that hold it, and its models' text is still the answer."""
    middle = StateGraph(MessagesState).add_node("researcher", researcher()).add_edge(START, "researcher").compile()
    graph: Any = StateGraph(MessagesState).add_node("team", middle).add_edge(START, "team").compile()
    outcome = await run_agent_async(LangGraphAgent(graph), "the time?")
    path = ["team", "researcher"]
    assert paths(outcome) == [
        ("agent_turn_start", None),
        ("tool_call_start", path),
        ("tool_call_end", path),
        ("progress", path),
        ("inference_start", path),
        ("inference_end", path),
    ]
    assert outcome.text == "It is noon."


async def test_a_graph_without_sub_graphs_has_no_paths() -> None:
    """The events of a graph's own nodes have no path."""
    assert {
        path for _, path in paths(await run_agent_async(LangGraphAgent(researcher()), "the time?")) if path
    } == set()


async def test_a_graph_sends_its_own_events() -> None:
    """Values of the stream writer are events: of the type that they name, else of the type custom."""

    def node(_state: MessagesState) -> Any:
        write = get_stream_writer()
        for value in ({"type": "progress", "done": 1}, {"done": 2}, "three", {"type": "text", "x": 4}, {"type": 5}):
            write(value)
        return {"messages": [AIMessage("ready")]}

    graph = graph_of(node)
    outcome = await run_agent_async(LangGraphAgent(graph), "go")
    assert [(event.type, event.data) for event in outcome.events[1:]] == [
        ("progress", {"done": 1}),
        ("custom", {"done": 2}),
        ("custom", {"data": "three"}),
        ("custom", {"name": "text", "x": 4}),
        ("custom", {"name": "5"}),
    ]
    assert outcome.text == "ready"


async def test_a_value_that_no_event_can_hold_does_not_end_the_graph(caplog: pytest.LogCaptureFixture) -> None:
    """A value of the stream writer that is too large is left out with a warning; one that is no JSON becomes text."""
    circle: list[Any] = []
    circle.append(circle)

    def node(_state: MessagesState) -> Any:
        for value in ("x" * (1 << 21), circle, {"object": object}):
            get_stream_writer()(value)
        return {"messages": [AIMessage("ready")]}

    graph = graph_of(node)
    outcome = await run_agent_async(LangGraphAgent(graph), "go")
    assert [event.type for event in outcome.events] == ["agent_turn_start", "custom", "custom"]
    assert outcome.text == "ready"
    assert "an event of the framework is left out" in caplog.text


# OpenAI Agents SDK


@pytest.fixture
async def model() -> AsyncIterator[OpenAIChatCompletionsModel]:
    """A model that calls the tool weather, then counts."""
    set_tracing_disabled(disabled=True)
    async with run_counting_model(3) as server, AsyncOpenAI(base_url=server.url, api_key="none") as client:
        yield OpenAIChatCompletionsModel("m", openai_client=client)


class _Place(BaseModel):
    city: str


async def test_an_agent_that_takes_over_has_a_path(model: OpenAIChatCompletionsModel) -> None:
    """After a handoff the events have the path of the next agent, an event tells the handoff, and the text goes on."""
    second = Agent[Any](name="second", model=model)
    taking_over = handoff(
        second, tool_name_override="weather", input_type=_Place, on_handoff=lambda _context, _place: None
    )
    first = Agent[Any](name="first", model=model, handoffs=[taking_over])
    outcome = await run_agent_async(OpenAIAgent(first), "hi")
    assert paths(outcome) == [
        ("agent_turn_start", None),
        ("inference_start", None),
        ("inference_end", None),
        ("agent_handoff", None),
        ("agent_turn_start", ["second"]),
        ("inference_start", ["second"]),
        ("inference_end", ["second"]),
    ]
    assert outcome.events_of("agent_handoff") == [{"from": "first", "to": "second"}]
    assert outcome.text.endswith(numbers(3))


async def test_an_agent_in_a_tool_works_with_a_child(model: OpenAIChatCompletionsModel) -> None:
    """A tool may give a child of the run to another agent of an adapter, whose events then have its path."""

    @function_tool
    async def weather(context: RunContextWrapper[Any], city: str) -> str:
        """Ask the helper."""
        child = context.context.child("helper", f"the weather in {city}?")
        await OpenAIAgent(Agent[Any](name="inner", model=model))(child)
        return str(child.text)

    first = Agent[Any](name="first", model=model, tools=[weather])
    outcome = await run_agent_async(OpenAIAgent(first, context=lambda run: run), "hi")
    seen = paths(outcome)
    assert ("inference_start", ["helper"]) in seen
    assert ("agent_text", ["helper"]) in seen
    assert [path for kind, path in seen if kind == "tool_call_start"] == [None]
    assert "agent_text" not in outcome.text
    assert outcome.text.count(numbers(3)) == 1


# pydantic-ai, programs, and the rules of paths


async def test_a_tool_of_pydantic_ai_has_a_sub_agent() -> None:
    """A tool of a pydantic-ai agent may give a child of the run to another agent; a checkpoint is the outer agent's."""
    inner = PydanticAIAgent(PydanticAgent(TestModel(custom_output_text="from inside"), name="inner"))
    outer = PydanticAgent(TestModel(custom_output_text="done"), name="outer", deps_type=Run)

    @outer.tool
    async def delegate(context: RunContext[Run]) -> str:
        child = context.deps.child("helper", "do it")
        await inner(child)
        return child.text

    agent = PydanticAIAgent(outer, deps=lambda run: run)
    outcome = await run_agent_async(agent, "hi")
    assert [kind for kind, path in paths(outcome) if path == ["helper"]] == [
        "agent_turn_start", "inference_start", *["agent_text"] * len(outcome.events_of("agent_text")), "inference_end"
    ]  # fmt: skip
    assert outcome.events_of("tool_call_end")[0]["result"] == "from inside"
    assert outcome.text == "done"
    runs = await run_agent_with_kills_async(agent, "hi", at="every checkpoint")
    assert {run.outcome.text for run in runs} == {"done"}


async def test_a_program_may_be_a_sub_agent() -> None:
    """A program that is a sub-agent writes its text and events under the path, and its checkpoints do nothing."""
    lines = [
        '{"type":"text","text":"hello"}',
        '{"type":"checkpoint","state":1}',
        '{"type":"note"}',
        '{"type":"result"}',
    ]
    program = CommandAgent("sh", "-c", f"printf '%s\\n' {' '.join(repr(line) for line in lines)}")

    async def agent(run: Run) -> AgentResult:
        child = run.child("program")
        await program(child)
        return AgentResult(child.text)

    outcome = await run_agent_async(agent, "go")
    assert paths(outcome) == [("agent_text", ["program"]), ("note", ["program"])]
    assert outcome.text == "hello"


def test_names_and_depths_of_a_framework_are_fitted() -> None:
    """A framework may have longer names and deeper paths than a run: they are cut, and never an error."""
    run = Run("chatcmpl-1", REQUEST, RecordingSink()).child("outer")
    sub_agents = SubAgents(run, [])
    assert sub_agents.run_of(()) is run
    assert sub_agents.run_of(["a\nb", "", "x" * 100]).agent_path == ("outer", "a b", "agent", "x" * 64)
    assert len(sub_agents.run_of([f"n{number}" for number in range(50)]).agent_path) == MAX_DEPTH
    assert sub_agents.run_of(["a\nb"]) is sub_agents.run_of(["a\nb"])


def test_events_of_the_users_own_sub_agents_are_not_the_adapters() -> None:
    """An attempt that continues counts earlier events of its own sub-agents, not those of the user's own code."""
    run = Run("chatcmpl-1", REQUEST, RecordingSink())
    call = {"tool": "search", "tool_call_id": "c1", "agent_path": ["mine"]}
    foreign = {**call, "tool_call_id": "c2", "agent_path": ["users"]}
    run.restore(Restored(events=[EmittedEvent("tool_call_start", data) for data in (call, foreign)]), 0)
    reporter = RunReporter(run, "outer", sub_agents=["mine"])
    assert reporter.interrupted == {"c1": "search"}


@pytest.mark.parametrize("name", ["tool_call_start", "run_completed", "", "a b", 7])
def test_names_that_an_event_cannot_have_become_a_field(name: object) -> None:
    """A custom event of a framework cannot pose as an event that clients know."""
    assert custom_event(name, {"x": 1}) == ("custom", {"name": str(name), "x": 1})
