"""Agents that emit their own types of events and have sub-agents. Worker processes import this module by its name."""

import asyncio

from agentstream import AgentResult, Run


async def summarise(run: Run) -> None:
    """Write a summary, as a sub-agent of the researcher."""
    run.emit("inference_start", {"model": "small", "engine": "none"})
    run.write_reasoning("Short.")
    run.write("Noon.")


async def research(run: Run) -> None:
    """Use a tool and a sub-agent of its own, as a sub-agent of the manager."""
    run.emit("agent_turn_start", {"agent": "researcher", "input": run.request.messages[-1].text})
    run.emit("tool_call_start", {"tool": "search", "arguments": {"for": "time"}})
    await run.drain()
    run.emit("tool_call_end", {"tool": "search", "success": True, "latency": 0.25, "result": "12:00"})
    run.emit("progress", {"found": 1, "id": "own"})
    run.write("I found ")
    await summarise(run.child("summariser"))


async def manager(run: Run) -> AgentResult:
    """Let a sub-agent work, and pass the text of its sub-agent on."""
    run.write("Asking.")
    run.emit("progress", {"found": 0})
    child = run.child("researcher", "What is the time?")
    await research(child)
    run.emit("note", {})
    run.write(child.text)
    run.write("noon.")
    return AgentResult("", metadata={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})


def threaded(run: Run) -> AgentResult:
    """Do the work of the manager in a thread, with the sub-agents on an event loop of its own."""
    return asyncio.run(manager(run))
