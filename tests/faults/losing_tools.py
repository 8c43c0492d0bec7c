"""Tools for the built-in agent. A worker process imports this module by name.

Each call writes a line to a file. The first call of ``once`` and ``look`` then waits until its worker is gone. A call
of ``wait`` waits for the file "go".
"""

import asyncio
import os
from pathlib import Path

from agentstream.tools.base import needs_approval, read_only

FOLDER = Path(os.environ.get("TEST_TOOL_FOLDER", "."))


async def once(n: int) -> str:
    """Do something that must not be done twice."""
    return await _called("once", n)


@read_only
async def look(n: int) -> str:
    """Look at something."""
    return await _called("look", n)


@needs_approval
async def pay(n: int) -> str:
    """Pay."""
    return await _called("pay", n, waits=False)


async def wait(n: int) -> str:
    """Wait for the file."""
    done = await _called("wait", n, waits=False)
    while not (FOLDER / "go").exists():  # noqa: ASYNC110 -- another process creates it
        await asyncio.sleep(0.01)
    return done


async def _called(name: str, n: int, *, waits: bool = True) -> str:
    file = FOLDER / name
    first = waits and not file.exists()
    with file.open("a") as calls:
        calls.write(f"{n}\n")
    print(f"note {name} runs", flush=True)  # noqa: T201 -- the test reads it
    if first:
        await asyncio.get_running_loop().create_future()
    return f"{name} {n} is done"


tools = [once, look, pay, wait]
