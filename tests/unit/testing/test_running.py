"""Running an agent in a test, without Redis: each shape of agent, its outcome and its errors."""

import asyncio
import functools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from agentstream import AgentResult, Run, RunCancelled, ToolResult
from agentstream.errors import AgentError, InvalidAgentOutput, StartupError
from agentstream.testing import Caller, EmittedEvent, run_agent, run_agent_async
from tests.helpers import TIMEOUT_S
from tests.processes import ROOT

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def text_of(run: Run) -> str:
    return run.request.messages[-1].text


async def on_loop(run: Run) -> AgentResult:
    await asyncio.sleep(0)
    return AgentResult(f"you said {text_of(run)}")


def in_thread(run: Run) -> AgentResult:
    time.sleep(0)
    return AgentResult(f"you said {text_of(run)}")


async def async_words(run: Run) -> AsyncIterator[str]:
    for word in f"you said {text_of(run)}".split():
        yield f"{word} "


def words(run: Run) -> Iterator[str]:
    for word in f"you said {text_of(run)}".split():
        yield f"{word} "


class Agent:
    """An object that is an agent with a start and an end."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    async def __aenter__(self) -> Self:
        self.steps.append("start")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.steps.append("end")

    async def __call__(self, run: Run) -> AgentResult:
        self.steps.append(text_of(run))
        return await on_loop(run)


class PlainObject:
    def __call__(self, run: Run) -> AgentResult:
        return in_thread(run)

    async def generate(self, run: Run) -> AsyncIterator[str]:
        yield f"you said {text_of(run)}"


@asynccontextmanager
async def lifespan() -> AsyncIterator[Any]:
    yield on_loop


async def with_option(run: Run, option: str) -> AgentResult:
    return AgentResult(f"{option} said {text_of(run)}")


@pytest.mark.parametrize(
    "agent",
    [
        on_loop,
        in_thread,
        async_words,
        words,
        Agent(),
        PlainObject(),
        PlainObject().generate,
        lifespan,
        lifespan(),
        functools.partial(with_option, option="you"),
        lambda run: with_option(run, "you"),
        lambda run: async_words(run),  # noqa: PLW0108 -- as users wrap their agents
        lambda run: words(run),  # noqa: PLW0108
    ],
    ids=[
        "async",
        "plain",
        "async generator",
        "generator",
        "managed object",
        "object",
        "generating method",
        "lifespan",
        "context manager",
        "partial",
        "lambda of async",
        "lambda of async generator",
        "lambda of generator",
    ],
)
def test_every_shape_of_agent_runs(agent: Any) -> None:
    """Functions, generators, objects, partials, lambdas and context managers run in a plain test."""
    outcome = run_agent(agent, "hi")
    assert outcome.text.strip() == "you said hi"
    assert outcome.finish_reason == "stop"
    assert outcome.usage.completion_tokens > 0


async def test_an_async_test_awaits_the_run() -> None:
    """In an async test, run_agent_async uses the loop of the test, and run_agent raises an error that names it."""
    assert (await run_agent_async(on_loop, "hi")).text == "you said hi"
    with pytest.raises(RuntimeError, match=r"await run_agent_async\(\.\.\.\)"):
        run_agent(on_loop, "hi")


def test_a_run_gives_everything_that_the_agent_did() -> None:
    """The outcome has the text, its pieces, the reasoning, the events, the client's tool calls and the result."""

    async def busy(run: Run) -> AgentResult:
        run.write_reasoning("hm ")
        run.write_reasoning("so")
        run.write("One. ")
        run.emit("tool_call_start", {"tool": "clock", "arguments": {"zone": "x"}})
        run.emit("custom", {"n": (1, 2)})
        await run.drain()
        run.emit("tool_call_end", {"tool": "clock", "success": True, "latency": 0.5, "result": "noon"})
        run.write("Two.")
        run.write_tool_call("get_weather", {"city": "Oslo"}, id="a").write("")
        other = run.write_tool_call("get_weather", id="b")
        other.write('{"city": ')
        other.write('"Rome"}')
        return AgentResult("ignored", [ToolResult("clock", "noon")], USAGE)

    outcome = run_agent(busy, "hi", tools=[{"type": "function", "function": {"name": "get_weather"}}])
    assert outcome.text == "One. \n\nTwo."  # as clients get it: tools ran between the texts
    assert outcome.pieces == ["One. ", "Two."]
    assert outcome.reasoning == "hm so"
    assert [event.type for event in outcome.events] == ["tool_call_start", "custom", "tool_call_end"]
    assert outcome.events[1] == EmittedEvent("custom", {"n": [1, 2]})
    assert outcome.events_of("tool_call_end")[0]["result"] == "noon"
    assert [(call.id, call.name, call.arguments) for call in outcome.tool_calls] == [
        ("a", "get_weather", '{"city":"Oslo"}'),
        ("b", "get_weather", '{"city": "Rome"}'),
    ]
    assert outcome.finish_reason == "tool_calls"
    assert outcome.usage.model_dump() == USAGE
    assert outcome.result.tool_results == [ToolResult("clock", "noon")]


