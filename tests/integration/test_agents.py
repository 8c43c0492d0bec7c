"""Several agents in one deployment: models, their queues, and the workers that serve them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from agentstream.protocol.keys import Keys
from tests.helpers import TIMEOUT_S, texts
from tests.integration.conftest import Client
from tests.processes import Process, Processes

LEASE_S = 1
# More than the requests that a test sends in a row: the job of a run is removed shortly after its stream has ended.
MAX_QUEUED = 30


@dataclass
class Site:
    """A front end with two models: ``quick`` on queue a, and ``slow``, whose runs wait for the gate, on queue b."""

    url: str
    processes: Processes
    client: Client
    gate: Path

    @property
    def a(self) -> str:
        return f"{self.processes.queue}-a"

    @property
    def b(self) -> str:
        return f"{self.processes.queue}-b"

    @property
    def agents(self) -> str:
        return f"quick=agents:whoami@{self.a}, slow=agents:gated@{self.b}"

    async def worker(self, queues: str = "", **settings: str) -> Process:
        """Start a worker of these queues; "" is all queues."""
        return await self.processes.worker(
            AGENTSTREAM_AGENTS=self.agents,
            AGENTSTREAM_QUEUES=queues,
            AGENTSTREAM_LEASE_S=str(LEASE_S),
            GATE=str(self.gate),
            **settings,
        )

    async def ask(self, model: str) -> str:
        """Return the streamed answer of a model."""
        return "".join(texts(await self.client.stream(self.url, "go", model=model)))

    async def get(self, path: str) -> Any:
        async with self.client.session.get(self.url + path) as response:
            assert response.status == 200
            return await response.json()

    async def models(self) -> list[str]:
        return [model["id"] for model in (await self.get("/v1/models"))["data"]]


@pytest.fixture
async def site(processes: Processes, client: Client, tmp_path: Path) -> AsyncIterator[Site]:
    site = Site("", processes, client, tmp_path / "gate")
    site.url = await processes.frontend(AGENTSTREAM_AGENTS=site.agents, AGENTSTREAM_MAX_QUEUED=str(MAX_QUEUED))
    yield site
    site.gate.touch()


async def test_each_model_is_answered_by_its_own_workers(site: Site) -> None:
    """Behind one front end, each model is served by the workers of its own queue."""
    site.gate.touch()
    a1, a2, b = await asyncio.gather(site.worker(site.a), site.worker(site.a), site.worker(site.b))
    assert await site.models() == ["quick", "slow"]
    answers = [await site.ask("quick") for _ in range(20)]
    assert set(answers) <= {f"quick {a1.pid}", f"quick {a2.pid}"}
    assert await site.ask("slow") == "go"
    await b.until(rf"gated run in {b.pid}\n")
    ready = await site.get("/health/ready")
    assert ready["status"] == "ok"
    assert {queue: state["workers"] for queue, state in ready["queues"].items()} == {site.a: 2, site.b: 1}
    async with site.client.session.get(f"{site.url}/metrics") as response:
        families = list(text_string_to_metric_families(await response.text()))
    alive = next(family for family in families if family.name == "agentstream_workers_alive")
    assert {sample.labels["queue"]: sample.value for sample in alive.samples} == {site.a: 2, site.b: 1}


async def test_a_model_is_listed_while_it_has_a_worker(site: Site) -> None:
    """A model whose queue has no live worker is neither listed nor found, but its requests wait for a worker."""
    assert await site.models() == []
    assert (await site.get("/health/ready"))["status"] == "degraded"
    waiting = asyncio.create_task(site.ask("quick"))
    worker = await site.worker(site.a)
    assert await waiting == f"quick {worker.pid}"
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as sdk:
        assert [model.id async for model in sdk.models.list()] == ["quick"]
        assert (await sdk.models.retrieve("quick")).id == "quick"
        with pytest.raises(openai.NotFoundError, match=r"'slow' is not available now.* has no live worker") as caught:
            await sdk.models.retrieve("slow")
        assert caught.value.code == "model_not_found"
    detail = (await site.get("/health/ready"))["detail"]
    assert site.b in detail
    assert site.a not in detail
    worker.send_signal(signal.SIGTERM)
    await worker.ended()
    assert await site.models() == []


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"background": True}], ids=["whole", "stream", "background"])
async def test_an_unknown_model_is_not_found(site: Site, broker_url: str, body: dict[str, Any]) -> None:
    """A model without an agent gets 404 in OpenAI's shape, and nothing is stored, even with an Idempotency-Key."""
    with Redis.from_url(broker_url) as broker:
        before = set(broker.scan_iter(Keys().run("chatcmpl-*"))) | set(broker.scan_iter(Keys().idempotency("*")))
        request = {"model": "unheard-of", "messages": [{"role": "user", "content": "hi"}], **body}
        answer = await site.client.post(site.url, request, **{"Idempotency-Key": "k"})
        after = set(broker.scan_iter(Keys().run("chatcmpl-*"))) | set(broker.scan_iter(Keys().idempotency("*")))
        assert answer.status == 404
        error = (await answer.json())["error"]
        assert "'unheard-of'" in error.pop("message")
        assert error == {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
        assert after - before == set()
        assert [broker.xlen(Keys().jobs(queue)) for queue in (site.a, site.b)] == [0, 0]


async def test_each_queue_has_its_own_limit(site: Site) -> None:
    """A full queue refuses requests for its own models, and the other queue accepts its requests."""
    request = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "background": True}
    statuses = [(await site.client.post(site.url, request)).status for _ in range(MAX_QUEUED + 1)]
    assert statuses == [200] * MAX_QUEUED + [429]
    assert (await site.client.post(site.url, {**request, "model": "quick"})).status == 200
    queues = (await site.get("/health/ready"))["queues"]
    assert {queue: state["queued"] for queue, state in queues.items()} == {site.a: 1, site.b: MAX_QUEUED}


