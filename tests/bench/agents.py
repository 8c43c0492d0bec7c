"""The agents that benchmarked workers run."""

import asyncio
import time
from typing import Final

from agentstream.agents import AgentResult, Run
from tests.bench.tokens import WORD, Load, stamp, write_all

SETTLE_S: Final = 0.3  # from the last agent's start until they write

_waiting: list[tuple[Run, asyncio.Future[None]]] = []


async def event(run: Run) -> AgentResult:
    """Emit an event at once, and end."""
    run.emit("agent_turn_start", {"agent": "bench"})
    return AgentResult(content="done")


async def answer(run: Run) -> AgentResult:
    """Give an answer of 20 words, written one by one."""
    for _ in range(20):
        run.write(WORD)
        await asyncio.sleep(0)
    return AgentResult(content=WORD * 20)


async def together(run: Run) -> AgentResult:
    """Wait for all others, then have a load written: the request says ``STREAMS LOAD``, the load as JSON.

    One task writes for all, so that the agents' own waking is not measured.
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
    """Wait for all others, then write as fast as an agent can that lets others have their turn: ``AGENTS TOKENS``."""
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
    """Wait until ``count`` agents do; the last one gets them all, the others None when it has let them go."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _waiting.append((run, done))
    if len(_waiting) < count:
        await done
        return None
    everyone = _waiting[:]
    _waiting.clear()
    await asyncio.sleep(SETTLE_S)
    return everyone
