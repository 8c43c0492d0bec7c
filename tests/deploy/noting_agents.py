"""An agent that notes each of its runs in a file. A worker process imports this module by its name."""

import asyncio
import os

from agentstream.agents import AgentResult, Run

WORDS = [f"word{number} " for number in range(5)]


async def noting(run: Run) -> AgentResult:
    """Append the text of the request to the file NOTES, and write a word every 60 ms."""
    descriptor = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{run.request.messages[-1].text}\n".encode())
    os.close(descriptor)
    for word in WORDS:
        run.write(word)
        await asyncio.sleep(0.06)
    return AgentResult("")
