"""An agent that shows what libraries in a worker see of the environment."""

import os

from agentstream.agents import AgentResult, Run

OURS = ("AGENTSTREAM_", "OPENAI_", "OTEL_")


async def reads_environment(run: Run) -> AgentResult:
    """Return the names of the empty variables that belong to agentstream, OpenAI or OpenTelemetry."""
    del run
    empty = [name for name, value in os.environ.items() if name.startswith(OURS) and not value.strip()]
    return AgentResult(content=f"empty: {', '.join(empty) or 'none'}")
