"""Agents for the tests of log lines: they log, and they raise errors that quote the request."""

import asyncio
import logging

from agentstream.agents import AgentResult, Run, ToolResult

log = logging.getLogger("my_agent")


def _work(run: Run) -> AgentResult:
    text = run.request.messages[-1].text
    log.warning("a line of the agent's own")
    run.emit("agent_turn_start", {"agent": "talkative", "input": text})
    run.emit("tool_call_start", {"tool": "echo", "arguments": {"text": text}})
    run.emit("tool_call_end", {"tool": "echo", "success": False, "latency": 0.0, "result": text})
    if text.startswith("fail"):
        raise ValueError(text) from KeyError(text)
    if text.startswith("lie"):
        return {"content": text}  # type: ignore[return-value]
    run.write(text)
    return AgentResult("", [ToolResult("echo", text)])


def in_a_thread(run: Run) -> AgentResult:
    """Repeat the request's text in log lines, events, errors and the answer, in a thread."""
    return _work(run)


async def on_the_loop(run: Run) -> AgentResult:
    """Do the same on the event loop, and leave a failed task behind that nobody awaits."""

    async def fail() -> None:
        raise ValueError(run.request.messages[-1].text)

    left = asyncio.create_task(fail(), name="left behind")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del left
    return _work(run)