def test_a_request_may_have_every_field() -> None:
    """Messages may be a list, the fields of a request are passed on, and the caller is the given one."""

    def asking(run: Run) -> AgentResult:
        said = [message.text for message in run.request.messages]
        return AgentResult(f"{run.request.model} {said} {run.request.temperature} {run.caller.headers['X-User']}")

    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    caller = Caller(key_hash="abc", headers={"x-user": "ada"})
    outcome = run_agent(asking, messages, caller=caller, model="m", temperature=0.5)
    assert outcome.text == "m ['be kind', 'hi'] 0.5 ada"


def test_a_yielded_or_returned_result_ends_a_generator() -> None:
    """A generator ends at an AgentResult, whose content counts only if it yielded no text, and its ``finally`` runs."""
    closed = []

    async def on_loop_with_result(run: Run) -> AsyncIterator[str | AgentResult]:
        try:
            yield AgentResult(text_of(run), metadata=USAGE, finish_reason="length")
            raise NotImplementedError
        finally:
            closed.append("async")

    def in_thread_with_result(run: Run) -> Iterator[str | AgentResult]:
        try:
            yield text_of(run)
            yield AgentResult("ignored", finish_reason="length")
            raise NotImplementedError
        finally:
            closed.append("plain")

    def returning(run: Run) -> Any:
        yield text_of(run)
        return AgentResult("", metadata=USAGE, finish_reason="length")

    for agent in (on_loop_with_result, in_thread_with_result, returning):
        outcome = run_agent(agent, "hi")
        assert (outcome.text, outcome.finish_reason) == ("hi", "length")
    assert closed == ["async", "plain"]


async def test_a_generator_is_closed_before_its_run_ends() -> None:
    """A generator that has yielded its result is closed at once, not when Python finds that nobody holds it."""
    closed: list[str] = []
    held: list[Any] = []

    async def answering(_run: Run) -> AsyncIterator[AgentResult]:
        try:
            yield AgentResult("hi")
        finally:
            closed.append("async")

    def answering_in_a_thread(_run: Run) -> Iterator[AgentResult]:
        try:
            yield AgentResult("hi")
        finally:
            closed.append("plain")

    def holding(run: Run) -> Any:
        held.append(answering(run))
        return held[-1]

    def holding_in_a_thread(run: Run) -> Any:
        held.append(answering_in_a_thread(run))
        return held[-1]

    for agent in (holding, holding_in_a_thread):
        assert (await run_agent_async(agent, "hi")).text == "hi"
    assert closed == ["async", "plain"]


def test_an_empty_generator_gives_an_empty_answer() -> None:
    """A generator that yields nothing, or only empty texts, completes with an empty answer."""

    async def nothing(_run: Run) -> AsyncIterator[str]:
        yield ""

    assert run_agent(nothing, "hi").text == ""


def test_an_agent_with_a_lifespan_is_started_and_ended() -> None:
    """The context manager is entered before the run and left after it, also if the agent fails."""
    agent = Agent()
    run_agent(agent, "one")
    assert agent.steps == ["start", "one", "end"]

    class Failing(Agent):
        async def __call__(self, run: Run) -> AgentResult:
            raise ValueError(text_of(run))

    failing = Failing()
    with pytest.raises(ValueError, match="two"):
        run_agent(failing, "two")
    assert failing.steps == ["start", "end"]


def wrong_yield(_run: Run) -> Iterator[Any]:
    yield 3


async def wrong_yield_on_loop(_run: Run) -> AsyncIterator[Any]:
    yield {"text": "hi"}


def wrong_return(_run: Run) -> Any:
    yield "hi"
    return "bye"


