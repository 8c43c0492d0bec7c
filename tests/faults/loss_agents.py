"""Agents that the tests interrupt. A worker process imports this module by name.

The last message is the script: ``<behaviour>``, or ``<behaviour> on <worker>`` for that worker only. Other workers
answer. TEST_WORKER holds the name of a worker. The agents print these lines, and the tests wait for them::

    note <worker> begins <behaviour> <run id>
    note <worker> ended <behaviour> <run id> <exception's name, or completed>
"""

import asyncio
import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentstream.agents import AgentResult, Run
from agentstream.store.queue import JobQueue

WORKER = os.environ.get("TEST_WORKER", "worker")
GATE = Path(os.environ.get("TEST_GATE", "no-such-gate"))
WORDS = 5
TICK_S = 0.02
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}

Say = Callable[[Run], None]


def _nothing(run: Run) -> None:
    run.emit("agent_turn_start", {"agent": WORKER, "input": ""})


def _text(run: Run) -> None:
    for number in range(WORDS):
        run.write(f"{WORKER}:{number} ")


def _tool(run: Run) -> None:
    run.emit("tool_call_start", {"tool": "charge", "arguments": {"by": WORKER}})


def _tool_and_text(run: Run) -> None:
    _tool(run)
    _text(run)


def _poison(_run: Run) -> None:
    faulthandler._sigsegv()  # type: ignore[attr-defined] # no Python code can refuse a crash of the interpreter


# The first output of each behaviour. Then the agent answers, or waits: for ever, or for the test ("gate").
SAID: dict[str, Say] = {
    "silent": _nothing,
    "text": _text,
    "tool": _tool,
    "poison": _poison,
    "ticks": _nothing,
    "gate": _nothing,
    "text gate": _text,
    "answer": _text,
    "tool answer": _tool_and_text,
}


def _behaviour(run: Run) -> str:
    behaviour, _, worker = run.request.messages[-1].text.partition(" on ")
    if worker in {"", WORKER}:
        return behaviour
    return "tool answer" if behaviour == "tool" else "answer"


def _may_end(behaviour: str) -> bool:
    return behaviour.endswith("answer") or (behaviour.endswith("gate") and GATE.exists())


@contextmanager
def _noted(run: Run, behaviour: str) -> Iterator[None]:
    print(f"note {WORKER} begins {behaviour} {run.id}", flush=True)  # noqa: T201 -- the test reads it
    end = "completed"
    try:
        yield
    except BaseException as exc:
        end = type(exc).__name__
        raise
    finally:
        print(f"note {WORKER} ended {behaviour} {run.id} {end}", flush=True)  # noqa: T201


async def scripted(run: Run) -> AgentResult:
    """Follow the script on the event loop."""
    behaviour = _behaviour(run)
    with _noted(run, behaviour):
        SAID[behaviour](run)
        ticks = 0
        while not _may_end(behaviour):
            if behaviour == "ticks":
                run.write(f"{WORKER}:{ticks} ")
                ticks += 1
            await asyncio.sleep(TICK_S)
        return AgentResult("" if behaviour != "gate" else f"{WORKER} passed", metadata=USAGE)


def scripted_in_a_thread(run: Run) -> AgentResult:
    """Follow the script in a thread. While it waits without writing, it checks ``run.cancelled``."""
    behaviour = _behaviour(run)
    with _noted(run, behaviour):
        SAID[behaviour](run)
        ticks = 0
        while not _may_end(behaviour):
            if behaviour == "ticks":
                run.write(f"{WORKER}:{ticks} ")
                ticks += 1
            elif run.cancelled:
                print(f"note {WORKER} sees run.cancelled {run.id}", flush=True)  # noqa: T201
                run.write("too late")
            time.sleep(TICK_S)
        return AgentResult("", metadata=USAGE)


def _break_second_beat() -> None:
    """Let the second heartbeat of this worker fail with an unexpected error. The first is part of its start."""
    beat, beats = JobQueue.heartbeat, iter(range(2))

    async def broken(queue: JobQueue, *arguments: float, **options: bool) -> None:
        if next(beats, 1):
            message = "broken on purpose"
            raise ValueError(message)
        await beat(queue, *arguments, **options)

    JobQueue.heartbeat = broken  # type: ignore[assignment,method-assign]


if os.environ.get("TEST_BREAK_BEAT"):
    _break_second_beat()
