"""Runs real Redis servers with the options that a test chooses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from agentstream.processes.broker import ServerChoice, usable_servers
from tests.ports import free_port
from tests.processes import Process

SERVERS = [choice for choice in usable_servers() if choice.kind == "server"]


@contextlib.asynccontextmanager
async def run_server(choice: ServerChoice, folder: Path, *options: str) -> AsyncIterator[int]:
    """Run a server in this folder, without snapshots, and yield its port."""
    port = free_port()
    server = Process(
        await asyncio.create_subprocess_exec(
            str(choice.executable),
            *("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)),
            *options,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    )
    try:
        await server.until(r"Ready to accept connections")
        yield port
    finally:
        await server.stop()
