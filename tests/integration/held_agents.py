"""An agent whose runs all end together. A worker process imports this module by its name."""

import asyncio

from agentstream.agents import AgentResult, Run

_opened = asyncio.Event()


async def held(run: Run) -> AgentResult:
    """Write a word, wait until the worker gets a run whose text is "open", and write another word."""
    run.write("begun, ")
    if run.request.messages[-1].text == "open":
        _opened.set()
    await _opened.wait()
    run.write("ended")
    return AgentResult("")
