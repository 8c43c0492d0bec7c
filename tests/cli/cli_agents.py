"""Agents for the tests of commands. A worker process imports this module by name."""

import asyncio
import os
from pathlib import Path

from agentstream import AgentResult, Restored, Run, resumable


async def listener(run: Run) -> AgentResult:
    """Answer with all user messages. If the last one is "wait", then wait forever."""
    texts = [message.text for message in run.request.messages if message.role == "user"]
    run.write(f"heard {' and '.join(texts)}")
    if texts[-1] == "wait":
        await asyncio.Event().wait()
    return AgentResult("")


@resumable
async def teller(run: Run) -> AgentResult:
    """Write a line, make a checkpoint, write a line, wait for the file GATE, and write a line."""
    restored = run.restored or Restored()
    if restored.state is None:
        run.write("one\n")
        await run.checkpoint({"told": 1})
    if not restored.text:
        run.write("two\n")
    while not Path(os.environ["GATE"]).exists():  # noqa: ASYNC110, ASYNC240 -- the test creates the file
        await asyncio.sleep(0.02)
    run.write("three\n")
    return AgentResult("")