async def test_one_worker_serves_both_queues(site: Site) -> None:
    """A worker without configured queues serves all queues: each model gets its agent, and a cancel works."""
    worker = await site.worker(AGENTSTREAM_CONCURRENCY="1")
    assert await site.ask("quick") == f"quick {worker.pid}"
    request = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "background": True}
    run_id = (await (await site.client.post(site.url, request)).json())["id"]
    await worker.until(r"gated run")
    quick = asyncio.create_task(site.ask("quick"))  # waits for the only slot
    async with site.client.session.post(f"{site.url}/v1/chat/completions/{run_id}/cancel") as response:
        assert (await response.json())["status"] == "cancelled"
    assert await quick == f"quick {worker.pid}"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
async def test_runs_of_every_queue_go_to_another_worker(site: Site, end: signal.Signals) -> None:
    """When a worker is killed or stopped, another worker begins its runs of every queue again."""
    agents = f"one=agents:gated@{site.a}, two=agents:gated@{site.b}"
    url = await site.processes.frontend(AGENTSTREAM_AGENTS=agents)
    settings = {
        "AGENTSTREAM_AGENTS": agents,
        "AGENTSTREAM_LEASE_S": str(LEASE_S),
        "AGENTSTREAM_DRAIN_TIMEOUT_S": "0",
        "GATE": str(site.gate),
    }
    first = await site.processes.worker(**settings)
    streams = [asyncio.create_task(site.client.stream(url, model, model=model)) for model in ("one", "two")]
    await first.until(r"(?s)(gated run.*){2}")
    second = await site.processes.worker(**settings)
    os.kill(first.pid, end)
    await second.until(r"(?s)(gated run.*){2}", 2 * TIMEOUT_S)
    site.gate.touch()
    assert ["".join(texts(await stream)) for stream in streams] == ["one", "two"]


async def test_a_worker_without_the_models_agent_fails_the_run(site: Site) -> None:
    """If a worker has no agent for the model of a job, the run fails with an error that says so."""
    await site.processes.worker(AGENTSTREAM_AGENTS=f"other=agents:whoami@{site.a}")
    *_, final, _ = await site.client.stream(site.url, "go", model="quick")
    assert final[1]["agent_error"]["code"] == "invalid_request"
    assert "no agent for the model 'quick'" in final[1]["agent_error"]["message"]


async def test_with_one_agent_any_model_is_accepted(processes: Processes, client: Client) -> None:
    """With one agent, every model name is accepted, and the configured names are listed while a worker is alive."""
    url = await processes.frontend(AGENTSTREAM_MODELS="m1,m2")
    site = Site(url, processes, client, Path())
    assert await site.models() == []
    worker = await processes.worker("whoami")
    assert await site.models() == ["m1", "m2"]
    assert await site.ask("unheard-of") == f"unheard-of {worker.pid}"
