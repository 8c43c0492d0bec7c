"""Front ends start, stop, vanish and are replaced under load: through each proxy, every request is answered once."""

import asyncio
import contextlib
import itertools
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.dns import NameServer, name_server
from tests.deploy.noting_agents import WORDS
from tests.deploy.proxies import NAMED_PROXIES, Proxy, run_named_proxy
from tests.faults.clients import PATH, http_client
from tests.helpers import TIMEOUT_S, decode, texts
from tests.ports import free_port
from tests.processes import ROOT, Process, Processes, linux_only

# All of 127.0.0.0/8 is this machine. Up to nine processes start one after the other, perhaps on a busy machine.
pytestmark = [linux_only, pytest.mark.timeout(300)]

CLIENTS = 12
ASKED_AGAIN_S = 2.5  # the proxies ask the name server every 2 s


class Load:
    """Clients that send the next request as soon as they have the answer, each request on a new connection."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http
        self._stopping = False
        self._numbers = itertools.count()
        self.sent: list[str] = []
        self.whole = 0
        self.failed: list[str] = []

    def stop(self) -> None:
        """Let every open stream end, and start no new one."""
        self._stopping = True

    async def more(self, answers: int) -> None:
        """Return after so many more answers."""
        wanted = self.whole + answers
        async with asyncio.timeout(2 * TIMEOUT_S):
            while self.whole < wanted and not self.failed:  # noqa: ASYNC110 -- simpler than events, and bounded
                await asyncio.sleep(0.02)

    async def client(self) -> None:
        """Stream answers until stopped, and record each that fails."""
        while not self._stopping:
            text = f"request {next(self._numbers)}"
            self.sent.append(text)
            body = {"model": "m1", "messages": [{"role": "user", "content": text}], "stream": True}
            try:
                async with self._http.post(self._url + PATH, json=body, headers={"Connection": "close"}) as response:
                    raw = await response.read()
            except aiohttp.ClientError as exc:
                self.failed.append(f"{text}: {exc!r}")
                continue
            if response.status == 200 and texts(decode(raw)) == WORDS and raw.endswith(b"data: [DONE]\n\n"):
                self.whole += 1
            else:
                self.failed.append(f"{text}: {response.status}: {raw[-300:]!r}")


class FrontEnds:
    """Front ends on addresses of this machine. The name server lists an address from before the start until the end."""

    def __init__(self, processes: Processes, dns: NameServer) -> None:
        self._processes = processes
        self._dns = dns
        self._hosts = (f"127.0.1.{number}" for number in itertools.count(1))
        self._running: list[tuple[str, Process]] = []
        self.port = free_port()

    async def add(self) -> None:
        """Start a front end. Like a container, it is in the DNS before it listens."""
        host = next(self._hosts)
        self._dns.addresses.append(host)
        process = await self._processes.start("frontend", AGENTSTREAM_HOST=host, AGENTSTREAM_PORT=str(self.port))
        await process.until(r"serving on")
        self._running.append((host, process))

    async def remove(self) -> None:
        """Stop the oldest front end. Like a container, it is in the DNS until it has ended, and drains meanwhile."""
        host, process = self._running.pop(0)
        process.send_signal(signal.SIGTERM)
        assert await process.ended(2 * TIMEOUT_S) == 0
        assert "disconnecting" not in process.output
        self._dns.addresses.remove(host)

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """Keep an address in the DNS that refuses connections, as a front end that starts or drains for long."""
        host = next(self._hosts)
        self._dns.addresses.insert(0, host)
        yield
        self._dns.addresses.remove(host)

    @contextlib.contextmanager
    def vanished(self) -> Iterator[None]:
        """Keep an address in the DNS that answers nothing, as that of a container that is gone."""
        host = next(self._hosts)
        with contextlib.ExitStack() as stack:
            gone = stack.enter_context(socket.create_server((host, self.port), backlog=0))
            for _ in range(3):  # its accept queue is full now, so the kernel drops what comes
                client = stack.enter_context(socket.socket())
                client.settimeout(0)
                client.connect_ex(gone.getsockname())
            self._dns.addresses.insert(0, host)
            yield
            self._dns.addresses.remove(host)


@pytest.fixture(params=NAMED_PROXIES, ids=lambda proxy: proxy.name)
async def loaded(
    request: pytest.FixtureRequest, processes: Processes, tmp_path: Path
) -> AsyncIterator[tuple[FrontEnds, Load]]:
    """A proxy in front of two front ends, under load. At the end, every request was answered, by one run."""
    proxy: Proxy = request.param
    notes = tmp_path / "notes"
    for _ in range(2):
        await processes.worker("tests.deploy.noting_agents:noting", PYTHONPATH=str(ROOT), NOTES=str(notes))
    async with name_server() as dns, http_client() as http:
        frontends = FrontEnds(processes, dns)
        for _ in range(2):
            await frontends.add()
        async with run_named_proxy(proxy, frontends.port, dns, tmp_path) as url:
            await until_served(url, http.session)
            load = Load(url, http.session)
            async with asyncio.TaskGroup() as clients:
                for number in range(CLIENTS):
                    clients.create_task(load.client(), name=f"client {number}")
                await load.more(CLIENTS)
                yield frontends, load
                load.stop()
    assert load.failed == []
    assert load.whole == len(load.sent)
    assert Counter(notes.read_text().splitlines()) == Counter(load.sent)


async def until_served(url: str, http: aiohttp.ClientSession) -> None:
    """Return when the proxy has found the front ends."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            async with http.get(f"{url}/v1/models") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


async def test_front_ends_are_added_removed_and_replaced(loaded: tuple[FrontEnds, Load]) -> None:
    """Two front ends become four, then two, then each is replaced: no request fails and none runs twice."""
    frontends, load = loaded
    for change in (frontends.add, frontends.add, frontends.remove, frontends.remove, frontends.add, frontends.remove):
        await change()
        await load.more(CLIENTS)
    await asyncio.sleep(ASKED_AGAIN_S)
    await asyncio.gather(frontends.add(), frontends.remove())
    await load.more(3 * CLIENTS)


async def test_a_front_end_that_refuses_for_long_costs_no_request(loaded: tuple[FrontEnds, Load]) -> None:
    """A front end that drains for long is passed over, although it has the fewest connections."""
    frontends, load = loaded
    with frontends.refused():
        await asyncio.sleep(ASKED_AGAIN_S)
        await load.more(6 * CLIENTS)


async def test_a_front_end_that_vanished_costs_no_request(loaded: tuple[FrontEnds, Load]) -> None:
    """An address that answers nothing, as of a container that is gone, is passed over."""
    frontends, load = loaded
    with frontends.vanished():
        await asyncio.sleep(ASKED_AGAIN_S)
        await load.more(3 * CLIENTS)
    await load.more(CLIENTS)
