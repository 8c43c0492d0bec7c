"""An agent whose module runs coroutines while it is imported. A worker process imports it by its name."""

import asyncio

from agentstream import AgentResult, Run


async def _load_tools() -> list[str]:
    await asyncio.sleep(0)
    return ["hammer", "saw"]


TOOLS = asyncio.run(_load_tools())


async def lists_tools(_run: Run) -> AgentResult:
    """Answer with the tools that were loaded at the import."""
    return AgentResult(", ".join(TOOLS))
