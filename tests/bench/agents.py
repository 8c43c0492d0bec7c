"""The agents that benchmarked workers run."""

import asyncio

from service.agents import AgentResult, Run
from tests.bench.tokens import WORD, Load, stamp, write_all

_waiting: list[tuple[Run, asyncio.Future[None]]] = []

ANSWER = WORD * 20


async def event(run: Run) -> AgentResult:
    """Emit an event at once, and end."""
    run.emit("agent_turn_start", {"agent": "bench"})
    return AgentResult(content="done")


async def answer(run: Run) -> AgentResult:
    """Give an answer of 20 words, written one by one."""
    for _ in range(20):
        run.write(WORD)
        await asyncio.sleep(0)
    return AgentResult(content=ANSWER)


async def together(run: Run) -> AgentResult:
    """Wait for all others, then write a load together: the request tells how many streams there are, and the load.

    ``streams load``, the load as JSON. One task writes for all, so that the agents' own waking is not measured.
    """
    streams, load_json = run.request.messages[-1].text.split(" ", 1)
    load = Load.model_validate_json(load_json)
    done = asyncio.get_running_loop().create_future()
    _waiting.append((run, done))
    if len(_waiting) == int(streams):
        writing = _waiting[:]
        _waiting.clear()
        await asyncio.sleep(0.2)

        def write(stream: int, _: int) -> None:
            for _ in range(load.burst):
                writing[stream][0].write(stamp() if load.stamped else WORD)

        await write_all(load, len(writing), write)
        for _, other in writing:
            other.set_result(None)
    await done
    return AgentResult(content="")


async def busy(run: Run) -> AgentResult:
    """Write as fast as an agent can that lets others have their turn, for as many tokens as asked."""
    for _ in range(int(run.request.messages[-1].text)):
        run.write(WORD)
        await asyncio.sleep(0)
    return AgentResult(content="")
