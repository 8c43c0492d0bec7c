"""Agents of the tests of traces; a worker process imports this module by name."""

import asyncio
import os
import sys
from pathlib import Path

from opentelemetry import trace

from agentstream.adapters.command import CommandAgent
from agentstream.agents import AgentResult, Run
from agentstream.telemetry import tracing

tracer = trace.get_tracer("a user's own")


async def on_the_loop(run: Run) -> AgentResult:
    """Make a span of its own, and answer with the ids that a log record would have."""
    with tracer.start_as_current_span("own work"):
        await asyncio.sleep(0)
        return AgentResult(" ".join(tracing.current_ids() or ("none", run.id)))


def in_a_thread(run: Run) -> AgentResult:
    """Do the same in a thread."""
    with tracer.start_as_current_span("own work"):
        return AgentResult(" ".join(tracing.current_ids() or ("none", run.id)))


async def gated(run: Run) -> AgentResult:
    """Say that it runs, write if it is asked for "text", and answer once there is a file named by GATE."""
    sys.stdout.write(f"gated run in {os.getpid()}\n")  # in one piece: other processes write to the same pipe
    if "text" in run.request.messages[-1].text:
        run.write("written ")
        await run.drain()
    while not Path(os.environ["GATE"]).exists():  # noqa: ASYNC110, ASYNC240 -- another process's doing
        await asyncio.sleep(0.01)
    return AgentResult("through")


PROGRAM = """
import json, os
print(json.dumps({"type": "result", "content": os.environ.get("TRACEPARENT", "none")}))
"""
program = CommandAgent(sys.executable, "-c", PROGRAM)
