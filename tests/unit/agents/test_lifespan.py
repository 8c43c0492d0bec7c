"""Agents with a start and an end: their context managers are entered once and left once, in bounded time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import pytest

from agentstream.agents import AgentResult, Run, lifespan
from agentstream.agents.lifespan import ManagedAgent, started
from agentstream.errors import StartupError
from tests.helpers import TIMEOUT_S


async def answer(run: Run) -> AgentResult:
    raise NotImplementedError


class Recorded:
    """An agent that records its start and end. ``value`` is what its context manager gives."""

    def __init__(self, value: object = None, name: str = "recorded", steps: list[str] | None = None) -> None:
        self.value = value
        self.name = name
        self.steps = [] if steps is None else steps

    async def __aenter__(self) -> object:
        self.steps.append(f"{self.name} starts")
        return self.value

    async def __aexit__(self, *error: object) -> None:
        assert error == (None, None, None)
        self.steps.append(f"{self.name} ends")

    async def __call__(self, run: Run) -> AgentResult:
        raise NotImplementedError


def managed(source: object) -> ManagedAgent:
    return ManagedAgent("agent 'm:a'", source)


async def run_lifespan(*agents: ManagedAgent, limit_s: float = TIMEOUT_S, stop: asyncio.Event | None = None) -> bool:
    """Start and end agents; return whether all were started inside the block."""
    async with started(agents, limit_s=limit_s, stop=stop or asyncio.Event()):
        return all(agent._agent is not None for agent in agents)


async def test_the_object_itself_is_the_agent_if_its_manager_gives_nothing() -> None:
    """An object that is both agent and context manager is the agent, and is entered and left once."""
    source = Recorded()
    agent = managed(source)
    async with started([agent], limit_s=TIMEOUT_S, stop=asyncio.Event()):
        assert agent.agent is source
        assert source.steps == ["recorded starts"]
    assert source.steps == ["recorded starts", "recorded ends"]


async def test_the_value_of_the_context_manager_is_the_agent() -> None:
    """If the context manager gives a value, the value is the agent."""
    agent = managed(Recorded(value=answer))
    async with started([agent], limit_s=TIMEOUT_S, stop=asyncio.Event()):
        assert agent.agent is answer


@pytest.mark.parametrize("called", [False, True])
async def test_a_function_of_contextlib_gives_the_agent(*, called: bool) -> None:
    """A function with @asynccontextmanager is an agent, and so is the context manager that it returns."""
    steps: list[str] = []

    @asynccontextmanager
    async def source() -> AsyncIterator[Any]:
        steps.append("start")
        yield answer
        steps.append("end")

    agent = managed(source() if called else source)
    async with started([agent], limit_s=TIMEOUT_S, stop=asyncio.Event()):
        assert agent.agent is answer
    assert steps == ["start", "end"]


async def test_a_generator_may_have_a_lifespan() -> None:
    """The value of a context manager may have any shape of an agent."""

    async def words(run: Run) -> AsyncIterator[str]:
        yield run.id

    agent = managed(Recorded(value=words))
    async with started([agent], limit_s=TIMEOUT_S, stop=asyncio.Event()):
        assert agent.agent.name == "words"  # type: ignore[union-attr]  # its wrapper has a name


async def test_agents_end_in_the_opposite_order() -> None:
    """Agents are started in order and ended in the opposite order."""
    steps: list[str] = []
    assert await run_lifespan(managed(Recorded(name="a", steps=steps)), managed(Recorded(name="b", steps=steps)))
    assert steps == ["a starts", "b starts", "b ends", "a ends"]


async def test_if_one_agent_fails_to_start_the_others_end() -> None:
    """An agent that fails to start stops the start with its name, its error and its line; the earlier agents end."""
    steps: list[str] = []

    class Failing(Recorded):
        async def __aenter__(self) -> object:
            message = "no database"
            raise ConnectionError(message)

    with pytest.raises(StartupError, match=r"agent 'm:a' could not start: ConnectionError: no database, at .*line \d"):
        await run_lifespan(managed(Recorded(name="a", steps=steps)), managed(Failing()))
    assert steps == ["a starts", "a ends"]


@contextmanager
def not_async() -> Any:
    yield answer


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Recorded(value=3), "its context manager gave a value that is a int; expected a function"),
        (Recorded(value=Recorded), "its context manager gave a value that is the class Recorded"),
        (lambda: answer, "takes no parameter and returned a function. An agent takes the run"),
        (lambda: answer(None), "takes no parameter and returned a coroutine"),  # type: ignore[arg-type]  # never awaited
        (not_async, "returned a _GeneratorContextManager.*decorate it with @contextlib.asynccontextmanager"),
        (lambda: sorted(3), "could not start: TypeError"),  # type: ignore[call-overload]  # the mistake of a user
        (lambda: exec("raise SystemExit(3)"), "could not start: SystemExit: 3"),  # noqa: S102 -- a statement in a lambda
    ],
)
async def test_what_gives_no_agent_is_refused(source: object, reason: str) -> None:
    """A context manager or function that gives no agent stops the start, with the agent's name and the reason."""
    with pytest.raises(StartupError, match=reason) as refusal:
        await run_lifespan(managed(source))
    assert "agent 'm:a'" in str(refusal.value)


async def test_a_manager_of_contextlib_without_a_value_is_refused() -> None:
    """A function with @asynccontextmanager that yields nothing gives no agent, and its end is still run."""
    ended = False

    @asynccontextmanager
    async def source() -> AsyncIterator[None]:
        nonlocal ended
        yield
        ended = True

    with pytest.raises(StartupError, match="gave a value that is a NoneType"):
        await run_lifespan(managed(source))
    assert ended


class Slow(Recorded):
    """An agent whose start never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.waits.set()
        await asyncio.Event().wait()
        return self


async def test_a_start_that_takes_too_long_is_refused() -> None:
    """A start has a time limit, and its error names the setting."""
    with pytest.raises(
        StartupError, match=r"'recorded' did not start within 0.01 s.*AGENTSTREAM_AGENT_START_TIMEOUT_S"
    ):
        await run_lifespan(managed(Slow()), limit_s=0.01)


async def test_a_stop_ends_the_start() -> None:
    """If the process is told to stop during the start, the start is given up without an error."""
    stop, slow = asyncio.Event(), Slow()
    starting = asyncio.create_task(run_lifespan(managed(slow), stop=stop))
    async with asyncio.timeout(TIMEOUT_S):
        await slow.waits.wait()
        stop.set()
        assert not await starting
    assert slow.steps == []


async def test_an_error_at_the_end_is_logged_and_the_others_still_end(caplog: pytest.LogCaptureFixture) -> None:
    """An agent that fails to close does not keep others from closing, and its error is logged."""

    class Failing(Recorded):
        async def __aexit__(self, *error: object) -> None:
            message = "cannot close"
            raise OSError(message)

    first = Recorded()
    assert await run_lifespan(managed(first), managed(Failing()))
    assert first.steps[-1] == "recorded ends"
    assert "could not be closed" in caplog.text


async def test_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that does not close in time is cancelled."""

    class Hanging(Recorded):
        async def __aexit__(self, *error: object) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(lifespan, "LEAVE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(lifespan, "EXIT_AFTER_S", TIMEOUT_S)
    async with asyncio.timeout(TIMEOUT_S):
        assert await run_lifespan(managed(Hanging()))
    assert "did not close within 0.01 s" in caplog.text


async def test_an_agent_that_was_not_started_cannot_be_called() -> None:
    """Before its start there is no agent, and the error says so."""
    with pytest.raises(RuntimeError, match="was not started"):
        _ = managed(Recorded()).agent
