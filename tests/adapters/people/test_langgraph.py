"""LangGraph's interrupts and breakpoints as questions to people."""

import operator
from typing import Annotated, Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt
from pydantic import BaseModel

from agentstream.adapters.langgraph import LangGraphAgent
from agentstream.adapters.resuming import UNKNOWN_OUTCOME
from agentstream.errors import AgentError, InterruptTimeout
from tests.adapters.people.parked_runs import TIMED_OUT, ParkedRun

# An attempt that is put down cancels nodes, and LangChain then leaves coroutines of callbacks behind.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore:coroutine 'ahandle_event' was never awaited"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine object ahandle_event"),
]


class State(MessagesState):
    ran: Annotated[list[str], operator.add]


def said(text: str, *ran: str) -> dict[str, Any]:
    return {"messages": [AIMessage(text)], "ran": list(ran)}


def new_graph() -> Any:
    return StateGraph(State)


def agent_of(*nodes: Any, **compiled: Any) -> LangGraphAgent:
    """Return an agent of a graph that runs these nodes one after another."""
    graph = new_graph()
    names = [node.__name__ for node in nodes]
    for node in nodes:
        graph.add_node(node.__name__, node)
    for before, after in zip([START, *names], names, strict=False):
        graph.add_edge(before, after)
    return LangGraphAgent(graph.compile(**compiled), resumable=None if compiled.get("checkpointer") else True)


async def test_a_node_gets_the_answer_as_it_is() -> None:
    """The value of an interrupt is the payload of a question of the kind langgraph, and its answer is the node's."""

    def ask(_state: State) -> Any:
        return said(f"You said {interrupt({'ask': 'which city?'})!r}.")

    run = ParkedRun(agent_of(ask))
    (question,) = await run.attempt()
    assert (question["kind"], question["payload"]) == ("langgraph", {"ask": "which city?"})
    assert await run.attempt({question["id"]: ["Oslo", 2]}) == []
    assert run.answer == "You said ['Oslo', 2]."


async def test_steps_before_the_question_are_not_repeated() -> None:
    """Neither earlier steps nor a node beside the one that asks run again, and their texts are written once."""
    ran: list[str] = []

    def first(_state: State) -> Any:
        ran.append("first")
        return said("First. ")

    def beside(_state: State) -> Any:
        ran.append("beside")
        return said("Beside. ")

    def ask(_state: State) -> Any:
        return said(f"{interrupt('sure?')}. ")

    graph = new_graph().add_node("first", first).add_node("beside", beside).add_node("ask", ask)
    graph.add_edge(START, "first").add_edge("first", "beside").add_edge("first", "ask")
    run = ParkedRun(LangGraphAgent(graph.compile(), resumable=True))
    (question,) = await run.attempt()
    await run.attempt({question["id"]: "yes"})
    assert ran == ["first", "beside"]
    assert run.answer == "First. Beside. yes. "


async def test_nodes_ask_at_once_and_one_node_asks_twice() -> None:
    """Questions of one step are open together; the answers to earlier questions of a node are kept."""

    def twice(_state: State) -> Any:
        return said(f"{interrupt('a?')}{interrupt('b?')}")

    def once(_state: State) -> Any:
        return said(f"{interrupt('c?')}")

    graph = new_graph().add_node("twice", twice).add_node("once", once)
    graph.add_edge(START, "twice").add_edge(START, "once")
    run = ParkedRun(LangGraphAgent(graph.compile(), resumable=True))
    questions = {question["payload"]: question["id"] for question in await run.attempt()}
    assert set(questions) == {"a?", "c?"}
    (second,) = await run.attempt({questions["a?"]: "A", questions["c?"]: "C"})
    assert second["payload"] == "b?"
    await run.attempt({second["id"]: "B"})
    assert sorted(run.answer) == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("again", "whole"),
    [("Shall I go? ", "Shall I go? yes. "), ("Here I go! ", "Shall I go? Here I go! yes. ")],
    ids=["the same text", "another text"],
)
async def test_the_node_that_asks_runs_again(again: str, whole: str) -> None:
    """Text that a repeated node writes as before is shown once, and another text is shown, too."""
    model = GenericFakeChatModel(messages=iter([AIMessage("Shall I go? "), AIMessage(again)]))

    async def ask(_state: State) -> Any:
        await model.ainvoke("go?")
        return said(f"{interrupt('sure?')}. ")

    run = ParkedRun(agent_of(ask))
    (question,) = await run.attempt()
    assert run.answer == "Shall I go? "
    await run.attempt({question["id"]: "yes"})
    assert run.answer == whole


