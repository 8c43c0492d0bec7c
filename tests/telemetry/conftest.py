"""Processes that send their spans to a collector in the test."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.helpers import TIMEOUT_S
from tests.processes import ROOT, Process, Processes
from tests.telemetry.collector import Collector, running_collector

TRACED_SERVERS = str(Path(__file__).parent / "traced_servers.py")
AGENTS = "tests.telemetry.traced_agents"
CALLER = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@dataclass
class Deployment:
    """Processes on one broker, and a client. With ``env`` a process sends its spans to the collector."""

    collector: Collector
    processes: Processes
    session: aiohttp.ClientSession
    env: dict[str, str]
    folder: Path
    url: str = ""

    async def frontend(self, **settings: str) -> None:
        self.url = await self.processes.frontend(**{**self.env, **settings})

    async def worker(self, agent: str | None = None, **settings: str) -> Process:
        spec = f"{AGENTS}:{agent}" if agent else None
        return await self.processes.worker(spec, **{**self.env, "AGENTSTREAM_LEASE_S": "1", **settings})

    async def model_and_tools(self) -> dict[str, str]:
        """Start a model server. Return the settings of a worker that asks it and starts a tool server."""
        process = Process(
            await asyncio.create_subprocess_exec(
                *(sys.executable, TRACED_SERVERS, "model"),
                env=os.environ | self.env,
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )
        self.processes.started.append(process)
        port = (await process.until(r"model on (\d+)"))[1]
        servers = self.folder / "mcp.json"
        tools = {"command": sys.executable, "args": [TRACED_SERVERS, "tools"], "env": self.env}
        servers.write_text(json.dumps({"mcpServers": {"forecast": tools}}))
        return {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "AGENTSTREAM_MCP_SERVERS": str(servers)}

    async def ask(self, text: str, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        """Return a completion."""
        body = {"model": "m1", "messages": [{"role": "user", "content": text}], **fields}
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def stream(self, text: str, headers: dict[str, str] | None = None) -> tuple[str, str]:
        """Return the id of a streamed run and the whole stream."""
        body = {"model": "m1", "messages": [{"role": "user", "content": text}], "stream": True}
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
            sent = await response.text()
        return json.loads(sent.partition("data: ")[2].partition("\n")[0])["id"], sent

    async def call(self, method: str, path: str) -> Any:
        """Return the body of a response, decoded if it is JSON."""
        async with self.session.request(method, f"{self.url}{path}") as response:
            return await response.json() if response.content_type == "application/json" else await response.text()


@pytest.fixture
async def deployment(processes: Processes, tmp_path: Path) -> AsyncIterator[Deployment]:
    """A deployment without processes: a collector, a client and the means to start processes."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with running_collector() as collector, aiohttp.ClientSession(timeout=timeout) as session:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        try:
            yield Deployment(collector, processes, session, env, tmp_path)
        finally:  # before the collector ends: it gets their last spans
            await asyncio.gather(*(process.stop() for process in processes.started))
