"""Agents for the integration tests. Worker processes import this module by its name."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentstream.agents import AgentResult, Run, ToolResult

CASES = {
    case["name"]: case
    for path in sorted((Path(__file__).parents[1] / "conformance").glob("*.json"))
    for case in [json.loads(path.read_text())]
}


def recorded_case(run: Run) -> AgentResult:
    """Do what the agent of a recorded case did; the request's user field is the name of the case."""
    case = CASES[str(run.request.user)]
    for kind, data in case["agent"]["events"]:
        run.emit(kind, data)
    if "error" in case["agent"]:
        raise RuntimeError(case["agent"]["error"])
    result = case["agent"]["result"]
    tools = [ToolResult(**tool) for tool in result.get("tool_results", [])]
    return AgentResult(result["content"], tools, result.get("metadata", {}))


async def numbered(run: Run) -> AgentResult:
    """Stream numbered words that contain the request's text, with a tool call in the middle."""
    tag = run.request.messages[-1].text
    run.emit("agent_turn_start", {"agent": "numbered", "input": tag})
    for number in range(20):
        run.write(f"{tag}:{number} ")
        await asyncio.sleep(0.001)
    run.emit("tool_call_start", {"tool": "echo", "arguments": {"tag": tag}})
    run.emit("tool_call_end", {"tool": "echo", "success": True, "latency": 0.0, "result": tag})
    for number in range(20, 40):
        run.write(f"{tag}:{number} ")
        await asyncio.sleep(0.001)
    return AgentResult("", metadata={"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47})


def numbered_in_a_thread(run: Run) -> AgentResult:
    """Stream numbered words from a plain function."""
    tag = run.request.messages[-1].text
    for number in range(40):
        run.write(f"{tag}:{number} ")
        time.sleep(0.001)
    return AgentResult("")


async def gated(run: Run) -> AgentResult:
    """Print the id of this process; answer with the request's text once the file GATE exists."""
    sys.stdout.write(f"gated run in {os.getpid()}\n")  # one write: other processes write to the same pipe
    while not Path(os.environ["GATE"]).exists():  # noqa: ASYNC110, ASYNC240 -- another process creates the file
        await asyncio.sleep(0.01)
    return AgentResult(run.request.messages[-1].text)


async def whoami(run: Run) -> AgentResult:
    """Answer with the request's model and the id of this process."""
    return AgentResult(f"{run.request.model} {os.getpid()}")


async def _block_the_loop() -> None:
    time.sleep(8)  # noqa: ASYNC251 -- longer than the deadlines of the connection to Redis


async def blocking(run: Run) -> AgentResult:
    """Block the event loop in a task; with the text "tick", stream until the loop was blocked."""
    if run.request.messages[-1].text != "tick":
        await asyncio.gather(_block_the_loop())
        return AgentResult("done")
    sys.stdout.write("ticking\n")
    began_s = time.monotonic()
    while time.monotonic() - began_s < 1:  # the first pause after the block is longer
        began_s = time.monotonic()
        run.write("tick ")
        await asyncio.sleep(0.05)
    run.write("tock")
    return AgentResult("")


async def echo_request(run: Run) -> AgentResult:
    """Answer with the request that the agent gets, as JSON."""
    return AgentResult(json.dumps(run.request.model_dump(exclude_unset=True), sort_keys=True))


def asks_its_client_in_a_thread(run: Run) -> AgentResult:
    """Write a call of the client's first tool, with its arguments in two pieces."""
    run.write_reasoning("I do not know.")
    tool = (run.request.tools or [])[0]
    call = run.write_tool_call(tool.function.name, '{"city": ')
    call.write('"Oslo"}')
    return AgentResult("")


async def asks_its_client(run: Run) -> AgentResult:
    """Do the same on the event loop."""
    return asks_its_client_in_a_thread(run)


def _wrong_type(_run: Run) -> Any:
    return {"content": "a dict"}


def _wrong_content(_run: Run) -> AgentResult:
    return AgentResult(content=17)  # type: ignore[arg-type]


def _unserialisable(run: Run) -> AgentResult:
    run.emit("note", {"x": object()})
    return AgentResult("unreachable")


def _forbidden_event(run: Run) -> AgentResult:
    run.emit("run_completed", {})
    return AgentResult("unreachable")


def _line_end_in_event(run: Run) -> AgentResult:
    run.emit("a\ndata: x", {})
    return AgentResult("unreachable")


def _exits(_run: Run) -> AgentResult:
    sys.exit(3)


def _raises(_run: Run) -> AgentResult:
    message = "broken on purpose"
    raise ValueError(message)


def _blocks(run: Run) -> AgentResult:
    while not run.cancelled:
        time.sleep(0.01)
    return AgentResult("too late")


def _huge_answer(_run: Run) -> AgentResult:
    return AgentResult("x" * (2 << 20))


def _fine(_run: Run) -> AgentResult:
    return AgentResult("fine")


BEHAVIOURS: dict[str, Callable[[Run], AgentResult]] = {
    "wrong type": _wrong_type,
    "wrong content": _wrong_content,
    "unserialisable": _unserialisable,
    "forbidden event": _forbidden_event,
    "line end in event": _line_end_in_event,
    "exits": _exits,
    "raises": _raises,
    "blocks": _blocks,
    "huge answer": _huge_answer,
    "fine": _fine,
}


def misbehaving(run: Run) -> AgentResult:
    """Do what the last message names, in a thread."""
    return BEHAVIOURS[run.request.messages[-1].text](run)


async def misbehaving_async(run: Run) -> AgentResult:
    """Do what the last message names, on the event loop."""
    if run.request.messages[-1].text == "blocks":
        await asyncio.sleep(60)
    return BEHAVIOURS[run.request.messages[-1].text](run)


not_callable = "an agent is a function"
