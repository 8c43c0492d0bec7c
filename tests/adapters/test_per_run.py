"""Options of the adapters that depend on the run, and the answers of graphs without a model."""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import agents
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from openai import AsyncOpenAI
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import RunContext
from pydantic_ai.models.test import TestModel

from agentstream.adapters.command import CommandAgent
from agentstream.adapters.langgraph import LangGraphAgent
from agentstream.adapters.openai_agents import OpenAIAgent
from agentstream.adapters.per_run import since_last_answer, value_for
from agentstream.adapters.pydantic_ai import PydanticAIAgent
from agentstream.agents import Run
from agentstream.protocol.openai import ChatMessage
from agentstream.testing import Caller, run_agent_async
from tests.adapters.model_server import ModelServer

ADA = Caller(key_hash="ada", request_id="asked.1", headers={"X-Conversation": "c-1"})
BOB = Caller(key_hash="bob", headers={"X-Conversation": "c-2"})


def talk(*texts: str) -> list[dict[str, Any]]:
    """Return a conversation that begins with the user."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


@dataclass
class Deps:
    user: str


async def async_deps(run: Run) -> Deps:
    return Deps(run.caller.key_hash)


def two_deps(run: Run, prefix: str) -> Deps:
    return Deps(prefix + run.caller.key_hash)


@pytest.mark.parametrize(
    ("deps", "expected"),
    [
        (lambda run: Deps(run.caller.key_hash), "ada"),
        (async_deps, "ada"),
        (functools.partial(two_deps, prefix="x-"), "x-ada"),
        (Deps("everybody"), "everybody"),
    ],
)
async def test_deps_may_depend_on_the_run(deps: Any, expected: str) -> None:
    """The deps of a pydantic-ai agent may be a function of the run, plain or async, or a value."""
    agent: PydanticAgent[Deps, str] = PydanticAgent(TestModel(), deps_type=Deps)

    @agent.tool
    def who(ctx: RunContext[Deps]) -> str:
        return ctx.deps.user

    outcome = await run_agent_async(PydanticAIAgent(agent, deps=deps), "hi", caller=ADA)
    assert outcome.events_of("tool_call_end")[0]["result"] == expected


async def test_concurrent_runs_have_their_own_deps() -> None:
    """Each run gets the deps of its own caller."""
    agent: PydanticAgent[str, str] = PydanticAgent(TestModel(), deps_type=str)

    @agent.tool
    def who(ctx: RunContext[str]) -> str:
        return ctx.deps

    adapted = PydanticAIAgent(agent, deps=lambda run: run.caller.key_hash)
    outcomes = [await run_agent_async(adapted, "hi", caller=caller) for caller in (ADA, BOB)]
    assert [outcome.events_of("tool_call_end")[0]["result"] for outcome in outcomes] == ["ada", "bob"]


async def test_the_context_of_the_openai_sdk_may_depend_on_the_run(model: ModelServer) -> None:
    """The context of an agent of the OpenAI Agents SDK may be a function of the run."""
    model.go.set()
    agents.set_tracing_disabled(disabled=True)
    seen: list[Any] = []

    def instructions(context: agents.RunContextWrapper[Any], _agent: Any) -> str:
        seen.append(context.context)
        return "Be brief."

    async with AsyncOpenAI(base_url=f"{model.url}/v1", api_key="none") as client:
        chat = agents.OpenAIChatCompletionsModel(model="m", openai_client=client)
        agent = agents.Agent[Any](name="a", instructions=instructions, model=chat)
        await run_agent_async(OpenAIAgent(agent, context=lambda run: run.caller.key_hash), "hi", caller=ADA)
    assert seen == ["ada"]


async def test_a_session_of_the_openai_sdk_gets_only_new_messages(model: ModelServer) -> None:
    """If the SDK remembers the conversation, the messages of the request that it knows are not added again."""
    model.go.set()
    agents.set_tracing_disabled(disabled=True)
    async with AsyncOpenAI(base_url=f"{model.url}/v1", api_key="none") as client:
        chat = agents.OpenAIChatCompletionsModel(model="m", openai_client=client)
        session = agents.SQLiteSession("c-1")
        adapted = OpenAIAgent(agents.Agent[Any](name="a", model=chat), session=lambda _run: session)
        await run_agent_async(adapted, "one")
        await run_agent_async(adapted, talk("one", "an answer", "two"))
        items: list[Any] = list(await session.get_items())
        asked = [item["content"] for item in items if item.get("role") == "user"]
        session.close()
    assert asked == ["one", "two"]


def graph_of(node: Callable[..., Any], state: Any = MessagesState, **compiled: Any) -> Any:
    """Return a compiled graph with one node."""
    builder: Any = StateGraph(state, context_schema=compiled.pop("context_schema", None))
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    return builder.compile(**compiled)


class OtherState(TypedDict):
    chat: Annotated[list[Any], add_messages]


class ListState(TypedDict):
    messages: list[Any]


@pytest.mark.parametrize("state", [MessagesState, ListState])
@pytest.mark.parametrize(
    "messages",
    [
        AIMessage("hello"),
        AIMessageChunk(content="hello"),
        [AIMessage("hello")],
        {"role": "assistant", "content": "hello"},
        [{"role": "assistant", "content": "hello"}],
        {"type": "ai", "content": "hello"},
        {"role": "ai", "content": [{"type": "text", "text": "hello"}]},
        ("assistant", "hello"),
        [("assistant", "hello")],
        [("ai", "hello")],
        [["ai", "hello"]],
        [("user", "not this"), {"role": "user", "content": "nor this"}, ("ai", "hello")],
    ],
    ids=str,
)
async def test_every_form_of_a_message_is_the_answer(messages: Any, state: Any) -> None:
    """A node may return the assistant's message as an object, a dict or a pair, alone or in a list."""
    outcome = await run_agent_async(LangGraphAgent(graph_of(lambda _state: {"messages": messages}, state)), "hi")
    assert outcome.text == "hello"


