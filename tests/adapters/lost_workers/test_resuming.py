"""The adapters without processes: their agents are killed after each event, and continue."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import agents
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from agentstream.adapters.command import CommandAgent
from agentstream.adapters.langgraph import LangGraphAgent, continuing
from agentstream.adapters.openai_agents import OpenAIAgent
from agentstream.adapters.pydantic_ai import PydanticAIAgent
from agentstream.adapters.resuming import CONTINUE_PROMPT, NOT_RUN, UNKNOWN_OUTCOME, may_run_again
from agentstream.agents import Restored
from agentstream.errors import AgentError
from agentstream.testing import KilledRun, run_agent_async, run_agent_with_kills_async
from tests.adapters.conftest import user
from tests.adapters.counting_model import numbers, run_counting_model
from tests.adapters.lost_workers.resumable_agents import FileSaver

# A kill cancels nodes, and LangChain then leaves coroutines of callbacks behind.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore:coroutine 'ahandle_event' was never awaited"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine object ahandle_event"),
]

FIRST = "Let me look. "
COUNT = 6


def pieces_after(whole: list[str], cut: str) -> list[str]:
    """Return the pieces of an answer after the part that was cut."""
    left = "".join(whole)
    assert left.startswith(cut), f"{cut!r} is not the start of {left!r}"
    while cut:
        cut = cut.removeprefix(whole.pop(0))
    return whole or [""]


def counted() -> list[str]:
    return [f"{number} " for number in range(1, COUNT + 1)]


def text_of(run: KilledRun) -> str:
    """Return the whole text of a run, without the break that follows tools."""
    return run.outcome.text.replace("\n\n", "")


# pydantic-ai


def pydantic_agent(ran: list[str] | None = None, **options: Any) -> PydanticAgent[None, Any]:
    """Return an agent whose model calls a tool, then counts, and continues what was cut."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        parts = [part for message in messages for part in message.parts]
        cut = ""
        if getattr(parts[-1], "content", None) == CONTINUE_PROMPT:
            before = messages[-2]
            assert isinstance(before, ModelResponse)
            cut = "".join(part.content for part in before.parts if isinstance(part, TextPart))
        calls = not any(part.part_kind == "tool-return" for part in parts)
        for piece in pieces_after(["Let me ", "look. "] if calls else counted(), cut):
            yield piece
        if calls:
            yield {0: DeltaToolCall("weather", '{"city": "Oslo"}', tool_call_id="call-1")}

    agent = PydanticAgent(FunctionModel(stream_function=stream), **options)

    @agent.tool_plain
    def weather(city: str) -> str:
        """Return the weather."""
        if ran is not None:
            ran.append(city)
        return f"sunny in {city}"

    return agent


async def test_pydantic_ai_continues_at_every_event() -> None:
    """Wherever a pydantic-ai agent is killed, its answer is whole, and its tool runs once."""
    runs = await run_agent_with_kills_async(PydanticAIAgent(pydantic_agent()), "hi")
    assert {text_of(run) for run in runs} == {FIRST + numbers(COUNT)}
    starts = [len(run.outcome.events_of("agent_turn_start")) for run in runs]
    assert set(starts) == {1}


async def test_pydantic_ai_reports_an_interrupted_tool_to_the_model() -> None:
    """A tool that was interrupted is not run again: the model and the client read that its outcome is not known."""
    ran: list[str] = []
    agent = PydanticAIAgent(pydantic_agent(ran))
    runs = await run_agent_with_kills_async(agent, "hi")
    (interrupted,) = [run for run in runs if run.killed_after == ["tool_call_start of 'weather'"]]
    (end,) = interrupted.outcome.events_of("tool_call_end")
    assert (end["success"], end["result"]) == (False, UNKNOWN_OUTCOME)
    assert text_of(interrupted) == FIRST + numbers(COUNT)


class City(BaseModel):
    name: str


