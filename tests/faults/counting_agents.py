"""Resumable agents that count aloud. A worker process imports this module by name.

The last message is the script: ``<behaviour> to <number>``. Each number is written as one piece of text, and each is
written once, whatever happens to the workers. Behaviours other than ``count`` do one thing more, see below. The agents
print a line when they begin::

    note <worker> counts from <number> <run id>
"""

import asyncio
import faulthandler
import os
import time
from pathlib import Path

from agentstream import AgentResult, Run, resumable
from agentstream.agents import Restored

WORKER = os.environ.get("TEST_WORKER", "worker")
GATE = Path(os.environ.get("TEST_GATE", "no-such-gate"))
TICK_S = float(os.environ.get("TEST_TICK_S", "0.02"))
CHECKPOINT_EVERY = 5
GATES = 22, 42, 62  # numbers after which some behaviours wait until the test opens the gate
CRASH_AFTER = 10  # numbers of each attempt
PADDING = 4000
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def script(run: Run) -> tuple[str, int]:
    """Return the behaviour and the last number."""
    behaviour, _, last = run.request.messages[-1].text.partition(" to ")
    return behaviour, int(last or 20)


def reached(restored: Restored | None) -> int:
    """Return the last number that an earlier attempt wrote: the state is the number at the last checkpoint."""
    return 0 if restored is None else (restored.state or 0) + restored.text.count(" ")


def piece(behaviour: str, number: int) -> str:
    """Return the text of a number."""
    return f"{number}{'.' * PADDING if behaviour in {'padded', 'unsaved'} else ''} "


def state_at(behaviour: str, number: int) -> object:
    """Return the state after a number. Some behaviours give one that cannot be stored."""
    return {"not json": object(), "large": "x" * (1 << 20)}.get(behaviour, number)


def before(run: Run, behaviour: str, first: int, number: int) -> None:
    """Do the one thing that this behaviour does before it writes a number."""
    if behaviour == "poison" and (number > CRASH_AFTER or run.restored):
        faulthandler._sigsegv()  # type: ignore[attr-defined] # no Python code can refuse a crash of the interpreter
    if behaviour == "crash" and number == first + CRASH_AFTER:
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    if behaviour == "story" and number % 10 == 0:
        tool = {"tool": "look", "arguments": {"number": number}}
        run.emit("tool_call_start", tool)
        run.emit("tool_call_end", {"tool": "look", "success": True, "latency": 0.25, "result": "\u00fc\u2028"})
        run.write_reasoning(f"after {number - 1} comes {number}\n")


def waits(behaviour: str, number: int) -> bool:
    """Return whether the agent must wait now until the test opens a gate: the middle one, or any of them."""
    if number not in GATES or behaviour in {"count", "poison", "crash"}:
        return False
    return (number == GATES[1] or behaviour == "gates") and not GATE.with_name(f"{GATE.name}-{number}").exists()


def begin(run: Run, restored: Restored | None) -> tuple[str, range]:
    """Print that the agent begins. Return the behaviour and the numbers that are still to be written."""
    behaviour, last = script(run)
    first = reached(restored) + 1
    print(f"note {WORKER} counts from {first} {run.id}", flush=True)  # noqa: T201 -- the test reads it
    return behaviour, range(first, last + 1)


def is_checkpoint(behaviour: str, number: int) -> bool:
    """Return whether the agent stores its state after this number."""
    return number % CHECKPOINT_EVERY == 0 and behaviour != "unsaved"


async def _count(run: Run, restored: Restored | None) -> AgentResult:
    behaviour, numbers = begin(run, restored)
    for number in numbers:
        before(run, behaviour, numbers[0], number)
        run.write(piece(behaviour, number))
        if is_checkpoint(behaviour, number):
            await run.checkpoint(state_at(behaviour, number))
        await asyncio.sleep(TICK_S)
        while waits(behaviour, number):  # noqa: ASYNC110 -- another process creates the file
            await asyncio.sleep(TICK_S)
    return AgentResult("", metadata=USAGE)


@resumable
async def counting(run: Run) -> AgentResult:
    """Count on the event loop, with a checkpoint every few numbers."""
    return await _count(run, run.restored)


@resumable
def counting_in_a_thread(run: Run) -> AgentResult:
    """Count in a thread, with a checkpoint every few numbers."""
    behaviour, numbers = begin(run, run.restored)
    for number in numbers:
        before(run, behaviour, numbers[0], number)
        run.write(piece(behaviour, number))
        if is_checkpoint(behaviour, number):
            run.checkpoint(state_at(behaviour, number))
        time.sleep(TICK_S)
        while waits(behaviour, number):
            time.sleep(TICK_S)
    return AgentResult("", metadata=USAGE)


@resumable
async def silent(run: Run) -> AgentResult:
    """Store a checkpoint, then show nothing until the gate is open."""
    print(f"note {WORKER} counts from {reached(run.restored) + 1} {run.id}", flush=True)  # noqa: T201
    await run.checkpoint(0)
    while not GATE.exists():  # noqa: ASYNC110, ASYNC240 -- another process creates it
        await asyncio.sleep(TICK_S)
    return AgentResult("done", metadata=USAGE)


@resumable
async def newer(run: Run) -> AgentResult:
    """Fail on every state of the agents above, as a newer version with another form of its state does."""
    if run.restored is None:
        return await _count(run, None)
    print(f"note {WORKER} counts from {run.restored.state['number']} {run.id}", flush=True)  # noqa: T201
    raise AssertionError


async def not_resumable(run: Run) -> AgentResult:
    """Count, and cannot continue: it reads nothing of an earlier attempt, and makes checkpoints for nobody."""
    assert run.restored is None
    return await _count(run, None)


@resumable
async def deaf(run: Run) -> AgentResult:
    """Continue at the last checkpoint, but ignore the text that was shown after it. This is wrong."""
    restored = run.restored
    return await _count(run, restored and Restored(state=restored.state))