@pytest.mark.parametrize("message", [AIMessage("hello"), {"role": "assistant", "content": "hello"}, ("ai", "hello")])
async def test_messages_may_have_another_name_in_the_state(message: Any) -> None:
    """Messages are found in every channel that adds messages."""
    adapted = LangGraphAgent(graph_of(lambda _state: {"chat": [message]}, OtherState), lambda _request: {"chat": []})
    assert (await run_agent_async(adapted, "hi")).text == "hello"


@pytest.mark.parametrize("value", ["hello", AIMessage("hello"), {"role": "assistant", "content": "hello"}])
async def test_the_value_of_a_workflow_is_the_answer(value: Any) -> None:
    """The answer of a workflow of the functional API is the text or the message that it returns."""

    @entrypoint()
    async def workflow(_given: Any) -> Any:
        return value

    assert (await run_agent_async(LangGraphAgent(workflow), "hi")).text == "hello"


async def test_the_same_answer_twice_is_not_empty() -> None:
    """A node may answer with the same text as in the conversation before."""
    adapted = LangGraphAgent(graph_of(lambda _state: {"messages": [("ai", "hello")]}))
    assert (await run_agent_async(adapted, talk("hi", "hello", "hi"))).text == "hello"


async def test_a_graph_without_an_answer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A graph that returns no message of the assistant gives an empty answer and a warning that says what to return."""
    adapted = LangGraphAgent(graph_of(lambda _state: {"messages": [("user", "mine")]}))
    assert (await run_agent_async(adapted, "hi")).text == ""
    assert "the graph ended without text: return a message of the assistant" in caplog.text


class Labels(TypedDict):
    labels: tuple[str, str]
    messages: list[Any]


async def test_pairs_that_are_no_messages_are_not_shown() -> None:
    """A pair of texts outside the messages is not taken for a message."""
    node = {"labels": ("ai", "robots"), "messages": [("ai", "hello")]}
    assert (await run_agent_async(LangGraphAgent(graph_of(lambda _state: node, Labels)), "hi")).text == "hello"


async def test_config_and_context_of_a_graph_may_depend_on_the_run() -> None:
    """The config and the context of a graph may be functions of the run, and the callbacks of both are called."""
    seen: dict[str, Any] = {}

    async def node(_state: MessagesState, config: RunnableConfig, runtime: Runtime[Any]) -> dict[str, Any]:
        seen.update(config["configurable"], context=runtime.context, tags=config["tags"])
        return {"messages": [("ai", "hello")]}

    adapted = LangGraphAgent(
        graph_of(node, context_schema=dict),
        config=lambda run: {"configurable": {"user": run.caller.key_hash}, "tags": ["mine"]},
        context=lambda run: {"conversation": run.caller.headers["x-conversation"]},
    )
    assert (await run_agent_async(adapted, "hi", caller=ADA)).text == "hello"
    assert (seen["user"], seen["context"], seen["tags"]) == ("ada", {"conversation": "c-1"}, ["mine"])
    assert seen["thread_id"].startswith("chatcmpl-")


def count_node(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("ai", f"{len(state['messages'])}: {state['messages'][-1].text}")]}


async def test_a_thread_remembers_the_conversation() -> None:
    """With its own thread a graph gets each message once, although clients send the whole conversation each time."""
    adapted = LangGraphAgent(
        graph_of(count_node, checkpointer=InMemorySaver()),
        thread_id=lambda run: f"{run.caller.key_hash}/{run.caller.headers['x-conversation']}",
    )
    first = await run_agent_async(adapted, "one", caller=ADA)
    second = await run_agent_async(adapted, talk("one", first.text, "two"), caller=ADA)
    third = await run_agent_async(adapted, "three", caller=ADA)  # a client that sends only the new message
    other = await run_agent_async(adapted, talk("one", "1: one", "two"), caller=BOB)
    assert [outcome.text for outcome in (first, second, third)] == ["1: one", "3: two", "5: three"]
    assert other.text == "3: two"  # a new thread begins with the whole conversation


async def test_by_default_each_run_is_a_new_thread() -> None:
    """Without a thread of its own, a graph with a checkpointer remembers nothing of other runs."""
    adapted = LangGraphAgent(graph_of(count_node, checkpointer=InMemorySaver()))
    texts = [(await run_agent_async(adapted, messages)).text for messages in ("one", talk("one", "x", "two"))]
    assert texts == ["1: one", "3: two"]


async def test_a_program_knows_its_caller(tmp_path: Path) -> None:
    """A program gets the caller in its input line."""
    script = tmp_path / "who.py"
    script.write_text(
        "import json, sys\n"
        "caller = json.loads(sys.stdin.readline())['caller']\n"
        "print(json.dumps({'type': 'result', 'content': json.dumps(caller)}))\n"
    )
    outcome = await run_agent_async(CommandAgent(sys.executable, str(script)), "hi", caller=ADA)
    assert json.loads(outcome.text) == {
        "key_hash": "ada",
        "request_id": "asked.1",
        "headers": {"x-conversation": "c-1"},
    }


async def test_only_functions_are_called() -> None:
    """Values, classes and callable objects are options like others, and only functions are called with the run."""

    class Factory:
        def __call__(self, _run: Run) -> str:
            raise NotImplementedError

    run: Any = None
    for value in (3, Deps, Factory(), {"a": 1}, None):
        assert await value_for(value, run) is value


def test_new_messages_begin_after_the_last_answer() -> None:
    """The new messages are those after the last message of the assistant, or all if there is none."""

    def roles(*names: str) -> list[str]:
        messages = [ChatMessage(role=name, content="x", tool_call_id="1") for name in names]
        return [message.role for message in since_last_answer(messages)]

    assert roles("system", "user") == ["system", "user"]
    assert roles("user", "assistant", "user") == ["user"]
    assert roles("user", "assistant", "tool", "user") == ["tool", "user"]
    assert roles("user", "assistant") == []
