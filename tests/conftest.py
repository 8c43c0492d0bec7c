"""Fixtures for all tests: brokers, links and processes, each on a free port and stopped at the end."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from agentstream.processes.broker import EmbeddedBroker, ServerChoice, usable_servers
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.new_link import new_link
from agentstream.store.connection.server_link import ServerLink
from agentstream.store.connection.wire import RespConnection
from agentstream.telemetry.masking import forget_secrets
from tests.brokers.cluster import ClusterServers
from tests.brokers.sentinel import SentinelServers
from tests.brokers.servers import running
from tests.helpers import TIMEOUT_S
from tests.processes import Processes

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with SIGINT ignored. Child processes inherit that, but tests send them SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so does nohup with SIGHUP

hypothesis_settings.register_profile("no timings", deadline=None)  # a busy machine may be slow
hypothesis_settings.load_profile("no timings")


def _servers() -> dict[str, ServerChoice]:
    """Return the bundled real server, redis-server if PATH has it, and fakeredis."""
    return {choice.executable.name if choice.executable else choice.origin: choice for choice in usable_servers()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses ``any_broker_url`` once for each available server, and for a cluster.

    A test with the marker ``one_server`` looks into the link to one server, or needs several keys in one slot.
    """
    if "any_broker_url" in metafunc.fixturenames:
        servers = sorted(_servers())
        assert "valkey-server" in servers, "the bundled real server is missing; the contract tests need it"
        if not metafunc.definition.get_closest_marker("one_server"):
            servers.append("cluster")
        metafunc.parametrize("any_broker_url", servers, indirect=True, scope="session")


@pytest.fixture(scope="session")
def broker_runner() -> Iterator[asyncio.Runner]:
    """The event loop that starts and stops the brokers of the whole session."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def any_broker_url(request: pytest.FixtureRequest, broker_runner: asyncio.Runner) -> Iterator[str]:
    """The URL of the server, or of the cluster, for this run of the test. The bundled server listens on a socket."""
    if request.param == "cluster":
        yield request.getfixturevalue("cluster_servers").url
        return
    broker = EmbeddedBroker(_servers()[request.param], over_tcp=request.param != "valkey-server")
    broker_runner.run(broker.start())
    yield broker.url
    broker_runner.run(broker.stop())


@pytest.fixture(scope="session")
def broker_url(broker_runner: asyncio.Runner) -> Iterator[str]:
    """The URL of the bundled real server, which has a password and listens on a port, as in most deployments."""
    broker = EmbeddedBroker(_servers()["valkey-server"], over_tcp=True)
    broker_runner.run(broker.start())
    yield broker.url
    broker_runner.run(broker.stop())


@pytest.fixture(scope="session")
def cluster_servers(broker_runner: asyncio.Runner) -> Iterator[ClusterServers]:
    """A cluster of the bundled server for all tests of the session, which must not disturb it."""
    yield from running(broker_runner, ClusterServers())


@pytest.fixture(scope="session")
def sentinel_servers(broker_runner: asyncio.Runner) -> Iterator[SentinelServers]:
    """A primary, replicas and sentinels of the bundled server for all tests, which must not disturb them."""
    yield from running(broker_runner, SentinelServers())


@pytest.fixture
async def cluster() -> AsyncIterator[ClusterServers]:
    """A cluster that only this test uses."""
    async with ClusterServers() as servers:
        yield servers


@pytest.fixture
async def sentinels() -> AsyncIterator[SentinelServers]:
    """A primary, replicas and sentinels that only this test uses."""
    async with SentinelServers() as servers:
        yield servers


@pytest.fixture
def keys() -> Keys:
    """Redis names under a prefix that only this test uses."""
    return Keys(f"test-{secrets.token_hex(6)}")


@pytest.fixture
async def processes(broker_url: str, tmp_path: Path) -> AsyncIterator[Processes]:
    """Starts front ends and workers on the shared broker, with a queue that only this test uses."""
    async with Processes(broker_url, tmp_path) as started:
        yield started


async def open_link(url: str, name: str) -> Link:
    """Return a connected link."""
    link = new_link(Endpoint(url), name=name)
    link.open()
    await link.wait_ready(TIMEOUT_S)
    return link


async def open_server_link(url: str, name: str) -> ServerLink:
    """Return a connected link to one server."""
    link = await open_link(url, name)
    assert isinstance(link, ServerLink)
    return link


@pytest.fixture
async def link(any_broker_url: str) -> AsyncIterator[Link]:
    """A link to the server for this run of the test."""
    link = await open_link(any_broker_url, "test")
    yield link
    await link.close()


@pytest.fixture
async def other_link(any_broker_url: str) -> AsyncIterator[Link]:
    """A second link to the same server, as in another process."""
    link = await open_link(any_broker_url, "test-other")
    yield link
    await link.close()


@pytest.fixture(autouse=True)
def _no_secrets() -> Iterator[None]:
    """Forget the secrets that a test has registered: they may be ordinary words elsewhere."""
    yield
    forget_secrets()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the caller's environment."""
    for name in list(os.environ):
        if name.startswith(("AGENTSTREAM_", "OPENAI_", "OTEL_")) or name == "REDIS_URL":
            monkeypatch.delenv(name)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list to which each later write to a broker is appended."""
    written: list[bytes] = []
    write = RespConnection.write

    def record(connection: RespConnection, data: bytes) -> None:
        written.append(data)
        write(connection, data)

    monkeypatch.setattr(RespConnection, "write", record)
    return written
