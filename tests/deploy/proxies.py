"""Runs the proxies of deploy/ as real processes, with the shipped configuration."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agentstream.processes.runtime import free_port
from tests.helpers import TIMEOUT_S
from tests.processes import ROOT, Process

_POLL_S = 0.02


@dataclass(frozen=True)
class Proxy:
    """A proxy, its Debian package, and the changes that adapt its file in deploy/ to this machine.

    ``upstreams`` matches the text that names the front ends in the file. ``server`` is the line that replaces it for
    each front end. ``listening`` matches the listen address, and ``listen`` replaces it. ``dropped`` lines are removed.
    """

    package: str
    file: str
    upstreams: str
    server: str
    listening: str
    listen: str
    dropped: Sequence[str] = ()

    def configuration(self, port: int, frontends: Sequence[str], folder: Path) -> str:
        """Return the shipped file with the addresses of this machine, otherwise unchanged."""
        servers = [
            self.server.format(number=number, address=urlsplit(url).netloc) for number, url in enumerate(frontends)
        ]
        text = (ROOT / "deploy" / self.file).read_text()
        changes = [(self.upstreams, "\n".join(servers)), (self.listening, self.listen.format(port=port))]
        for pattern, new in [*changes, *((pattern, "") for pattern in self.dropped)]:
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
        return [find_executable(self.package), *arguments[self.package]]


NGINX = Proxy(
    "nginx",
    "nginx.conf",
    r"server frontend:8000 resolve max_fails=0;",
    "server {address} max_fails=0;",
    r"listen 8080;",
    "listen 127.0.0.1:{port};",
    (r"^ *resolver .*;$",),
)
CADDY = Proxy("caddy", "Caddyfile", r"dynamic a \{[^}]*\}", "to {address}", r"^:8080 ", "http://127.0.0.1:{port} ")
HAPROXY = Proxy(
    "haproxy",
    "haproxy.cfg",
    r"server-template .*",
    "server frontend{number} {address}",
    r"bind :8080",
    "bind 127.0.0.1:{port}",
)
PROXIES = (NGINX, CADDY, HAPROXY)


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
    config = folder / proxy.file
    config.write_text(proxy.configuration(port, frontends, folder))
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    process = Process(
        await asyncio.create_subprocess_exec(
            *proxy.command(config, folder),
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