def wrong_result(_run: Run) -> Any:
    return "hi"


def wrong_event(run: Run) -> AgentResult:
    run.emit("tool_call_start", {"arguments": "{}"})
    raise NotImplementedError


def wrong_data(run: Run) -> AgentResult:
    run.emit("custom", {"x": object()})
    raise NotImplementedError


def large_event(run: Run) -> AgentResult:
    run.write("x" * (2 << 20))
    raise NotImplementedError


@pytest.mark.parametrize(
    ("agent", "error", "reason"),
    [
        (wrong_yield, InvalidAgentOutput, r"the agent yielded 3 \(int\); it may yield str and one AgentResult"),
        (wrong_yield_on_loop, InvalidAgentOutput, r"the agent yielded .* \(dict\)"),
        (wrong_return, InvalidAgentOutput, "the agent returned str, expected AgentResult"),
        (wrong_result, InvalidAgentOutput, "the agent returned str, expected AgentResult"),
        (wrong_event, InvalidAgentOutput, "'tool_call_start' needs the name of the tool"),
        (wrong_data, InvalidAgentOutput, "cannot be written as JSON"),
        (large_event, InvalidAgentOutput, "the limit is 1048576"),
        (lambda _run: sys.exit(3), AgentError, "SystemExit"),
        (Agent, TypeError, "the agent is the class Agent; name an object of it"),
        (lambda run, database: None, TypeError, r"the agent takes the parameters \(run, database\)"),  # noqa: ARG005
        (lambda: 3, StartupError, "takes no parameter and returned a int"),
    ],
)
def test_mistakes_are_raised_in_the_test(agent: Any, error: type[Exception], reason: str) -> None:
    """A wrong result, event or agent, and the agent's own exception, are raised with the reason."""
    with pytest.raises(error, match=reason):
        run_agent(agent, "hi")


def test_the_agents_own_exception_is_raised() -> None:
    """The exception that the agent raised reaches the test unchanged."""
    error = KeyError("mine")

    async def failing(_run: Run) -> AgentResult:
        raise error

    with pytest.raises(KeyError) as caught:
        run_agent(failing, "hi")
    assert caught.value is error


def test_a_run_has_a_time_limit() -> None:
    """An agent that never ends fails the test, also if it is a generator that never waits; its ``finally`` runs."""
    closed = []

    async def endless(_run: Run) -> AsyncIterator[str]:
        try:
            while True:
                yield ""
        finally:
            closed.append(True)

    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"):
        run_agent(endless, "hi", timeout_s=0.05)
    assert closed == [True]


@pytest.mark.parametrize("in_a_thread", [False, True])
async def test_a_cancel_closes_the_agent(*, in_a_thread: bool) -> None:
    """If the test cancels the run, an async generator is closed, and a plain one at its next piece."""
    loop, began, closed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    async def waiting(_run: Run) -> AsyncIterator[str]:
        try:
            yield "one"
            began.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    def working(_run: Run) -> Iterator[str]:
        try:
            while True:
                yield "one"
                loop.call_soon_threadsafe(began.set)
                time.sleep(0.001)
        finally:
            loop.call_soon_threadsafe(closed.set)

    running = asyncio.create_task(run_agent_async(working if in_a_thread else waiting, "hi"))
    async with asyncio.timeout(TIMEOUT_S):
        await began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await closed.wait()


async def test_a_run_that_is_over_refuses_more_text() -> None:
    """A task that the agent left behind cannot write after the run, as in a worker."""
    runs: list[Run] = []

    async def keeping(run: Run) -> AgentResult:
        runs.append(run)
        return AgentResult("done")

    await run_agent_async(keeping, "hi")
    with pytest.raises(RunCancelled):
        runs[0].write("late")


def test_a_plain_pytest_needs_nothing_else(tmp_path: Any) -> None:
    """A test file with an agent passes under a plain pytest, without plugins and without Redis."""
    (tmp_path / "test_mine.py").write_text(
        "from agentstream import AgentResult\n"
        "from agentstream.testing import run_agent\n\n"
        "async def agent(run):\n    run.write('hi')\n    return AgentResult('')\n\n"
        "def test_it():\n    assert run_agent(agent, 'x').text == 'hi'\n"
    )
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "service"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=50)
    assert ended.returncode == 0, ended.stdout + ended.stderr
