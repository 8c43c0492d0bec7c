"""Runs the proxies of deploy/ as real processes, with the shipped configuration."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.dns import NameServer
from tests.deploy.newer_packages import Unavailable, newer_command
from tests.helpers import TIMEOUT_S
from tests.ports import free_port
from tests.processes import ROOT, Process

_POLL_S = 0.02


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the changes that adapt its file in deploy/ to this machine.

    ``listening`` matches the listen address, and ``listen`` replaces it. With addresses that are known, ``upstreams``
    matches the text that names the front ends; ``server`` is the line that replaces it for each front end, and
    ``dropped`` lines are removed. With a name server, ``named`` patterns are replaced.

    ``newer`` is the path of the program in Debian's package of the next release; None runs the one of this machine.
    """

    name: str
    package: str
    file: str
    upstreams: str
    server: str
    listening: str
    listen: str
    dropped: Sequence[str] = ()
    named: Sequence[tuple[str, str]] = ()
    newer: str | None = None

    def configuration(self, port: int, frontends: Sequence[str], folder: Path) -> str:
        """Return the shipped file with the addresses of these front ends, otherwise unchanged."""
        servers = [
            self.server.format(number=number, address=urlsplit(url).netloc) for number, url in enumerate(frontends)
        ]
        changes = [(self.upstreams, "\n".join(servers)), *((pattern, "") for pattern in self.dropped)]
        return self._changed(port, folder, changes)

    def named_configuration(self, port: int, frontend_port: int, dns: NameServer, folder: Path) -> str:
        """Return the shipped file with this name server and this port of the front ends, otherwise unchanged."""
        changes = [(pattern, new.format(dns=dns.port, port=frontend_port)) for pattern, new in self.named]
        return self._changed(port, folder, changes)

    def _changed(self, port: int, folder: Path, changes: Sequence[tuple[str, str]]) -> str:
        text = (ROOT / "deploy" / self.file).read_text()
        for pattern, new in [*changes, (self.listening, self.listen.format(port=port))]:
            text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
            assert count == 1, f"deploy/{self.file} has {count} matches of {pattern!r}, expected 1"
        return text.replace("/tmp/", f"{folder}/")  # noqa: S108 -- the path in the container

    def command(self, config: Path, folder: Path) -> list[str]:
        """Return the command that runs the proxy in the foreground."""
        root = "user root; " if os.geteuid() == 0 else ""
        arguments = {
            "nginx": ["-p", str(folder), "-c", str(config), "-g", f"{root}daemon off;"],
            "caddy": ["run", "--adapter", "caddyfile", "--config", str(config)],
            "haproxy": ["-db", "-f", str(config)],
        }
        return [*self.program(), *arguments[self.package]]

    def program(self) -> list[str]:
        """Return the command of the program. Without the newer one, it is that of this machine."""
        if self.newer is not None:
            with contextlib.suppress(Unavailable):
                return newer_command(self.package, self.newer)
        return [find_executable(self.package)]


NGINX_HERE = Proxy(
    "nginx",
    "nginx",
    "nginx.conf",
    r"server frontend:8000 resolve max_fails=0;",
    "server {address} max_fails=0;",
    r"listen 8080;",
    "listen 127.0.0.1:{port};",
    (r"^ *resolver .*;$",),
    ((r"resolver 127\.0\.0\.11 ", "resolver 127.0.0.1:{dns} "), (r"server frontend:8000 ", "server frontend:{port} ")),
)
NGINX = replace(NGINX_HERE, name="nginx-shipped", newer="usr/sbin/nginx")
CADDY = Proxy(
    "caddy",
    "caddy",
    "Caddyfile",
    r"dynamic a \{[^}]*\}",
    "to {address}",
    r"^:8080 ",
    "http://127.0.0.1:{port} ",
    named=((r"port 8000", "port {port}\nresolvers 127.0.0.1:{dns}"),),
    newer="usr/bin/caddy",
)
HAPROXY_HERE = Proxy(
    "haproxy",
    "haproxy",
    "haproxy.cfg",
    r"server-template .*",
    "server frontend{number} {address}",
    r"bind :8080",
    "bind 127.0.0.1:{port}",
    named=((r"127\.0\.0\.11:53", "127.0.0.1:{dns}"), (r"frontend:8000", "frontend:{port}")),
)
HAPROXY = replace(HAPROXY_HERE, name="haproxy-newer", newer="usr/sbin/haproxy")
PROXIES = (NGINX, NGINX_HERE, CADDY, HAPROXY, HAPROXY_HERE)
NAMED_PROXIES = (NGINX, CADDY, HAPROXY, HAPROXY_HERE)  # nginx before 1.27.3 cannot follow the DNS


def find_executable(package: str) -> str:
    """Return the path of the executable. Skip the test if it is not installed, and name the package."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(package, path=path)
    if found is None:
        pytest.skip(f"{package} is not installed (Debian: apt-get install {package})")
    return found


@contextlib.asynccontextmanager
async def run_proxy(proxy: Proxy, frontends: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """Run a proxy in front of the front ends, and yield its URL."""
    port = free_port()
    async with _running(proxy, port, proxy.configuration(port, frontends, folder), folder) as url:
        yield url


@contextlib.asynccontextmanager
async def run_named_proxy(proxy: Proxy, frontend_port: int, dns: NameServer, folder: Path) -> AsyncIterator[str]:
    """Run a proxy that asks the name server for its front ends, all on one port, and yield its URL."""
    port = free_port()
    async with _running(proxy, port, proxy.named_configuration(port, frontend_port, dns, folder), folder) as url:
        yield url


@contextlib.asynccontextmanager
async def _running(proxy: Proxy, port: int, configuration: str, folder: Path) -> AsyncIterator[str]:
    config = folder / proxy.file
    config.write_text(configuration)
    command = await asyncio.to_thread(proxy.command, config, folder)  # a first call downloads the program
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    process = Process(
        await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    )
    try:
        await _listening(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        await process.stop()


async def _listening(port: int, process: Process) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        message = f"the proxy did not listen on port {port} within {TIMEOUT_S} s; its output:\n{process.output}"
        raise AssertionError(message) from None
