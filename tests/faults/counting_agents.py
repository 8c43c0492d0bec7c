"""Resumable agents that count aloud. A worker process imports this module by name.

The last message is the script: ``<behaviour> to <number>``. Each number is written as one piece of text, and each is
written once, whatever happens to the workers. The agents print a line when they begin::

    note <worker> counts from <number> <run id>
"""

import asyncio
import os
import time

from agentstream import AgentResult, Run, resumable

WORKER = os.environ.get("TEST_WORKER", "worker")
TICK_S = 0.02
CHECKPOINT_EVERY = 5
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def script(run: Run) -> tuple[str, int]:
    """Return the behaviour and the last number."""
    behaviour, _, last = run.request.messages[-1].text.partition(" to ")
    return behaviour, int(last or 20)


def reached(run: Run) -> int:
    """Return the last number that an earlier attempt wrote: the state is the number at the last checkpoint."""
    if run.restored is None:
        return 0
    return (run.restored.state or 0) + run.restored.text.count(" ")


@resumable
async def counting(run: Run) -> AgentResult:
    """Count on the event loop, with a checkpoint every few numbers."""
    _, last = script(run)
    first = reached(run) + 1
    print(f"note {WORKER} counts from {first} {run.id}", flush=True)  # noqa: T201 -- the test reads it
    for number in range(first, last + 1):
        run.write(f"{number} ")
        if number % CHECKPOINT_EVERY == 0:
            await run.checkpoint(number)
        await asyncio.sleep(TICK_S)
    return AgentResult("", metadata=USAGE)


@resumable
def counting_in_a_thread(run: Run) -> AgentResult:
    """Count in a thread, with a checkpoint every few numbers."""
    _, last = script(run)
    first = reached(run) + 1
    print(f"note {WORKER} counts from {first} {run.id}", flush=True)  # noqa: T201
    for number in range(first, last + 1):
        run.write(f"{number} ")
        if number % CHECKPOINT_EVERY == 0:
            run.checkpoint(number)
        time.sleep(TICK_S)
    return AgentResult("", metadata=USAGE)
