"""An agent that writes numbered words until a file exists, so that its answer lasts longer than any fault."""

import asyncio
import os
from pathlib import Path

from agentstream.agents import AgentResult, Run
from tests.faults.chaos_agents import FOLDER_VARIABLE, plan_of, word


async def counting(run: Run) -> AgentResult:
    """Write words until the file ``key`` of the plan exists, or all are written; then write how many there are."""
    plan = plan_of(run)
    stop = Path(os.environ[FOLDER_VARIABLE]) / plan.key if plan.key else None
    written = 0
    while written < plan.words and not (stop is not None and stop.exists()):
        run.write(word(plan, written))
        written += 1
        await asyncio.sleep(plan.pause_ms / 1000)
    run.write(f"of {written} ")
    return AgentResult("")
