"""More clients than a front end may open files: they are served, or refused readably, and the log names the limit."""

import asyncio
import json
import re
from collections import Counter

import aiohttp
import pytest

from agentstream.processes.file_limit import file_limit, raise_file_limit
from tests.helpers import TIMEOUT_S, decode, texts
from tests.integration.conftest import Client
from tests.processes import ROOT, Process, Processes, linux_only

pytestmark = linux_only  # `prlimit` sets the limits of the front end
STREAMS = 1150
LONG_S = 4 * TIMEOUT_S


class Load:
    """Clients that stream at the same time, each on its own connection."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._left = STREAMS
        self._all_answered = asyncio.Event()
        self.ended = Counter[str]()

    async def all_answered(self) -> None:
        """Return when every client has received the beginning of its answer."""
        await self._all_answered.wait()

    async def client(self, text: str) -> None:
        """Stream one answer and count how it ended."""
        body = {"model": "m1", "messages": [{"role": "user", "content": text}], "stream": True}
        async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as response:
            raw = await response.content.readany()
            self._left -= 1
            if not self._left:
                self._all_answered.set()
            raw += await response.read()
            if response.status == 200:
                self.ended["whole" if "".join(texts(decode(raw))) == "begun, ended" else "broken"] += 1
            else:
                assert response.headers["Retry-After"] == "1"
                assert response.headers["Connection"] == "close"
                self.ended[f"{response.status} {json.loads(raw)['error']['code']}"] += 1


async def stream_all(processes: Processes, client: Client, limits: str) -> tuple[Process, str, Counter[str]]:
    """Open all streams to a front end with these limits, end them, and return it, its metrics and how they ended."""
    raise_file_limit()
    if (limit := file_limit()) is not None and limit < 2 * STREAMS:
        pytest.skip(f"this test opens {2 * STREAMS} sockets, and may open {limit}: raise the hard limit (ulimit -Hn)")
    queued = {"AGENTSTREAM_MAX_QUEUED": str(2 * STREAMS)}
    frontend = await processes.start(
        "frontend", prefix=["prlimit", f"--nofile={limits}"], AGENTSTREAM_PORT="0", **queued
    )
    url = (await frontend.until(r"serving on (http://\S+)"))[1]
    other_url = await processes.frontend(**queued)
    agent = "tests.integration.held_agents:held"
    await processes.worker(agent, PYTHONPATH=str(ROOT), AGENTSTREAM_CONCURRENCY=str(2 * STREAMS))
    load = Load(url, client.session)
    async with asyncio.timeout(LONG_S), asyncio.TaskGroup() as clients:
        for number in range(STREAMS):
            clients.create_task(load.client("go"), name=f"client {number}")
        await load.all_answered()
        async with client.session.get(f"{url}/metrics") as response:
            metrics = await response.text()
        assert "".join(texts(await client.stream(other_url, "open"))) == "begun, ended"
    return frontend, metrics, load.ended


async def test_the_soft_limit_is_raised(processes: Processes, client: Client) -> None:
    """With the usual soft limit of 1,024 files, 1,150 streams are served."""
    frontend, metrics, ended = await stream_all(processes, client, "1024:8192")
    assert ended == {"whole": STREAMS}
    assert float(re.findall(r"(?m)^agentstream_open_connections (\S+)", metrics)[0]) > STREAMS
    assert "limit of" not in frontend.output


async def test_clients_beyond_the_hard_limit_are_refused(processes: Processes, client: Client) -> None:
    """With a hard limit of 1,024 files, each of 1,150 streams is served or gets 503, and a log line names the limit."""
    frontend, metrics, ended = await stream_all(processes, client, "1024:1024")
    refused = ended["503 too_many_connections"]
    assert ended == {"whole": STREAMS - refused, "503 too_many_connections": refused}
    assert 0 < refused < STREAMS / 2
    await frontend.until(r"the limit of 1024 open files")
    assert frontend.output.count("the limit of 1024 open files") < 10
    assert f'agentstream_rejected_total{{reason="too_many_connections"}} {refused}.0' in metrics
    maximum = float(re.findall(r"(?m)^agentstream_max_connections (\S+)", metrics)[0])
    assert STREAMS / 2 < maximum < 1024
