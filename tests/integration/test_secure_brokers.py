"""The service on servers that require TLS, a client certificate and a login, alone, with sentinels and as a cluster."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.brokers.cluster import ClusterServers
from tests.brokers.security import Security, has_tls
from tests.brokers.sentinel import SentinelServers
from tests.brokers.servers import executables
from tests.helpers import TIME_SCALE, TIMEOUT_S
from tests.processes import Processes

SERVER = executables().get("redis-server")
SECURE = Security("service", "pass/word", tls=True, client_certificates=True)
PATH = "/v1/chat/completions"

pytestmark = [
    pytest.mark.timeout(120 * TIME_SCALE),
    pytest.mark.skipif(SERVER is None or not has_tls(SERVER), reason="no server with TLS: install redis-server"),
]


@pytest.fixture(params=["server", "sentinels", "cluster"])
async def secure_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of servers that speak only TLS, to clients with a certificate and a password."""
    if request.param == "cluster":
        async with ClusterServers(SERVER, replicas=0, security=SECURE) as cluster:
            yield cluster.url
        return
    async with SentinelServers(SERVER, replicas=1, security=SECURE, sentinel_login=SECURE) as sentinels:
        if request.param == "sentinels":
            yield sentinels.url
            return
        primary = await sentinels.primary()
        login, query = SECURE.userinfo(), sentinels.url.partition("?")[2]
        options = "&".join(option for option in query.split("&") if not option.startswith("sentinel_"))
        yield f"rediss://{login}{primary.address}:{primary.port}?{options}"


async def test_a_run_over_tls_with_a_client_certificate(secure_url: str, tmp_path: Path) -> None:
    """A stream, ``ps``, a cancel and ``doctor`` work, and no output has the password."""
    async with Processes(secure_url, tmp_path) as processes, aiohttp.ClientSession() as session:
        url = await processes.frontend()
        await processes.worker("gated", GATE=str(tmp_path / "gate"))
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with asyncio.timeout(TIMEOUT_S), session.post(url + PATH, json=body) as response:
            assert response.status == 200
            first = (await response.content.readuntil(b"\n\n")).decode()
            run_id = first.partition('"id":"')[2].partition('"')[0]
            listing = await processes.start("ps")
            await listing.until(run_id)
            async with session.post(f"{url}{PATH}/{run_id}/cancel") as cancelled:
                assert (await cancelled.json())["status"] == "cancelled"
            assert (await response.content.read()).rstrip().endswith(b"data: [DONE]")
        doctor = await processes.start("doctor")
        await doctor.ended()
        assert "cannot" not in doctor.output.lower(), doctor.output
        assert all(SECURE.password not in process.output for process in processes.started)