@tool
def send_mail(to: str) -> str:
    """Send a mail."""
    answer = interrupt({"tool": "send_mail", "arguments": {"to": to}})
    SENT.append(to)
    return f"sent to {to}" if answer["approve"] else f"not sent: {answer['reason']}"


SENT: list[str] = []


def call(_state: State) -> Any:
    return {"messages": [AIMessage("", tool_calls=[ToolCall(name="send_mail", args={"to": "bob"}, id="call-1")])]}


def report(state: State) -> Any:
    return said(str(state["messages"][-1].text))


def mail_agent() -> LangGraphAgent:
    graph = new_graph()
    graph.add_node("call", call).add_node("tools", ToolNode([send_mail])).add_node("report", report)
    graph.add_edge(START, "call").add_edge("call", "tools").add_edge("tools", "report")
    SENT.clear()
    return LangGraphAgent(graph.compile(), resumable=True)


@pytest.mark.parametrize(
    ("answer", "text"),
    [({"approve": True}, "sent to bob"), ({"approve": False, "reason": "no"}, "not sent: no")],
    ids=["approved", "denied"],
)
async def test_a_tool_asks_for_approval(answer: dict[str, Any], text: str) -> None:
    """A tool that interrupts with its name asks for approval; its call starts once, waits, and ends once."""
    run = ParkedRun(mail_agent())
    (question,) = await run.attempt()
    assert (question["kind"], question["payload"]["tool"]) == ("approval", "send_mail")
    await run.attempt({question["id"]: answer})
    assert run.tools() == [("start", "send_mail", None), ("waiting", "send_mail", None), ("end", "send_mail", True)]
    assert run.answer == text


async def test_an_approved_tool_is_not_repeated_after_a_loss() -> None:
    """If the worker is lost after the answer, the tool does not run again, because it may have done its work."""
    run = ParkedRun(mail_agent())
    (question,) = await run.attempt()
    await run.attempt({question["id"]: {"approve": True}}, lost_after="tool_call_end")
    assert SENT == ["bob"]
    assert await run.attempt() == []
    assert SENT == ["bob"]
    assert [end for kind, _, end in run.tools() if kind == "end"] == [True]

    run = ParkedRun(mail_agent())
    (question,) = await run.attempt()
    await run.attempt({question["id"]: {"approve": True}}, lost_after="tool_call_end")
    run.facts = [fact for fact in run.facts if fact[0] != "tool_call_end"]  # lost before its end was stored
    await run.attempt()
    assert SENT == ["bob"]
    assert run.answer == UNKNOWN_OUTCOME


async def test_a_sub_graph_asks() -> None:
    """An interrupt in a sub-graph is answered like one of the graph itself, and its earlier steps are not repeated."""
    ran: list[str] = []

    def before(_state: State) -> Any:
        ran.append("before")
        return said("Before. ")

    def ask(_state: State) -> Any:
        return said(f"{interrupt('sure?')}. ")

    inner = new_graph().add_node("before", before).add_node("ask", ask)
    inner.add_edge(START, "before").add_edge("before", "ask")
    outer = new_graph().add_node("inner", inner.compile()).add_edge(START, "inner")
    run = ParkedRun(LangGraphAgent(outer.compile(), resumable=True))
    (question,) = await run.attempt()
    await run.attempt({question["id"]: "yes"})
    assert ran == ["before"]
    assert "yes. " in run.answer


