"""The adapters without processes: conversions of conversations, and the less common features of the frameworks."""

import asyncio
import base64
import importlib
import re
import sys
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    OpenAIChatCompletionsModel,
    function_tool,
    input_guardrail,
    set_tracing_disabled,
)
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolCall
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import BinaryContent, ImageUrl
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from agentstream.adapters import langgraph, openai_agents, pydantic_ai
from agentstream.adapters.run_reporter import MAX_RESULT_CHARS, RunReporter, as_text, total, usage_of
from agentstream.agents import AgentResult, Run
from agentstream.protocol.openai import ChatCompletionRequest, Usage
from tests.adapters.conftest import user
from tests.adapters.model_server import ModelServer
from tests.helpers import TIMEOUT_S, RecordingSink

PIXEL = base64.b64encode(b"pixel").decode()
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "t", "arguments": '{"a":1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "one"},
    {"role": "user", "content": "and?"},
]


def request(*messages: dict[str, Any]) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "m", "messages": list(messages)})


async def play(agent: Any, *messages: dict[str, Any]) -> tuple[AgentResult, list[tuple[str, Any]]]:
    """Run an agent; return its result and its events."""
    sink = RecordingSink()
    async with asyncio.timeout(TIMEOUT_S):
        return await agent(Run("chatcmpl-1", request(*messages), sink)), sink.facts


def texts(facts: list[tuple[str, Any]]) -> str:
    return "|".join(data for kind, data in facts if kind == "text")


# Conversations


def test_pydantic_ai_reads_images_and_earlier_tools() -> None:
    """Roles, images by URL and in data URLs, and a tool call with its result are converted in order."""
    first, second, third = pydantic_ai.conversation(request(*TALK).messages)
    assert isinstance(first, ModelRequest)
    assert isinstance(second, ModelResponse)
    assert isinstance(third, ModelRequest)
    assert [part.part_kind for part in first.parts] == ["system-prompt", "user-prompt"]
    user_part: Any = first.parts[1]
    content = user_part.content
    assert content[0] == "look"
    assert isinstance(content[1], BinaryContent)
    assert (content[1].data, content[1].media_type) == (b"pixel", "image/png")
    assert isinstance(content[2], ImageUrl)
    assert [part.part_kind for part in second.parts] == ["tool-call"]
    returned: Any = third.parts[0]
    assert (returned.tool_name, returned.content, returned.tool_call_id) == ("t", "one", "c1")


def test_openai_agents_read_images_and_earlier_tools() -> None:
    """The same conversation is converted to items of the Responses API."""
    system, question, call, output, last = openai_agents.conversation(request(*TALK).messages)
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in question["content"]] == ["input_text", "input_image", "input_image"]
    assert [part.get("detail") for part in question["content"]] == [None, "auto", "low"]
    assert call == {"type": "function_call", "call_id": "c1", "name": "t", "arguments": '{"a":1}'}
    assert output == {"type": "function_call_output", "call_id": "c1", "output": "one"}
    assert last == user("and?")


def test_openjarvis_reads_images_and_earlier_tools() -> None:
    """The same conversation is converted to OpenJarvis's messages, and the last user message is the input."""
    pytest.importorskip("openjarvis", reason="openjarvis does not support this version of Python")
    from agentstream.adapters import openjarvis  # noqa: PLC0415 -- it may not be installed

    received: list[Any] = []

    class Recorder:
        def run(self, question: str, context: Any) -> Any:
            received.extend([question, context.conversation.messages])
            return AgentResult("x")

    openjarvis.OpenJarvisAgent(lambda _: Recorder())(Run("chatcmpl-1", request(*TALK), RecordingSink()))
    question, (system, earlier, call, output) = received
    assert question == "and?"
    assert (system.role.value, system.content) == ("system", "Be brief.")
    assert (earlier.content, earlier.images) == ("look", [PIXEL])
    assert (call.tool_calls[0].id, call.tool_calls[0].name) == ("c1", "t")
    assert (output.role.value, output.content, output.tool_call_id) == ("tool", "one", "c1")


# LangGraph


def fake(*answers: AIMessage | str) -> GenericFakeChatModel:
    """Return a LangChain model that streams these answers word by word."""
    return GenericFakeChatModel(messages=iter(answers))


def graph_of(node: Any, **options: Any) -> Any:
    return StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile(**options)


async def test_langgraph_nodes_of_both_kinds_stream() -> None:
    """A model's words are streamed from async nodes and from plain nodes, which LangGraph runs in threads."""

    async def on_the_loop(state: MessagesState) -> Any:
        return {"messages": [await fake("a b").ainvoke(state["messages"])]}

    def in_a_thread(state: MessagesState) -> Any:
        return {"messages": [fake("a b").invoke(state["messages"])]}

    for node in (on_the_loop, in_a_thread):
        result, facts = await play(langgraph.LangGraphAgent(graph_of(node)), user("x"))
        assert texts(facts) == "a| |b"
        assert [kind for kind, _ in facts if kind != "text"] == ["agent_turn_start", "inference_start", "inference_end"]
        assert result.metadata == {}  # unknown usage is not reported as zero


