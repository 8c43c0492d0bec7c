"""The health check of the image, against real listeners."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers import TIMEOUT_S
from tests.ports import free_port

SCRIPT = Path(__file__).parents[3] / "deploy/healthcheck.sh"


@contextlib.asynccontextmanager
async def answering(answer: bytes, host: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answer every request on a free port with these bytes. Yield the port and the first lines of the requests."""
    asked: list[bytes] = []

    async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).splitlines()[0])
        if answer:
            writer.write(answer)
        else:
            await reader.read()  # until the check gives up
        writer.close()

    server = await asyncio.start_server(answer_one, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


async def check(*arguments: str, **settings: object) -> tuple[int, str]:
    """Run the script with these settings. Return its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        str(SCRIPT),
        *arguments,
        env={"PATH": os.environ["PATH"]} | {name: str(value) for name, value in settings.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    return process.returncode or 0, output.decode()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def test_a_process_that_answers_is_healthy() -> None:
    """The check asks the port of the front end or of the worker for /health/live, and passes if the status is 200."""
    async with answering(OK) as (port, asked):
        assert await check("frontend", AGENTSTREAM_PORT=port, AGENTSTREAM_METRICS_PORT=1) == (0, "")
        assert await check("worker", AGENTSTREAM_METRICS_PORT=port, AGENTSTREAM_PORT=1) == (0, "")
        assert asked == [b"GET /health/live HTTP/1.0"] * 2


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "127.0.0.1", "localhost", '"0.0.0.0"', ""])  # noqa: S104 -- no listener
async def test_the_address_of_the_settings_is_used(host: str) -> None:
    """The check reaches a process that listens on all addresses, and reads values with quotes as the process does."""
    async with answering(OK) as (port, _):
        assert await check("frontend", AGENTSTREAM_HOST=host, AGENTSTREAM_PORT=f'"{port}"') == (0, "")


@pytest.mark.parametrize("host", ["::", "::1", "[::1]"])
async def test_ipv6_is_used(host: str) -> None:
    """The check reaches a process that listens on IPv6."""
    async with answering(OK, "::1") as (port, _):
        assert await check("frontend", AGENTSTREAM_HOST=host, AGENTSTREAM_PORT=port) == (0, "")


@pytest.mark.parametrize("status", [b"HTTP/1.1 500 Internal Server Error", b"HTTP/1.1 404 Not Found", b"garbage"])
async def test_another_status_is_not_healthy(status: bytes) -> None:
    """An answer with another status than 200 fails the check, which shows the status."""
    async with answering(status + b"\r\n\r\n") as (port, _):
        code, output = await check("frontend", AGENTSTREAM_PORT=port)
    assert code == 1
    assert output.startswith(f"GET /health/live on 127.0.0.1 port {port}:")


async def test_a_port_without_a_listener_is_not_healthy() -> None:
    """The check fails with one line that names the port if nothing listens there."""
    port = free_port()
    expected = (1, f"nothing listens on 127.0.0.1 port {port}\n")
    assert await check("frontend", AGENTSTREAM_PORT=port) == expected
    assert await check("worker", AGENTSTREAM_METRICS_PORT=port) == expected


async def test_a_process_that_hangs_is_not_healthy() -> None:
    """The check ends by itself, with an error, if the process accepts the connection and never answers."""
    async with answering(b"") as (port, asked):
        code, _ = await check("frontend", AGENTSTREAM_PORT=port)
        assert code != 0
        assert asked


@pytest.mark.parametrize("port", [{}, {"AGENTSTREAM_METRICS_PORT": ""}, {"AGENTSTREAM_METRICS_PORT": "0"}])
async def test_a_worker_without_a_port_passes(port: dict[str, str]) -> None:
    """A worker that listens on no port has nothing to ask, so the check passes while its container runs."""
    assert await check("worker", **port) == (0, "")