@pytest.mark.parametrize("approve", [True, False])
async def test_a_breakpoint_asks(approve: bool) -> None:
    """A breakpoint asks whether the graph may go on; after a denial the run ends there."""

    def first(_state: State) -> Any:
        return said("First. ")

    def second(_state: State) -> Any:
        return said("Second. ")

    run = ParkedRun(agent_of(first, second, interrupt_before=["second"]))
    (question,) = await run.attempt()
    assert (question["kind"], question["payload"]["tool"]) == ("approval", "second")
    assert await run.attempt({question["id"]: {"approve": approve}}) == []
    assert run.answer == ("First. Second. " if approve else "First. ")


async def test_a_breakpoint_is_not_passed_after_a_loss() -> None:
    """If the worker is lost just before a breakpoint, the next attempt asks and does not pass it."""

    def first(_state: State) -> Any:
        return said("First. ")

    def second(_state: State) -> Any:
        return said("Second. ")

    run = ParkedRun(agent_of(first, second, interrupt_before=["second"]))
    await run.attempt()
    checkpoints = [at for at, (name, _) in enumerate(run.facts) if name == "run_checkpoint"]
    del run.facts[checkpoints[-1] :]  # the question and its checkpoint were not stored
    (question,) = await run.attempt()
    assert question["payload"]["tool"] == "second"
    assert "Second" not in run.answer


class City(BaseModel):
    name: str


async def test_the_schema_of_a_question_reaches_people() -> None:
    """A response schema that a question can have is its schema; the node gets the checked answer."""

    def ask(_state: State) -> Any:
        city = interrupt("which city?", response_schema=City)
        return said(f"{type(city).__name__} {city.name}")

    run = ParkedRun(agent_of(ask))
    (question,) = await run.attempt()
    assert question["schema"]["properties"] == {"name": {"title": "Name", "type": "string"}}
    await run.attempt({question["id"]: {"name": "Oslo"}})
    assert run.answer == "City Oslo"


async def test_a_schema_that_no_question_can_have_is_left_out() -> None:
    """A question whose response schema is nested is asked without it."""

    def ask(_state: State) -> Any:
        schema = {"type": "object", "properties": {"places": {"type": "array"}}}
        return said(str(interrupt("where?", response_schema=schema)))

    run = ParkedRun(agent_of(ask))
    (question,) = await run.attempt()
    assert "schema" not in question


async def test_a_graph_with_a_checkpointer_in_memory_waits_in_place() -> None:
    """A graph that cannot be put down gets the answer in the same attempt."""

    def ask(_state: State) -> Any:
        return said(f"{interrupt('sure?')}!")

    agent = agent_of(ask, checkpointer=InMemorySaver())
    assert not agent.resumable
    run = ParkedRun(agent)
    assert await run.attempt(in_place="yes") == []
    assert run.answer == "yes!"
    assert not run.events("run_checkpoint")


async def test_a_graph_without_a_checkpointer_cannot_ask() -> None:
    """A graph that keeps no state cannot go on with an answer: the error says what to do."""

    def ask(_state: State) -> Any:
        return said(str(interrupt("sure?")))

    graph = new_graph().add_node("ask", ask).add_edge(START, "ask").compile()
    with pytest.raises(AgentError, match="resumable=True"):
        await ParkedRun(LangGraphAgent(graph)).attempt()


async def test_nobody_answers_a_question_without_a_form_of_denial() -> None:
    """If nobody answers a question of the graph's own form, the run fails and says so."""

    def ask(_state: State) -> Any:
        return said(str(interrupt("which city?")))

    run = ParkedRun(agent_of(ask))
    (question,) = await run.attempt()
    with pytest.raises(InterruptTimeout):
        await run.attempt({question["id"]: TIMED_OUT})


async def test_nobody_answers_an_approval() -> None:
    """If nobody answers an approval, the node reads a denial that says so."""
    run = ParkedRun(mail_agent())
    (question,) = await run.attempt()
    await run.attempt({question["id"]: TIMED_OUT})
    assert run.answer == "not sent: nobody answered in time"
