"""The agents of the tests of traces. A worker process imports this module by name."""

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
    """Make a span, and answer with the ids that a log line would have."""
    with tracer.start_as_current_span("own work"):
        await asyncio.sleep(0)
        return AgentResult(" ".join(tracing.current_ids() or ("none", run.id)))


def in_a_thread(run: Run) -> AgentResult:
    """Make a span in a thread, and answer like ``on_the_loop``."""
    with tracer.start_as_current_span("own work"):
        return AgentResult(" ".join(tracing.current_ids() or ("none", run.id)))


async def gated(run: Run) -> AgentResult:
    """Print that it runs, write text if the question contains "text", and answer when the file in GATE exists."""
    sys.stdout.write(f"gated run in {os.getpid()}\n")  # one write: other processes use the same pipe
    if "text" in run.request.messages[-1].text:
        run.write("written ")
        await run.drain()
    while not Path(os.environ["GATE"]).exists():  # noqa: ASYNC110, ASYNC240 -- another process creates it
        await asyncio.sleep(0.01)
    return AgentResult("through")


PROGRAM = """
import json, os
print(json.dumps({"type": "result", "content": os.environ.get("TRACEPARENT", "none")}))
"""
program = CommandAgent(sys.executable, "-c", PROGRAM)
