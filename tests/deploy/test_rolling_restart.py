"""A rolling restart: every process is replaced, one after the other, behind nginx and under load."""

import asyncio
import signal
from pathlib import Path

import aiohttp

from tests.deploy.paced_agents import WORDS
from tests.deploy.proxies import NGINX, run_proxy
from tests.faults.clients import PATH, http_client
from tests.helpers import decode, texts
from tests.ports import free_port
from tests.processes import ROOT, Process, Processes

STREAMS = 100


class Load:
    """Clients that send the next request as soon as they have the answer, each on its own connection."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http
        self._stopping = False
        self._begun = 0
        self._all_begun = asyncio.Event()
        self.whole = 0
        self.broken: list[str] = []

    async def all_begun(self) -> None:
        """Return when every client has received the first piece of a stream."""
        await self._all_begun.wait()

    def stop(self) -> None:
        """Let every open stream end, and start no new one."""
        self._stopping = True

    async def client(self) -> None:
        """Stream answers until stopped, and record each answer that is not complete."""
        first = True
        while not self._stopping:
            body = {"model": "m1", "messages": [{"role": "user", "content": "go"}], "stream": True}
            try:
                async with self._http.post(self._url + PATH, json=body) as response:
                    raw = await response.content.readany()
                    if first:
                        first = False
                        self._begun += 1
                        if self._begun == STREAMS:
                            self._all_begun.set()
                    raw += await response.read()
            except aiohttp.ClientError as exc:
                self.broken.append(repr(exc))
                continue
            if response.status == 200 and texts(decode(raw)) == WORDS and raw.endswith(b"data: [DONE]\n\n"):
                self.whole += 1
            else:
                self.broken.append(f"{response.status}: {raw[-300:]!r}")


async def start_frontend(processes: Processes, port: int) -> Process:
    """Start a front end on this port, and return when it serves."""
    process = await processes.start("frontend", AGENTSTREAM_PORT=str(port))
    await process.until(r"serving on")
    return process


async def start_worker(processes: Processes) -> Process:
    """Start a worker with slots for all streams."""
    return await processes.worker(
        "tests.deploy.paced_agents:paced", PYTHONPATH=str(ROOT), AGENTSTREAM_CONCURRENCY=str(2 * STREAMS)
    )


async def stop(process: Process) -> None:
    """Stop a process with SIGTERM, and check that it drained."""
    process.send_signal(signal.SIGTERM)
    assert await process.ended(2 * 20) == 0, process.output
    assert "cutting" not in process.output


async def test_a_rolling_restart_breaks_no_stream(processes: Processes, tmp_path: Path) -> None:
    """While 100 clients stream, each front end and worker is restarted, and every answer is complete."""
    ports = [free_port() for _ in range(2)]
    frontends = [await start_frontend(processes, port) for port in ports]
    workers = [await start_worker(processes) for _ in range(2)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with run_proxy(NGINX, urls, tmp_path) as url, http_client() as http:
        load = Load(url, http.session)
        async with asyncio.TaskGroup() as clients:
            for number in range(STREAMS):
                clients.create_task(load.client(), name=f"client {number}")
            await load.all_begun()
            for worker in workers:
                await start_worker(processes)
                await stop(worker)
            for frontend, port in zip(frontends, ports, strict=True):
                await stop(frontend)
                await start_frontend(processes, port)
            load.stop()
    assert load.broken == []
    assert load.whole >= STREAMS
