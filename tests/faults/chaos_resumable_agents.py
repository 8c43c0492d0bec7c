"""Resumable agents whose work can be checked, and tools for the built-in agent that record their executions.

``charge`` must not run twice; ``look`` may. Each execution adds a line to the file of the plan's key, outside the
service.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentstream import AgentResult, Run, resumable
from agentstream.tools.base import idempotent
from tests.faults.chaos_agents import FOLDER_VARIABLE, Plan, plan_of, tool_name, word

CHECKPOINT_EVERY = 7  # steps


def record(key: str, name: str, number: int) -> None:
    """Add a line to the file of the executions."""
    file = os.open(Path(os.environ[FOLDER_VARIABLE]) / key, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, f"{name}-{number}\n".encode())  # one write: the file has the whole line or nothing of it
    finally:
        os.close(file)


def charge(key: str, number: int) -> str:
    """Charge somebody: this must not happen twice."""
    record(key, "charge", number)
    return "charged"


@idempotent
def look(key: str, number: int) -> str:
    """Look something up: this may be repeated."""
    record(key, "look", number)
    return "seen"


TOOLS = {"charge": charge, "look": look}


@dataclass
class Progress:
    """What the earlier attempts have done: the number of steps at the last checkpoint, and everything after it."""

    steps: int = 0
    words: int = 0
    started: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, run: Run) -> "Progress":
        """Read it from ``run.restored``."""
        if (restored := run.restored) is None:
            return cls()
        numbers: dict[str, set[int]] = {"tool_call_start": set(), "tool_call_end": set()}
        for event in restored.events:
            if event.type == "tool_call_start":
                numbers[event.type].add(event.data["arguments"]["number"])
            elif event.type == "tool_call_end":
                numbers[event.type].add(int(event.data["tool_call_id"]))
        state = restored.state or {"steps": 0}
        return cls(state["steps"], restored.text.count("#"), *numbers.values())


def steps_of(plan: Plan) -> list[tuple[str, int]]:
    """Return the steps of a plan: (word or tool, number)."""
    steps = [("tool", number) for number in range(plan.tools_first)]
    words = [("word", number) for number in range(plan.words)]
    half = plan.words // 2
    return [*steps, *words[:half], *([("tool", plan.tools_first)] if plan.tool_between else []), *words[half:]]


def rest_of(run: Run, plan: Plan) -> Iterator[tuple[int, str, int]]:
    """Return the steps that are still to be done, as (number of steps so far, kind, number)."""
    done = Progress.of(run)
    words = done.words
    for count, (kind, number) in enumerate(steps_of(plan)[done.steps :], done.steps + 1):
        if kind == "word" and words:
            words -= 1
        elif kind == "word":
            yield count, kind, number
        elif number in done.started and number not in done.ended and tool_name(number) == "charge":
            ended(run, number, "interrupted")
        elif number not in done.ended:
            yield count, "started tool" if number in done.started else kind, number


def ended(run: Run, number: int, result: str) -> None:
    """Emit the end of a tool."""
    end = {"tool": tool_name(number), "success": True, "latency": 0.0, "result": result, "tool_call_id": str(number)}
    run.emit("tool_call_end", end)


def started(run: Run, number: int) -> None:
    """Emit the start of a tool."""
    run.emit("tool_call_start", {"tool": tool_name(number), "arguments": {"number": number}})


def use(run: Run, plan: Plan, number: int) -> None:
    """Run a tool whose start is stored."""
    ended(run, number, TOOLS[tool_name(number)](plan.key, number))


def state(count: int) -> Any:
    """Return the state after so many steps."""
    return {"steps": count}


@resumable
async def steady(run: Run) -> AgentResult:
    """Follow the plan on the event loop."""
    plan = plan_of(run)
    if run.restored is None:
        await asyncio.sleep(plan.think_ms / 1000)
    for count, kind, number in rest_of(run, plan):
        if kind == "word":
            run.write(word(plan, number))
        else:
            if kind == "tool":
                started(run, number)
                await run.drain()
            use(run, plan, number)
        if count % CHECKPOINT_EVERY == 0:
            await run.checkpoint(state(count))
        await asyncio.sleep(plan.pause_ms / 1000)
    return AgentResult("")


@resumable
def steady_in_a_thread(run: Run) -> AgentResult:
    """Follow the plan in a thread."""
    plan = plan_of(run)
    if run.restored is None:
        time.sleep(plan.think_ms / 1000)
    for count, kind, number in rest_of(run, plan):
        if kind == "word":
            run.write(word(plan, number))
        else:
            if kind == "tool":
                started(run, number)
            use(run, plan, number)
        if count % CHECKPOINT_EVERY == 0:
            run.checkpoint(state(count))
        time.sleep(plan.pause_ms / 1000)
    return AgentResult("")
