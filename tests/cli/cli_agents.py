"""An agent that repeats the conversation. A worker process imports this module by name."""

import asyncio

from agentstream.agents import AgentResult, Run


async def listener(run: Run) -> AgentResult:
    """Answer with all user messages. If the last one is "wait", then wait forever."""
    texts = [message.text for message in run.request.messages if message.role == "user"]
    run.write(f"heard {' and '.join(texts)}")
    if texts[-1] == "wait":
        await asyncio.Event().wait()
    return AgentResult("")