async def test_pydantic_ai_writes_a_structured_output_once() -> None:
    """A structured output that clients have seen is not written again."""

    async def stream(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[dict[int, DeltaToolCall]]:
        yield {0: DeltaToolCall(info.output_tools[0].name, '{"name": "Oslo"}', tool_call_id="out")}

    agent = PydanticAIAgent(PydanticAgent(FunctionModel(stream_function=stream), output_type=City))
    for run in await run_agent_with_kills_async(agent, "hi"):
        assert text_of(run) == '{"name":"Oslo"}'


# OpenAI Agents SDK


async def test_the_openai_sdk_continues_at_every_event() -> None:
    """Wherever an agent of the OpenAI Agents SDK is killed, its answer is whole, and its tool runs once."""
    agents.set_tracing_disabled(disabled=True)

    @agents.function_tool
    def weather(city: str) -> str:
        """Return the weather."""
        return f"sunny in {city}"

    async with run_counting_model(COUNT) as server, AsyncOpenAI(base_url=server.url, api_key="none") as client:
        model = agents.OpenAIChatCompletionsModel("m", openai_client=client)
        first = agents.Agent[Any](name="first", model=model, tools=[weather])
        runs = await run_agent_with_kills_async(OpenAIAgent(first), "hi")
    assert {text_of(run) for run in runs} == {FIRST + numbers(COUNT)}
    assert {len(run.outcome.events_of("agent_turn_start")) for run in runs} == {1}
    results = [end["result"] for run in runs for end in run.outcome.events_of("tool_call_end")]
    assert set(results) == {"sunny in Oslo", UNKNOWN_OUTCOME}


async def test_the_openai_sdk_continues_with_the_agent_that_took_over() -> None:
    """After a handoff, the agent that took over continues, and a handoff that was not done is asked for again."""
    agents.set_tracing_disabled(disabled=True)
    async with run_counting_model(COUNT) as server, AsyncOpenAI(base_url=server.url, api_key="none") as client:
        model = agents.OpenAIChatCompletionsModel("m", openai_client=client)
        second = agents.Agent[Any](name="second", model=model)
        handoff = agents.handoff(second, tool_name_override="weather", input_type=_Place, on_handoff=_ignore)
        first = agents.Agent[Any](name="first", model=model, handoffs=[handoff])
        runs = await run_agent_with_kills_async(OpenAIAgent(first), "hi", at="every checkpoint")
    assert len(runs) > 2
    for run in runs:
        assert text_of(run) == FIRST + numbers(COUNT)


class _Place(BaseModel):
    city: str


def _ignore(_context: Any, _place: _Place) -> None:
    return None


def test_a_memory_elsewhere_makes_an_openai_agent_not_resumable() -> None:
    """An agent whose conversation is kept in a session or by OpenAI is not resumable."""
    agent = agents.Agent[Any](name="a")
    assert OpenAIAgent(agent).resumable
    assert not OpenAIAgent(agent, session=lambda run: agents.SQLiteSession(run.id)).resumable
    assert not OpenAIAgent(agent, conversation_id="c").resumable


# LangGraph


class Counter(BaseChatModel):
    """A LangChain model that calls a tool, then counts, and continues what was cut."""

    tools: bool = True
    says: str = ""

    @property
    def _llm_type(self) -> str:
        return "counter"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError

    def _stream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Any:
        cut = messages[-2].text if messages[-1].content == CONTINUE_PROMPT else ""
        calls = self.tools and not any(isinstance(message, ToolMessage) for message in messages)
        whole = ["Let me ", "look. "] if calls else counted()
        for piece in pieces_after(self.says.split("|") if self.says else whole, str(cut)):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        if calls:
            call = {"name": "weather", "args": '{"city": "Oslo"}', "id": "call-1", "index": 0}
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[call]))


def new_graph() -> Any:
    """Return a graph to build. Its types do not accept nodes that return Any."""
    return StateGraph(MessagesState)


def weather_tool(ran: list[str]) -> Any:
    @tool
    def weather(city: str) -> str:
        """Return the weather."""
        ran.append(city)
        return f"sunny in {city}"

    return weather


