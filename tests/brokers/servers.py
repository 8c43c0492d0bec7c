"""Several servers that work together: their folder, addresses, logins, faults and end."""

import abc
import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from agentstream.processes.broker import usable_servers
from tests.brokers.network import Cuts, addresses
from tests.brokers.security import Certificates, Security
from tests.brokers.server import PortTaken, Server

_TRIES = 3  # another process may take a port between the choice and the start
_NO_SECURITY = Security()


def executables() -> dict[str, Path]:
    """Return the real servers on this machine by their names: valkey-server (bundled), redis-server (from PATH)."""
    paths = [choice.executable for choice in usable_servers() if choice.executable is not None]
    return {path.name: path for path in reversed(paths)}  # of two with a name, the first one


class Servers(abc.ABC):
    """Servers that start together on loopback, with their data in a temporary folder.

    ``executable`` is the server's program, the bundled valkey-server if None. With ``append_only`` a server that
    restarts has the data of all writes that it has acknowledged. ``security`` holds for all servers and their own
    connections. ``settings`` are further lines for the configuration files of the servers (not of sentinels).
    """

    def __init__(
        self,
        executable: Path | None = None,
        *,
        append_only: bool = False,
        security: Security = _NO_SECURITY,
        settings: tuple[str, ...] = (),
    ) -> None:
        """Choose the servers. ``async with`` starts and ends them."""
        self.executable = executable or executables()["valkey-server"]
        self.security = security
        self.certificates: Certificates | None = None
        self._append_only = append_only
        self._settings = settings
        self._cuts = Cuts()
        self._started: list[Server] = []
        self._addresses: list[str] = []
        self._folder = Path()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def start(self) -> None:
        """Start all servers, and return when all work together. Raises AssertionError; then no process is left."""
        for _ in range(_TRIES):
            self._folder = Path(tempfile.mkdtemp(prefix="agentstream-servers-"))
            self._addresses = addresses()
            try:
                if self.security.tls:
                    self.certificates = Certificates(self._folder, sorted(set(self._addresses)))
                await self._start_all()
            except PortTaken:
                self.close()
            except BaseException:
                self.close()
                raise
            else:
                return
        message = f"other processes took the ports of the servers in {_TRIES} tries"
        raise AssertionError(message)

    def close(self) -> None:
        """End all cuts and processes, also frozen ones, and remove the folder."""
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            for server in self._started:
                stack.callback(server.close)
            stack.callback(self._cuts.heal)
        self._started.clear()

    @property
    @abc.abstractmethod
    def nodes(self) -> list[Server]:
        """All servers that hold data: primaries and replicas, also ended and frozen ones."""

    @property
    def url(self) -> str:
        """The URL with the login of the administrator, for REDIS_URL."""
        return self.url_as(self.security)

    @abc.abstractmethod
    def url_as(self, login: Security) -> str:
        """Return the URL with the username and password of ``login``."""

    async def restart(self, server: Server) -> None:
        """Kill a server if it runs, and start it again on its port with the configuration and the data it had.

        Returns when it answers. ``wait_ok`` waits until it has joined the others again.
        """
        server.kill()
        await server.start()

    @abc.abstractmethod
    async def wait_ok(self) -> None:
        """Wait until all servers that run work together, and all replicas have the data of their primaries."""

    def cut_between(self, group: Iterable[Server], others: Iterable[Server]) -> None:
        """Cut the network between two groups of servers until ``heal``; see ``network.can_cut``.

        Packets are dropped silently in both directions, on all ports: data, replication, cluster bus and sentinel.
        Clients still reach every server.
        """
        right = list(others)
        self._cuts.cut((one.address, other.address) for one in group for other in right if one is not other)

    def isolate(self, server: Server) -> None:
        """Cut a server off from all other servers and sentinels until ``heal``. Clients still reach it."""
        self.cut_between([server], self._started)

    def heal(self) -> None:
        """End all cuts."""
        self._cuts.heal()

    def _query(self, **further: str) -> str:
        """Return the query of the URL with the question mark, or nothing."""
        parts = [f"{name}={value}" for name, value in further.items()]
        if self.certificates is not None:
            parts.append(self.certificates.query(client_certificates=self.security.client_certificates))
        return f"?{'&'.join(parts)}" if parts else ""

    def _new_server(self, name: str, login: Security, *options: str) -> Server:
        """Return a server that has an address and a port, and is not configured yet."""
        client: dict[str, Any] = login.login()
        if self.certificates is not None:
            client |= {"ssl": True, **self.certificates.options(client_certificates=login.client_certificates)}
        address = self._addresses.pop(0)
        server = Server(name, (str(self.executable), *options), self._folder, address, client)
        self._started.append(server)
        return server

    def _network_lines(self, server: Server, login: Security) -> list[str]:
        """Return configuration lines for the address, the port and the users of a server or sentinel."""
        lines = [f"bind {server.address}", f"bind-source-addr {server.address}", "protected-mode no"]
        if self.certificates is None:
            lines.append(f"port {server.port}")
        else:
            lines += self.certificates.lines(server.port, client_certificates=login.client_certificates)
        return [*lines, f'dir "{server.folder}"', "loglevel notice", *login.lines()]

    def _data_lines(self, server: Server) -> list[str]:
        """Return configuration lines for a server that holds data."""
        return [
            *self._network_lines(server, self.security),
            *self.security.login_to("masteruser", "masterauth"),
            'save ""',
            f"appendonly {'yes' if self._append_only else 'no'}",
            f"replica-announce-ip {server.address}",
            "maxmemory-policy noeviction",
            "repl-diskless-sync-delay 0",
            "repl-ping-replica-period 1",
            "repl-timeout 5",  # a replica notices a silent cut after this time; the default of 60 s is long for a test
            *self._settings,
        ]

    @abc.abstractmethod
    async def _start_all(self) -> None:
        """Start all servers, and wait until they work together."""


async def start_together(servers: Iterable[Server]) -> None:
    """Start configured servers at the same time, and wait until all answer."""
    started = list(servers)
    for server in started:
        server.launch()
    results = await asyncio.gather(*(server.wait_started() for server in started), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


AnyServers = TypeVar("AnyServers", bound=Servers)


def running(runner: asyncio.Runner, servers: AnyServers) -> Iterator[AnyServers]:
    """Yield started servers once, and end them; the body of a fixture that several tests share."""
    runner.run(servers.start())
    try:
        yield servers
    finally:
        servers.close()
