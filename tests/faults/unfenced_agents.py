"""A worker process that does not notice the loss of its lease. With TEST_UNFENCED, the store does not tell it either.

A test imports nothing from here: a worker process that loads the agent changes itself when it imports this module.
"""

import asyncio
import hashlib
import os
from pathlib import Path

from agentstream import AgentResult, Run, resumable
from agentstream.store import scripts
from agentstream.worker.leases import Leases
from agentstream.worker.worker import Worker
from tests.faults.counting_agents import GATE, TICK_S, WORKER

MARKS = Path(os.environ.get("TEST_MARKS", "no-such-file"))
# Accepts every batch of an older attempt, without storing it: the older worker goes on as if it still had the run.
_ACCEPT = b"""
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if newest and tonumber(string.match(newest[1], '^%d+')) > tonumber(string.match(ARGV[1], '^%d+')) then return 'OK' end
"""


@resumable
async def charging(run: Run) -> AgentResult:
    """Write a word, then use a tool that must not run twice. The first worker waits between them."""
    if run.restored is None:
        run.write("before ")
    while WORKER == "a" and not GATE.exists():  # noqa: ASYNC110 -- another process creates the file
        await asyncio.sleep(TICK_S)
    try:
        run.emit("tool_call_start", {"tool": "charge", "arguments": {}})
        await run.drain()
        with MARKS.open("a") as marks:  # noqa: ASYNC230 -- one line
            marks.write(f"{WORKER}\n")
        run.emit("tool_call_end", {"tool": "charge", "success": True, "latency": 0.0, "result": ""})
    finally:
        print(f"note {WORKER} ends {run.id}", flush=True)  # noqa: T201 -- the test reads it
    run.write("after")
    return AgentResult("")


async def _never(_leases: Leases) -> None:
    await asyncio.get_running_loop().create_future()


if WORKER == "a":
    Worker._may_reclaim = lambda self: False  # type: ignore[method-assign]  # noqa: ARG005  # else it takes its own job again
    Leases.renew_forever = _never  # type: ignore[assignment,method-assign]
    if os.environ.get("TEST_UNFENCED"):
        source = _ACCEPT + scripts.SCRIPTS["publish"].source
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
        scripts.SCRIPTS["publish"] = scripts.Script(source, sha)  # type: ignore[index]