async def test_langgraph_messages_of_nodes_are_written_once() -> None:
    """A node's own message is written, but the history and a model's message with a new id are not repeated."""

    async def node(state: MessagesState) -> Any:
        answer = await fake("a b").ainvoke(state["messages"])
        return {"messages": [*state["messages"], AIMessage(answer.text), AIMessage("by hand"), HumanMessage("no")]}

    _, facts = await play(langgraph.LangGraphAgent(graph_of(node)), user("x"), {"role": "assistant", "content": "old"})
    assert texts(facts) == "a| |b|by hand"


async def test_langgraph_models_tagged_nostream_are_not_shown() -> None:
    """The text of a model with the tag nostream is not part of the answer."""

    async def node(state: MessagesState) -> Any:
        await fake("billing").with_config(tags=["nostream"]).ainvoke(state["messages"])
        return {"messages": [AIMessage("Here is your bill.")]}

    _, facts = await play(langgraph.LangGraphAgent(graph_of(node)), user("x"))
    assert texts(facts) == "Here is your bill."


async def test_langgraph_tools_that_fail_are_reported() -> None:
    """A tool that raises is reported as failed, even if the graph handles the error."""

    @tool
    def broken(city: str) -> str:
        """Fail."""
        raise ValueError(city)

    async def think(state: MessagesState) -> Any:
        if len(state["messages"]) > 1:
            return {"messages": [AIMessage("sorry")]}
        return {"messages": [AIMessage("", tool_calls=[ToolCall(name="broken", args={"city": "Oslo"}, id="c1")])]}

    graph = StateGraph(MessagesState).add_node("think", think).add_edge(START, "think")
    graph.add_node("tools", ToolNode([broken], handle_tool_errors=True)).add_edge("tools", "end")
    graph.add_node("end", think).add_edge("think", "tools")
    result, facts = await play(langgraph.LangGraphAgent(graph.compile()), user("x"))
    ended = dict(facts)["tool_call_end"]
    assert (ended["tool"], ended["success"], ended["tool_call_id"]) == ("broken", False, "c1")
    assert "Oslo" in ended["result"]
    assert not result.tool_results[0].success
    assert texts(facts) == "sorry"


async def test_langgraph_input_can_be_customised() -> None:
    """The function ``make_input`` creates the input of a graph with its own state."""

    class State(MessagesState):
        question: str

    def node(state: State) -> Any:
        return {"messages": [AIMessage(state["question"].upper())]}

    graph: Any = StateGraph(State).add_node("node", node).add_edge(START, "node").compile()
    agent = langgraph.LangGraphAgent(graph, lambda received: {"question": received.messages[-1].text})
    assert texts((await play(agent, user("loud")))[1]) == "LOUD"


# pydantic-ai


class City(BaseModel):
    name: str
    size: int


async def test_pydantic_ai_output_that_is_no_text_is_written_as_json() -> None:
    """A structured output is written as JSON and is the answer."""
    agent = PydanticAgent(TestModel(custom_output_args={"name": "Oslo", "size": 3}), output_type=City)
    _, facts = await play(pydantic_ai.PydanticAIAgent(agent), user("x"))
    assert texts(facts) == '{"name":"Oslo","size":3}'


async def test_pydantic_ai_keeps_the_agents_system_prompt() -> None:
    """The agent's system prompt is used with any conversation, unless the request has a system message."""
    seen: list[list[str]] = []

    async def answer(messages: list[Any], _info: AgentInfo) -> Any:
        seen.append([part.content for m in messages for part in m.parts if part.part_kind == "system-prompt"])
        yield "ok"

    agent = pydantic_ai.PydanticAIAgent(PydanticAgent(FunctionModel(stream_function=answer), system_prompt="own"))
    await play(agent, user("x"))
    await play(agent, user("a"), {"role": "assistant", "content": "b"}, user("c"))
    await play(agent, {"role": "system", "content": "theirs"}, user("c"))
    assert seen == [["own"], ["own"], ["theirs"]]


async def test_pydantic_ai_tools_that_fail_are_reported() -> None:
    """A call that asks the model to retry is reported as failed, and the next call as successful."""
    agent = PydanticAgent(TestModel())
    calls: list[int] = []

    @agent.tool_plain(retries=2)
    def picky(number: int) -> str:
        calls.append(number)
        if len(calls) == 1:
            from pydantic_ai import ModelRetry  # noqa: PLC0415 -- only this tool needs it

            message = "not that one"
            raise ModelRetry(message)
        return "fine"

    _, facts = await play(pydantic_ai.PydanticAIAgent(agent), user("x"))
    ends = [data for kind, data in facts if kind == "tool_call_end"]
    assert [(end["tool"], end["success"]) for end in ends] == [("picky", False), ("picky", True)]
    assert "not that one" in ends[0]["result"]


