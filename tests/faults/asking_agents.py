"""Agents that ask people. A worker process imports this module by name.

The last message is the script, see SCRIPTS. The agents print a line when they begin::

    note <worker> begins <run id>
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from agentstream import AgentResult, InterruptTimeout, Run, resumable, takes_inputs

WORKER = os.environ.get("TEST_WORKER", "worker")
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
FORM = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 2}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
}


async def _ask_once(run: Run) -> None:
    if run.restored is None:
        run.write("before ")
    answer = await run.interrupt("approval", {"tool": "send_mail", "arguments": '{"to":"bob"}'})
    run.write(f"approved={answer['approve']} ")


async def _ask_twice(run: Run) -> None:
    done = run.restored.state or 0 if run.restored else 0
    for number in range(done, 2):
        answer = await run.interrupt("question", {"message": f"number {number}?"})
        run.write(f"{answer} ")
        await run.checkpoint(number + 1)


async def _ask_both(run: Run) -> None:
    first, second = await asyncio.gather(run.interrupt("question", id="a"), run.interrupt("question", id="b"))
    run.write(f"{first}+{second} ")


async def _ask_form(run: Run) -> None:
    run.write(str(await run.interrupt("form", {"message": "Where?"}, schema=FORM)))


async def _ask_briefly(run: Run) -> None:
    try:
        await run.interrupt("question", timeout_s=1)
    except InterruptTimeout:
        run.write("nobody answered")


SCRIPTS: dict[str, Callable[[Run], Awaitable[Any]]] = {
    "once": _ask_once,
    "twice": _ask_twice,
    "both": _ask_both,
    "form": _ask_form,
    "briefly": _ask_briefly,
}


async def waiting_in_place(run: Run) -> AgentResult:
    """Follow the script; this agent cannot be put down."""
    print(f"note {WORKER} begins {run.id}", flush=True)  # noqa: T201 -- the test reads it
    await SCRIPTS[run.request.messages[-1].text](run)
    return AgentResult("", metadata=USAGE)


@resumable
async def asking(run: Run) -> AgentResult:
    """Follow the script; this agent is put down while it waits."""
    return await waiting_in_place(run)


@resumable
def asking_in_a_thread(run: Run) -> AgentResult:
    """Ask once, in a thread."""
    if run.restored is None:
        run.write("before ")
    answer = run.interrupt("approval", {"tool": "send_mail"})
    run.write(f"approved={answer['approve']} ")
    return AgentResult("", metadata=USAGE)


@takes_inputs
@resumable
async def listening(run: Run) -> AgentResult:
    """Tick, and repeat each message that people send, until one says "stop"."""
    print(f"note {WORKER} begins {run.id}", flush=True)  # noqa: T201
    heard: list[str] = (run.restored.state or []) if run.restored else []
    while "stop" not in heard:
        new = [message.text for message in await run.inputs()]
        for text in new:
            run.write(f"heard {text} ")
        if new:
            heard += new
            await run.checkpoint(heard)
        await asyncio.sleep(0.02)
    return AgentResult("", metadata=USAGE)


@takes_inputs
async def deaf(run: Run) -> AgentResult:
    """Wait for a message, and end without taking it."""
    run.write("la la ")
    await asyncio.sleep(1)
    return AgentResult("", metadata=USAGE)
