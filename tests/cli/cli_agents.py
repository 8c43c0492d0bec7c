"""An agent that remembers what it was told; a worker process imports this module by name."""

import asyncio

from agentstream.agents import AgentResult, Run


async def listener(run: Run) -> AgentResult:
    """Repeat what the user said so far, then wait for ever if that ends in "wait"."""
    said = [message.text for message in run.request.messages if message.role == "user"]
    run.write(f"heard {' and '.join(said)}")
    if said[-1] == "wait":
        await asyncio.Event().wait()
    return AgentResult("")