def weather_graph(ran: list[str], model: Any = None, *, tool_metadata: Any = None, **compiled: Any) -> Any:
    """Return a graph: a model that calls a tool, the tool, the model again, and a message without a model."""
    model = model or Counter()
    weather = weather_tool(ran)
    weather.metadata = tool_metadata

    async def think(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def sign(_state: MessagesState) -> Any:
        return {"messages": [("ai", "Signed.")]}

    graph = new_graph().add_node("think", think).add_node("tools", ToolNode([weather]))
    graph.add_node("sign", sign).add_edge(START, "think").add_edge("tools", "think")
    graph.add_conditional_edges("think", tools_condition, {"tools": "tools", "__end__": "sign"})
    return graph.compile(**compiled)


WHOLE = FIRST + numbers(COUNT) + "Signed."


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("saver", ["in the run", "in a file"])
async def test_langgraph_continues_at_every_event(tmp_path: Path, saver: str, *, repeats: bool) -> None:
    """Wherever a graph is killed, its answer is whole, whether its model repeats or continues what was cut."""
    model = Counter() if repeats else continuing(Counter())
    in_file = {"checkpointer": FileSaver(tmp_path / "checkpoints")} if saver == "in a file" else {}
    agent = LangGraphAgent(weather_graph([], model, **in_file), resumable=None if in_file else True)
    runs = await run_agent_with_kills_async(agent, "hi")
    assert {text_of(run) for run in runs} == {WHOLE}
    assert {len(run.outcome.events_of("agent_turn_start")) for run in runs} == {1}


async def test_langgraph_reports_an_interrupted_tool_to_the_model() -> None:
    """A ToolNode does not run an interrupted tool again: the model reads that its outcome is not known."""
    runs = await run_agent_with_kills_async(LangGraphAgent(weather_graph([]), resumable=True), "hi")
    (interrupted,) = [run for run in runs if run.killed_after == ["tool_call_start of 'weather'"]]
    (end,) = interrupted.outcome.events_of("tool_call_end")
    assert (end["success"], end["result"]) == (False, UNKNOWN_OUTCOME)


async def test_langgraph_runs_an_idempotent_tool_again() -> None:
    """A tool whose metadata say that it is idempotent runs again, and clients see its start and its end once."""
    graph = weather_graph([], tool_metadata={"idempotent": True})
    agent = LangGraphAgent(graph, resumable=True)
    for run in await run_agent_with_kills_async(agent, "hi", idempotent_tools=["weather"]):
        assert [end["result"] for end in run.outcome.events_of("tool_call_end")] == ["sunny in Oslo"]
        assert len(run.outcome.events_of("tool_call_start")) == 1


async def test_a_tool_in_another_node_fails_the_run_instead_of_running_twice() -> None:
    """If a node calls a tool by itself and is cut, the tool does not run again, and the error says what to do."""
    ran: list[str] = []
    weather = weather_tool(ran)

    async def node(_state: MessagesState) -> Any:
        return {"messages": [("ai", await weather.ainvoke({"city": "Oslo"}))]}

    graph = new_graph().add_node("node", node).add_edge(START, "node").compile()
    with pytest.raises(Exception, match=r"set metadata=.*idempotent") as failure:
        await run_agent_with_kills_async(LangGraphAgent(graph, resumable=True), "hi")
    assert any("killed after tool_call_start" in note for note in failure.value.__notes__)


async def test_langgraph_never_shows_a_different_repeated_answer() -> None:
    """If a repeated node writes another text than clients have seen, the run fails, and nothing is shown twice."""
    answers = iter(["a|b|c", "a|x|c"])

    async def node(state: MessagesState) -> Any:
        return {"messages": [await Counter(tools=False, says=next(answers)).ainvoke(state["messages"])]}

    graph = new_graph().add_node("node", node).add_edge(START, "node").compile()
    agent = LangGraphAgent(graph, resumable=True)
    whole = await run_agent_async(agent, "hi")
    assert whole.text == "abc"
    with pytest.raises(AgentError, match="repeated answer differs"):
        await run_agent_async(agent, "hi", restored=Restored(text="ab"))


async def test_langgraph_subgraphs_continue_at_every_event() -> None:
    """A graph in a node of another graph continues at its own step, and the text of the outer node is not repeated."""

    def saying(text: str) -> Callable[[MessagesState], Any]:
        async def node(state: MessagesState) -> Any:
            return {"messages": [await Counter(tools=False, says=text).ainvoke(state["messages"])]}

        return node

    inner = new_graph().add_node("one", saying("1 |2 ")).add_node("two", saying("3 |4 "))
    compiled = inner.add_edge(START, "one").add_edge("one", "two").compile()

    async def outer(state: MessagesState) -> Any:
        await Counter(tools=False, says="0 |0 ").ainvoke(state["messages"])
        return await compiled.ainvoke({"messages": [HumanMessage("go")]})

    graph = new_graph().add_node("outer", outer).add_node("end", saying("5 |6 "))
    agent = LangGraphAgent(graph.add_edge(START, "outer").add_edge("outer", "end").compile(), resumable=True)
    for run in await run_agent_with_kills_async(agent, "hi"):
        assert text_of(run) == "0 0 1 2 3 4 5 6 "


async def test_a_thread_that_remembers_earlier_runs_continues_at_every_event(tmp_path: Path) -> None:
    """In a thread with the same messages of earlier runs, a killed run shows its own messages once."""
    graph = weather_graph([], Counter(tools=False), checkpointer=FileSaver(tmp_path / "checkpoints"))
    runs = await run_agent_with_kills_async(LangGraphAgent(graph, thread_id="t"), "hi")
    assert {text_of(run) for run in runs} == {numbers(COUNT) + "Signed."}


@pytest.mark.parametrize(
    ("checkpointer", "options", "expected"),
    [
        (None, {}, False),
        (None, {"resumable": True}, True),
        (InMemorySaver(), {}, False),
        (FileSaver(Path("none")), {}, True),
        (FileSaver(Path("none")), {"resumable": False}, False),
        (FileSaver(Path("none")), {"durability": "async"}, False),
    ],
    ids=["no checkpointer", "state in the run", "in memory", "durable", "turned off", "async"],
)
def test_a_graph_is_resumable_if_its_state_survives(checkpointer: Any, options: Any, *, expected: bool) -> None:
    """A graph is resumable if its checkpointer survives the worker and stores each step before the next one."""
    assert LangGraphAgent(weather_graph([], checkpointer=checkpointer), **options).resumable is expected


def test_a_checkpointer_in_memory_cannot_be_resumable() -> None:
    """``resumable=True`` is refused for a checkpointer whose state ends with the worker."""
    with pytest.raises(ValueError, match="survives the worker"):
        LangGraphAgent(weather_graph([], checkpointer=InMemorySaver()), resumable=True)


async def test_a_graph_whose_state_is_too_large_says_why_it_cannot_continue(caplog: pytest.LogCaptureFixture) -> None:
    """If the state is over the limit, the run goes on with a warning, and a later attempt fails with the reason."""

    def node(_state: MessagesState) -> Any:
        return {"messages": [("ai", "done")]}

    graph = new_graph().add_node("node", node).add_edge(START, "node").compile()
    agent = LangGraphAgent(graph, resumable=True)
    half = "x" * (1 << 19)
    question = [user(half), user(half), user("?")]
    assert (await run_agent_async(agent, question)).text == "done"
    assert "no other worker can continue this run" in caplog.text
    with pytest.raises(AgentError, match=r"last state was not stored: .* the limit is 1048576"):
        await run_agent_with_kills_async(agent, question, at="every checkpoint")


# All adapters


@pytest.mark.parametrize("adapter", ["pydantic-ai", "openai-agents", "langgraph", "command"])
async def test_the_state_of_another_adapter_is_refused(adapter: str) -> None:
    """A checkpoint of another adapter, after a deployment of another agent, fails the run with the reason."""
    made: dict[str, Callable[[], Any]] = {
        "pydantic-ai": lambda: PydanticAIAgent(pydantic_agent()),
        "openai-agents": lambda: OpenAIAgent(agents.Agent[Any](name="a")),
        "langgraph": lambda: LangGraphAgent(weather_graph([]), resumable=True),
        "command": lambda: CommandAgent("true", resumable=True),
    }
    with pytest.raises(AgentError, match="checkpoint is not from the adapter"):
        await run_agent_async(made[adapter](), "hi", restored=Restored(state={"adapter": "other"}))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, False),
        ({}, False),
        ({"idempotent": True}, True),
        ({"idempotent": "yes"}, False),
        ({"readOnlyHint": True}, True),
        ({"annotations": {"idempotentHint": True}}, True),
        ({"annotations": {"readOnlyHint": False}}, False),
    ],
    ids=["none", "empty", "idempotent", "no bool", "MCP", "MCP annotations", "MCP denial"],
)
def test_a_tool_runs_again_only_if_it_says_so(metadata: Any, *, expected: bool) -> None:
    """Only a tool whose metadata declare it idempotent or read-only may run again."""
    assert may_run_again(metadata) is expected


