"""The shapes of agents: what can be an agent, and how a generator becomes a function.

    shape                                       runs             ends with
    ==========================================  ===============  ==============================================
    ``async def``                               on the loop      the returned AgentResult
    plain ``def``                               in a thread      the returned AgentResult
    ``async def`` with ``yield``                on the loop      a yielded AgentResult, or the end
    plain ``def`` with ``yield``                in a thread      a yielded or returned AgentResult, or the end
    object whose ``__call__`` is one of these   like the method  like the method

A plain ``def`` may also return a coroutine or a generator, for example ``lambda run: my_agent(run, database)``.
Each ``str`` that a generator yields is written with ``run.write``. ``agents.lifespan`` has the agents that need a
start and an end.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import Any, Final, cast

from agentstream.agents.contract import Agent, AgentResult, Run
from agentstream.errors import InvalidAgentOutput

Pieces = Generator[object, None, object]
AsyncPieces = AsyncGenerator[object, None]

RIGHT_FORM: Final = "write `async def agent(run: Run) -> AgentResult:`, or a plain `def` if it blocks"


def as_agent(found: object) -> Agent:
    """Return a user's object as an agent; a generator function becomes a function that writes what it yields.

    Raises TypeError if the object cannot be an agent. The message has no subject: the caller puts
    the name of the object before it.
    """
    if reason := _reason_against(found):
        raise TypeError(reason)
    if _has_kind(inspect.isasyncgenfunction, found):
        return _AsyncGeneratorAgent(cast("Callable[[Run], AsyncPieces]", found))
    if _has_kind(inspect.isgeneratorfunction, found):
        return _GeneratorAgent(cast("Callable[[Run], Pieces]", found))
    return cast("Agent", found)


def name_of(agent: object) -> str:
    """Return the agent's ``name``, or else the name of its function or class."""
    name: object = getattr(agent, "name", None) or getattr(agent, "__name__", None)
    return str(name or type(agent).__name__)


def is_async(agent: Agent) -> bool:
    """Return whether the agent runs on the event loop: it is ``async``. A plain agent runs in a thread."""
    return _has_kind(inspect.iscoroutinefunction, agent)


def is_resumable(agent: object) -> bool:
    """Return whether the agent declares that it can continue a run: it has ``resumable = True``."""
    return getattr(agent, "resumable", False) is True


def takes_inputs(agent: object) -> bool:
    """Return whether the agent declares that it takes messages while it works: it has ``takes_inputs = True``."""
    return getattr(agent, "takes_inputs", False) is True


def takes_nothing(found: object) -> bool:
    """Return whether ``found`` is a plain function without parameters, and no generator."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    if not (inspect.isroutine(found) or isinstance(found, functools.partial)) or any(kind(found) for kind in kinds):
        return False
    try:
        return not inspect.signature(found).parameters
    except (TypeError, ValueError):  # a built-in function without a signature
        return False


def returned_in_thread(outcome: object, run: Run) -> object:
    """Return the result of a plain function. If it returned a generator, run the generator, in this thread."""
    return _write_all(cast("Pieces", outcome), run) if inspect.isgenerator(outcome) else outcome


async def returned_on_loop(outcome: object, run: Run) -> object:
    """Return the result of a function. If it returned a coroutine or async generator, run it, on this event loop."""
    while inspect.iscoroutine(outcome):
        outcome = await outcome
    return await _write_all_async(cast("AsyncPieces", outcome), run) if inspect.isasyncgen(outcome) else outcome


class _AsyncGeneratorAgent:
    """An agent made of an ``async def`` with ``yield``."""

    def __init__(self, function: Callable[[Run], AsyncPieces]) -> None:
        functools.update_wrapper(self, function, updated=())
        self.name = name_of(function)
        self.resumable = is_resumable(function)
        self.takes_inputs = takes_inputs(function)
        self._function = function

    async def __call__(self, run: Run) -> AgentResult:
        return cast("AgentResult", await _write_all_async(self._function(run), run))


class _GeneratorAgent:
    """An agent made of a plain ``def`` with ``yield``."""

    def __init__(self, function: Callable[[Run], Pieces]) -> None:
        functools.update_wrapper(self, function, updated=())
        self.name = name_of(function)
        self.resumable = is_resumable(function)
        self.takes_inputs = takes_inputs(function)
        self._function = function

    def __call__(self, run: Run) -> AgentResult:
        return cast("AgentResult", _write_all(self._function(run), run))


async def _write_all_async(pieces: AsyncPieces, run: Run) -> object:
    """Write what the generator yields until it ends or yields an AgentResult. Close it in any case."""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, AgentResult):
                return piece
            _write(piece, run)
            await run.drain()
    return AgentResult("")


def _write_all(pieces: Pieces, run: Run) -> object:
    """Write what the generator yields until it ends, or yields or returns an AgentResult. Close it in any case."""
    with closing(pieces):
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return AgentResult("") if end.value is None else end.value
            if isinstance(piece, AgentResult):
                return piece
            _write(piece, run)


def _write(piece: object, run: Run) -> None:
    if not isinstance(piece, str):
        message = f"the agent yielded {piece!r:.120} ({type(piece).__name__}); it may yield str and one AgentResult"
        raise InvalidAgentOutput(message)
    run.write(piece)


def _has_kind(kind: Callable[[Any], bool], found: object) -> bool:
    """Return whether a function, or the ``__call__`` of an object, is of a kind, for example a coroutine function."""
    return kind(found) or (not inspect.isclass(found) and kind(getattr(found, "__call__", None)))  # noqa: B004


def _reason_against(found: object) -> str | None:
    """Return the reason why an object cannot be an agent, with the right form; None if it can be one."""
    if inspect.isclass(found):
        return f"is the class {found.__name__}; name an object of it, for example `agent = {found.__name__}()`"
    if inspect.iscoroutine(found) or inspect.isgenerator(found) or inspect.isasyncgen(found):
        kind = "coroutine" if inspect.iscoroutine(found) else "generator"
        if not inspect.isasyncgen(found):
            found.close()  # Python must not warn that nobody awaited it
        return f"is a {kind} object, the result of a call; name the function {found.__name__!r} without calling it"
    if not callable(found):
        return f"is a {type(found).__name__}; expected a function or object that takes a Run: {RIGHT_FORM}"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # a built-in function without a signature
        return None
    try:
        signature.bind(None)
    except TypeError:
        taken = f"the parameters {signature}" if signature.parameters else "no parameter"
        return f"takes {taken}, but an agent is called with one argument, the run: {RIGHT_FORM}"
    return None
