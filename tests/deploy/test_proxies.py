"""The shipped proxy configurations in front of two real front ends and workers: streams pass, errors are readable."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.deploy.newer_packages import Unavailable, newer_command, version
from tests.deploy.proxies import NGINX, PROXIES, Proxy, run_proxy
from tests.faults.clients import AGENT, PATH, Client, http_client, request
from tests.faults.resume_agents import cancelled_at
from tests.helpers import TIMEOUT_S, decode, texts
from tests.processes import ROOT, Processes


@dataclass(frozen=True)
class Deployment:
    """The address of a proxy, a client, and the addresses of the front ends."""

    url: str
    client: Client
    frontends: list[str]


@pytest.fixture(params=PROXIES, ids=lambda proxy: proxy.name)
async def deployment(request: pytest.FixtureRequest, processes: Processes, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Run a proxy in front of two front ends, and two workers with the scripted agent."""
    proxy: Proxy = request.param
    urls = [await processes.frontend() for _ in range(2)]
    for _ in range(2):
        await processes.worker(AGENT, PYTHONPATH=str(ROOT))
    async with run_proxy(proxy, urls, tmp_path) as url, http_client() as client:
        yield Deployment(url, client, urls)


async def test_a_frame_passes_while_the_agent_waits(deployment: Deployment, tmp_path: Path) -> None:
    """The first text reaches the client while the agent waits for that, and then the rest follows."""
    gate = tmp_path / "gate"
    async with deployment.client.streaming(
        deployment.url, request(["say", 1], ["gate", str(gate)], ["say", 2])
    ) as stream:
        begun = await stream.until(b'"content":"0 ')
        assert b"[DONE]" not in begun
        gate.touch()
        messages = decode(begun + await stream.rest())
    assert len(texts(messages)) == 3
    assert messages[-1] == (None, "[DONE]")


async def test_a_silent_stream_is_kept_open(deployment: Deployment, tmp_path: Path) -> None:
    """Keepalives of a silent stream pass one by one, and the stream continues after them."""
    gate = tmp_path / "gate"
    async with deployment.client.streaming(
        deployment.url, request(["say", 1], ["gate", str(gate)], ["say", 1])
    ) as stream:
        await stream.until(b'"content":"0 ')
        for _ in range(2):
            assert (await stream.until(b": keepalive\n")).count(b": keepalive\n") == 1
        gate.touch()
        assert (await stream.rest()).endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_cancels_its_run(deployment: Deployment, tmp_path: Path) -> None:
    """When the client closes its connection to the proxy, the run in the worker is cancelled."""
    gate = tmp_path / "gate"
    async with deployment.client.streaming(deployment.url, request(["say", 1], ["gate", str(gate)])) as stream:
        await stream.until(b'"content":"0 ')
    async with asyncio.timeout(TIMEOUT_S):
        while not cancelled_at(gate).exists():  # noqa: ASYNC110 -- another process makes it
            await asyncio.sleep(0.02)


async def post_large(deployment: Deployment, padding_bytes: int) -> tuple[int, Any]:
    """Send a request with this many additional bytes, and return the status and the parsed body of the answer."""
    body = io.BytesIO(json.dumps(request(["answer", "fine"], padding="x" * padding_bytes)).encode())
    headers = {"Content-Type": "application/json"}
    async with deployment.client.session.post(deployment.url + PATH, data=body, headers=headers) as response:
        return response.status, await response.json()


async def test_a_body_that_is_too_large_is_refused_readably(deployment: Deployment) -> None:
    """A body of 40 MB gets 413 in OpenAI's form, from the proxy or from the front end behind it."""
    status, answer = await post_large(deployment, 40 << 20)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_is_nearly_too_large_passes(deployment: Deployment) -> None:
    """A body of 9 MB, a usual size with images, is answered."""
    status, answer = await post_large(deployment, 9 << 20)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "fine"


async def test_the_front_ends_errors_pass(deployment: Deployment) -> None:
    """An error of the front end reaches the client unchanged."""
    status, answer = await deployment.client.post(deployment.url, {"model": "m1"})
    assert (status, answer["error"]["param"]) == (400, "messages")


async def test_health_and_metrics_stay_inside(deployment: Deployment) -> None:
    """The proxy serves neither /health/ready nor /metrics, also if their paths are encoded."""
    for path in ("/health/ready", "/health/%72eady", "/%68ealth/ready", "/metrics", "/%6Detrics"):
        url = URL(f"{deployment.url}{path}", encoded=True)
        status, answer = await deployment.client.call("GET", url)
        assert (status, answer["error"]["code"]) == (404, "not_found"), path


async def test_each_request_gets_a_new_connection(deployment: Deployment) -> None:
    """Between two requests the proxy keeps no connection to a front end, which may stop meanwhile."""
    for _ in range(4):
        status, _ = await deployment.client.post(deployment.url, request(["answer", "fine"]))
        assert status == 200
    async with asyncio.timeout(TIMEOUT_S):
        while await open_connections(deployment):  # noqa: ASYNC110 -- other processes
            await asyncio.sleep(0.05)


async def open_connections(deployment: Deployment) -> int:
    """Return how many connections the front ends have, without those that ask for it."""
    found = 0
    for url in deployment.frontends:
        async with deployment.client.session.get(f"{url}/metrics", headers={"Connection": "close"}) as response:
            found += int(float(re.findall(r"(?m)^agentstream_open_connections (\S+)", await response.text())[0])) - 1
    return found


def test_nginx_is_the_shipped_one() -> None:
    """The nginx of these tests has the version that compose.yaml names, if a Debian mirror can be reached."""
    assert NGINX.newer is not None
    shipped = re.findall(r"image: .*nginx:(\d+\.\d+)", (ROOT / "compose.yaml").read_text())
    try:
        command = newer_command(NGINX.package, NGINX.newer)
    except Unavailable as exc:
        pytest.skip(f"these tests run the nginx of this machine instead of {shipped[0]}: {exc}")
    assert version(command, "-v").rpartition(".")[0] == shipped[0]


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
async def test_no_front_end_gives_an_openai_error(proxy: Proxy, tmp_path: Path, unused_tcp_port: int) -> None:
    """Without a front end the proxy answers with an OpenAI error and a Retry-After header."""
    async with (
        run_proxy(proxy, [f"http://127.0.0.1:{unused_tcp_port}"], tmp_path) as url,
        aiohttp.ClientSession() as http,
        http.post(f"{url}{PATH}", json=request(["say", 1])) as response,
    ):
        assert response.status in {502, 503}
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == "frontend_unavailable"
