"""Tools for the built-in agent. A worker process imports this module by name.

Each call writes a line to a file. The first call of a tool then waits until its worker is gone.
"""

import asyncio
import os
from pathlib import Path

from agentstream.tools.base import read_only

FOLDER = Path(os.environ.get("TEST_TOOL_FOLDER", "."))


async def once(n: int) -> str:
    """Do something that must not be done twice."""
    return await _called("once", n)


@read_only
async def look(n: int) -> str:
    """Look at something."""
    return await _called("look", n)


async def _called(name: str, n: int) -> str:
    file = FOLDER / name
    first = not file.exists()
    with file.open("a") as calls:
        calls.write(f"{n}\n")
    print(f"note {name} runs", flush=True)  # noqa: T201 -- the test reads it
    if first:
        await asyncio.get_running_loop().create_future()
    return f"{name} {n} is done"


tools = [once, look]