async def test_a_call_that_was_not_run_is_reported() -> None:
    """If one of two calls was interrupted, the model reads that the other one was not run."""
    seen: list[str] = []

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        seen.extend(str(getattr(part, "content", "")) for part in messages[-1].parts)
        yield "ok"

    agent = PydanticAIAgent(PydanticAgent(FunctionModel(stream_function=stream)))
    calls = [{"part_kind": "tool-call", "tool_name": "t", "args": "{}", "tool_call_id": str(at)} for at in (1, 2)]
    messages: list[Any] = [
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "hi"}]},
        {"kind": "response", "parts": calls},
    ]
    reporter = {"agent": "a", "usages": [], "results": [], "finish_reason": "stop", "cut_inferences": 0}
    state = {"adapter": "pydantic_ai", "messages": messages, "reporter": {**reporter, "interrupted": {}}}
    event: Any = ("tool_call_start", {"tool": "t", "arguments": "{}", "tool_call_id": "1"})
    outcome = await run_agent_async(agent, "hi", restored=Restored(state=state, events=[_emitted(*event)]))
    assert seen == [UNKNOWN_OUTCOME, NOT_RUN]
    assert outcome.text == "ok"


def _emitted(kind: str, data: dict[str, Any]) -> Any:
    from agentstream.agents import EmittedEvent  # noqa: PLC0415 -- only this test makes one

    return EmittedEvent(kind, data)
