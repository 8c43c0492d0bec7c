"""Agents whose work can be checked: they write numbered words, and each tool call adds a line to a file.

So a tool that runs twice is seen in its file. The text of the request is the plan, as JSON. An environment variable
names the folder of the files.
"""

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from agentstream.agents import AgentResult, Run

FOLDER_VARIABLE = "TOOL_MARKS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a run: think, call ``tools_first`` tools, then write ``words``.

    With ``tool_between`` it calls one more tool in the middle of the words. ``padding`` is added to each word. ``key``
    names the file in which resumable agents record their tools.
    """

    words: int
    pause_ms: int = 20
    think_ms: int = 0
    tools_first: int = 0
    tool_between: bool = False
    padding: int = 0
    key: str = ""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def tools(self) -> int:
        return self.tools_first + self.tool_between


def tool_name(number: int) -> str:
    """Return the tool that a resumable agent uses: every second one must not run twice."""
    return "look" if number % 2 else "charge"


def plan_of(run: Run) -> Plan:
    return Plan(**json.loads(run.request.messages[-1].text))


def word(plan: Plan, number: int) -> str:
    return f"#{number}{'.' * plan.padding} "


async def chaotic(run: Run) -> AgentResult:
    """Follow the plan on the event loop."""
    plan = plan_of(run)
    run.emit("agent_turn_start", {"agent": "chaotic", "input": ""})
    await asyncio.sleep(plan.think_ms / 1000)
    for number in range(plan.tools_first):
        _announce(run, number)
        await run.drain()
        _use(run, number)
        await asyncio.sleep(plan.pause_ms / 1000)
    for number in range(plan.words):
        if plan.tool_between and number == plan.words // 2:
            _announce(run, plan.tools_first)
            await run.drain()
            _use(run, plan.tools_first)
        run.write(word(plan, number))
        await asyncio.sleep(plan.pause_ms / 1000)
    return AgentResult("")


def chaotic_in_a_thread(run: Run) -> AgentResult:
    """Follow the plan in a thread."""
    plan = plan_of(run)
    run.emit("agent_turn_start", {"agent": "chaotic", "input": ""})
    time.sleep(plan.think_ms / 1000)
    for number in range(plan.tools_first):
        _announce(run, number)
        _use(run, number)
        time.sleep(plan.pause_ms / 1000)
    for number in range(plan.words):
        if plan.tool_between and number == plan.words // 2:
            _announce(run, plan.tools_first)
            _use(run, plan.tools_first)
        run.write(word(plan, number))
        time.sleep(plan.pause_ms / 1000)
    return AgentResult("")


def _announce(run: Run, number: int) -> None:
    run.emit("tool_call_start", {"tool": "mark", "arguments": {"number": number}})


def _use(run: Run, number: int) -> None:
    mark = f"{number}\n".encode()
    file = os.open(Path(os.environ[FOLDER_VARIABLE]) / run.id, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, mark)  # one write: the file has the whole line or nothing of it
    finally:
        os.close(file)
    run.emit("tool_call_end", {"tool": "mark", "success": True, "latency": 0.0, "result": str(number)})
