"""The agents of the benchmark's workers."""

import asyncio
import time
from typing import Final

from agentstream.agents import AgentResult, Run
from tests.bench.tokens import WORD, Load, Pace, stamp, write_all, write_at_pace

STARTED_TIMEOUT_S: Final = 20.0
SETTLE_S: Final = 0.3  # pause between the start of the last agent and the first write

_waiting: list[tuple[Run, asyncio.Future[None]]] = []
_held: list[Run] = []
_another_held = asyncio.Condition()


async def event(run: Run) -> AgentResult:
    """Emit one event and return."""
    run.emit("agent_turn_start", {"agent": "bench"})
    return AgentResult(content="done")


async def answer(run: Run) -> AgentResult:
    """Write an answer of 20 words, word by word."""
    for _ in range(20):
        run.write(WORD)
        await asyncio.sleep(0)
    return AgentResult(content=WORD * 20)


async def short(run: Run) -> AgentResult:
    """Emit one event and return an answer of 20 words."""
    run.emit("agent_turn_start", {"agent": "bench"})
    return AgentResult(content=WORD * 20)


async def at_pace(run: Run) -> AgentResult:
    """Hold the stream of a request ``hold``. If the text is a Pace as JSON, let its streams write, and then return."""
    text = run.request.messages[-1].text
    if text == "hold":
        async with _another_held:
            _held.append(run)
            _another_held.notify_all()
        await asyncio.Event().wait()
    pace = Pace.model_validate_json(text)
    async with asyncio.timeout(STARTED_TIMEOUT_S), _another_held:
        await _another_held.wait_for(lambda: len(_held) >= pace.streams)
    await write_at_pace(pace, [held.write for held in _held])
    return AgentResult(content="written")


async def together(run: Run) -> AgentResult:
    """Wait until all agents have started, then write a load. The request text is ``STREAMS LOAD``, with LOAD as JSON.

    One task writes for all agents, so that the benchmark does not measure how their tasks wake up.
    """
    streams, load_json = run.request.messages[-1].text.split(" ", 1)
    if (writing := await _wait_for_all(run, int(streams))) is not None:
        load = Load.model_validate_json(load_json)

        def write(stream: int, _: int) -> None:
            for _ in range(load.burst):
                writing[stream][0].write(stamp() if load.stamped else WORD)

        await write_all(load, len(writing), write)
        for _, done in writing:
            if not done.done():
                done.set_result(None)
    return AgentResult(content="")


async def busy(run: Run) -> AgentResult:
    """Wait until all agents have started, then write fast, with a sleep(0) per token. The text is ``AGENTS TOKENS``."""
    agents, tokens = map(int, run.request.messages[-1].text.split())
    if (writing := await _wait_for_all(run, agents)) is not None:
        print(f"begun {time.monotonic()}", flush=True)
        for _, done in writing:
            if not done.done():
                done.set_result(None)
    for _ in range(tokens):
        run.write(WORD)
        await asyncio.sleep(0)
    return AgentResult(content="")


async def _wait_for_all(run: Run, count: int) -> list[tuple[Run, asyncio.Future[None]]] | None:
    """Wait until ``count`` agents have called this.

    Returns all of them, with their futures, to the last caller. Returns None to another caller when its future is done.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _waiting.append((run, done))
    if len(_waiting) < count:
        await done
        return None
    everyone = _waiting[:]
    _waiting.clear()
    await asyncio.sleep(SETTLE_S)
    return everyone
