"""An agent that takes one second for an answer. A worker process imports this module by name."""

import asyncio

from agentstream.agents import AgentResult, Run

WORDS = [f"word{number} " for number in range(10)]


async def paced(run: Run) -> AgentResult:
    """Write ten words, one every 0.1 s."""
    for word in WORDS:
        run.write(word)
        await asyncio.sleep(0.1)
    return AgentResult("")
