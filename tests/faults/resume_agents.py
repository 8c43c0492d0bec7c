"""An agent that follows the steps in the last message, a JSON list like ``[["say", 3], ["fail", "no"]]``."""

import asyncio
import json
from pathlib import Path

from agentstream.agents import AgentResult, Run

USAGE = {"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}
_LOOK_S = 0.01


async def scripted(run: Run) -> AgentResult:  # noqa: C901 -- one branch a step
    """Take the steps in order. The answer is the written text, or the text of the last ``answer`` step."""
    answer = ""
    for name, *arguments in json.loads(run.request.messages[-1].text):
        if name == "count":  # a side effect: the file shows how often the agent ran
            with Path(arguments[0]).open("a") as counter:  # noqa: ASYNC230 -- one line
                counter.write(f"{run.id}\n")
        elif name == "note":
            run.emit("agent_turn_start", {"agent": "scripted", "input": arguments[0]})
        elif name == "say":
            for number in range(arguments[0]):
                run.write(f"{number} \u00fc\u2028\n")
                await asyncio.sleep(0)
        elif name == "tool":
            run.emit("tool_call_start", {"tool": "echo", "arguments": {"x": [1, 2]}})
            run.emit("tool_call_end", {"tool": "echo", "success": True, "latency": 0.5, "result": "1 2"})
        elif name == "gate":  # continue when the test has created this file
            await _gate(Path(arguments[0]))
        elif name == "flood":
            await _flood(run, *arguments)
        elif name == "answer":
            answer = arguments[0]
        elif name == "fail":
            raise RuntimeError(arguments[0])
    return AgentResult(answer, metadata=USAGE)


async def _gate(opened: Path) -> None:
    """Wait for a file. If the run is cancelled meanwhile, create another file beside it."""
    try:
        while not opened.exists():  # noqa: ASYNC110, ASYNC240 -- another process creates it
            await asyncio.sleep(_LOOK_S)
    except asyncio.CancelledError:
        cancelled_at(opened).touch()
        raise


def cancelled_at(gate: Path) -> Path:
    """Return the file that exists if the run was cancelled while it waited for this gate file."""
    return gate.with_name(f"{gate.name}.cancelled")


async def _flood(run: Run, pieces: int, piece_characters: int) -> None:
    """Write numbered pieces as fast as they can be published. Each piece ends with a line end."""
    for number in range(pieces):
        run.write(flood_piece(number, piece_characters))
        await run.drain()
        if number % 8 == 0:
            await asyncio.sleep(0)


def flood_piece(number: int, piece_characters: int) -> str:
    """Return the piece with this number."""
    return f"{number:08}".ljust(piece_characters - 1, "x") + "\n"