# OpenAI Agents


@pytest.fixture
async def client(model: ModelServer) -> AsyncIterator[AsyncOpenAI]:
    """The SDK's client of the model server."""
    set_tracing_disabled(disabled=True)
    model.go.set()
    async with AsyncOpenAI(base_url=f"{model.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def openai_agent(client: AsyncOpenAI, **options: Any) -> Agent[Any]:
    return Agent(name="one", model=OpenAIChatCompletionsModel("m", openai_client=client), **options)


async def test_an_openai_guardrail_ends_the_run(model: ModelServer, client: AsyncOpenAI) -> None:
    """An input guardrail that is tripped after the model has answered ends the run with its exception."""

    @input_guardrail
    async def never(_context: Any, _agent: Any, _input: Any) -> GuardrailFunctionOutput:
        await model.asked.wait()
        await asyncio.sleep(0.05)
        return GuardrailFunctionOutput(output_info="no", tripwire_triggered=True)

    agent = openai_agents.OpenAIAgent(openai_agent(client, input_guardrails=[never]))
    with pytest.raises(InputGuardrailTripwireTriggered):
        await play(agent, user("hello"))


async def test_an_openai_handoff_is_another_agents_turn(model: ModelServer, client: AsyncOpenAI) -> None:
    """After a handoff the next agent starts a turn with its own name."""
    model.tool = "transfer_to_two"
    two = openai_agent(client).clone(name="two")
    _, facts = await play(openai_agents.OpenAIAgent(openai_agent(client, handoffs=[two])), user("the weather?"))
    assert [data["agent"] for kind, data in facts if kind == "agent_turn_start"] == ["one", "two"]
    assert texts(facts).startswith("Let me look. |It is |")


async def test_openai_tools_that_fail_are_reported(client: AsyncOpenAI) -> None:
    """A tool that raises is reported as failed, and the model reads the SDK's error text."""

    @function_tool
    def weather(city: str) -> str:
        """Fail."""
        raise ValueError(city)

    result, facts = await play(openai_agents.OpenAIAgent(openai_agent(client, tools=[weather])), user("the weather?"))
    assert [data["success"] for kind, data in facts if kind == "tool_call_end"] == [False]
    assert texts(facts).startswith("Let me look. |It is |An error occurred")
    assert result.metadata["total_tokens"] == 42


@pytest.mark.parametrize(
    ("adapter", "framework", "extra"),
    [
        ("langgraph", "langgraph.pregel", "langgraph"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
        ("openai_agents", "agents", "openai-agents"),
        ("openjarvis", "openjarvis.agents._stubs", "openjarvis"),
    ],
)
def test_a_missing_framework_is_named(
    monkeypatch: pytest.MonkeyPatch, adapter: str, framework: str, extra: str
) -> None:
    """If the framework of an adapter is not installed, the ImportError has the pip command."""
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"agentstream.adapters.{adapter}", raising=False)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'agentstream[{extra}]'")):
        importlib.import_module(f"agentstream.adapters.{adapter}")


# The run reporter


def reporter_of() -> tuple[RunReporter, RecordingSink]:
    sink = RecordingSink()
    return RunReporter(Run("chatcmpl-1", request(user("x")), sink), "a"), sink


def test_a_long_result_is_cut_in_the_events() -> None:
    """A tool's result is cut at the limit, both in the event and in the run's result."""
    reporter, sink = reporter_of()
    reporter.tool_start("k", "t", {"x": 1}, "c")
    reporter.tool_end("k", "y" * (MAX_RESULT_CHARS + 1), success=True)
    reporter.tool_end("k", "again", success=True)  # this call has already ended
    assert len(sink.facts) == 2
    assert len(sink.facts[1][1]["result"]) == len(reporter.result().tool_results[0].content) == MAX_RESULT_CHARS


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("length", "length"), ("content_filter", "content_filter"), ("tool_calls", "stop"), (None, "stop")],
)
def test_the_last_inferences_finish_reason_is_the_runs(
    reason: str | None, expected: Literal["stop", "length", "content_filter"]
) -> None:
    """The run has the finish_reason of its last inference if it is length or content_filter, and otherwise stop."""
    reporter, _ = reporter_of()
    reporter.inference_end("m", None, "length")
    reporter.inference_end("m", None, reason)
    assert reporter.result().finish_reason == expected


def test_usage_is_summed_only_if_all_of_it_is_known() -> None:
    """If the usage of one inference is not known, there is no sum."""
    one = usage_of(1, 2)
    assert one == Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    assert usage_of(None, 0) is None
    assert total([one, one])["total_tokens"] == 6
    assert total([one, None]) == total([]) == {}


def test_anything_becomes_text() -> None:
    """A string is unchanged, and other values become JSON or else their str."""
    assert as_text("x") == "x"
    assert as_text({"a": object, 1: 2}) == '{"a":"<class \'object\'>","1":2}'
    assert as_text(2**70) == str(2**70)
