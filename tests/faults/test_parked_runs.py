"""Parked runs outlive every process: restarts, answers at the same time, lost front ends, and a thousand of them."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from agentstream.protocol.events import RUN_RESUMED
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.interrupts import InterruptStore
from agentstream.telemetry import names as metric_names
from tests.conftest import open_link
from tests.faults.deployment import COMPLETIONS, Deployment, chat, kill_worker
from tests.faults.faults import Broker, outage
from tests.helpers import TIMEOUT_S
from tests.ports import free_port
from tests.processes import Process, Processes
from tests.scrape import Scraper

APPROVED: Final = {"answers": {"approval-1": {"approve": True}}}
DENIED: Final = {"answers": {"approval-1": {"approve": False}}}
# The open TTL of a run is an hour, and these. A parked run outlasts both limits.
SHORT: Final = {"AGENTSTREAM_QUEUE_TIMEOUT_S": "1", "AGENTSTREAM_RUN_TIMEOUT_S": "1"}
FORMATS: Final = ("named", "raw", "chunk", "off")
MANY: Final = 1000
AT_ONCE: Final = 50


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client with a time limit, and with as many connections as it needs."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as opened:
        yield opened


async def serve(processes: Processes, **settings: str) -> tuple[Process, str]:
    """Start a front end; return its process and its URL."""
    process = await processes.start("frontend", AGENTSTREAM_PORT="0", **settings)
    return process, (await process.until(r"serving on (http://[^\s\"]+)"))[1]


async def post(session: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Send a request; return the status and the answer, as bytes if it is a stream."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.post(url, json=body, headers=fields) as response:
        streamed = response.content_type == "text/event-stream"
        return response.status, await (response.read() if streamed else response.json())


async def get(session: aiohttp.ClientSession, url: str, **headers: str) -> bytes:
    """Return the body of an answer."""
    async with session.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()}) as response:
        assert response.status == 200, await response.text()
        return await response.read()


def numbered(stream: bytes) -> bytes:
    """Return a stream up to its last frame with an id."""
    frames = stream.split(b"\n\n")
    last = max(place for place, frame in enumerate(frames) if b"id: " in frame)
    return b"".join(frame + b"\n\n" for frame in frames[: last + 1])


def last_id(stream: bytes) -> str:
    """Return the id of the last frame that has one."""
    return stream.rpartition(b"id: ")[2].partition(b"\n")[0].decode()


@pytest.mark.timeout(180)
async def test_a_run_is_answered_after_everything_was_restarted(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Both front ends, all workers and Redis may restart while a run waits; then every reader's stream joins."""
    async with (
        Broker(tmp_path, append_only=True) as broker,
        Processes(broker.url, tmp_path) as processes,
        Deployment.open(processes, broker.url, tmp_path) as deployment,
    ):
        frontends = [await serve(processes, **SHORT) for _ in range(2)]
        worker = await deployment.worker("a", "asking_agents:asking", **SHORT)
        firsts: dict[str, bytes] = {}
        _, first = await post(
            session, frontends[0][1] + COMPLETIONS, chat("once") | {"stream": True}, X_Agent_Events="named"
        )
        run_id = first.partition(b'"id":"')[2].partition(b'"')[0].decode()
        parked_s = time.monotonic()
        path = f"{COMPLETIONS}/{run_id}"
        for name in FORMATS:  # other readers, on the other front end
            firsts[name] = await get(session, f"{frontends[1][1]}{path}?stream=true", X_Agent_Events=name)
        assert firsts["named"] == first
        for process, _ in frontends:
            await process.stop()
        await kill_worker(worker)
        await broker.admin.execute_command("WAITAOF", 1, 0, 5000)  # type: ignore[no-untyped-call]
        async with outage(broker):
            pass
        assert await broker.admin.ttl(Keys().run(run_id)) > 23 * 3600
        assert await broker.admin.ttl(Keys().events(run_id)) > 23 * 3600
        urls = [(await serve(processes, **SHORT))[1] for _ in range(2)]
        await deployment.worker("b", "asking_agents:asking", **SHORT)
        assert time.monotonic() - parked_s > 2  # longer than the run's time limits
        status, rest = await post(
            session, f"{urls[1]}{path}/resume", APPROVED | {"stream": True}, X_Agent_Events="named"
        )
        assert status == 200
        assert b"approved=True " in rest
        for name in FORMATS:
            replay = await get(session, f"{urls[0]}{path}?stream=true", X_Agent_Events=name)
            after = f"{urls[0]}{path}?stream=true&starting_after={last_id(numbered(firsts[name]))}"
            assert numbered(firsts[name]) + await get(session, after, X_Agent_Events=name) == replay
            if name == "named":
                assert numbered(first) + rest == replay


async def test_two_people_answer_at_the_same_time(
    processes: Processes, broker_url: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Of two different answers on two front ends one wins, and the other is told; equal answers both succeed."""
    async with Deployment.open(processes, broker_url, tmp_path) as deployment:
        urls = [(await serve(processes))[1] for _ in range(2)]
        await deployment.worker("a", "asking_agents:asking")
        for answers in (APPROVED, DENIED), (APPROVED, APPROVED):
            asked = await asyncio.gather(*(post(session, urls[0] + COMPLETIONS, chat("once")) for _ in range(10)))
            for _, run in asked:
                path = f"{COMPLETIONS}/{run['id']}/resume"
                got = await asyncio.gather(
                    *(post(session, url + path, body) for url, body in zip(urls, answers, strict=True))
                )
                won = [body for status, body in got if status == 200]
                lost = [body["error"]["code"] for status, body in got if status == 409]
                assert (len(won), lost) == ((1, ["already_answered"]) if answers[0] != answers[1] else (2, []))
                taken = str(answers[got.index((200, won[0]))]["answers"]["approval-1"]["approve"])
                assert won[0]["choices"][0]["message"]["content"] == f"before approved={taken} "
            log = b"".join(entry[1][b"b"] for entry in await deployment.log_of(asked[0][1]["id"]))
            assert log.count(RUN_RESUMED.encode()) == 1


@pytest.mark.parametrize("who", ["worker", "client"])
async def test_an_answer_survives_the_front_end_that_stored_it(
    processes: Processes, broker_url: str, tmp_path: Path, session: aiohttp.ClientSession, who: str
) -> None:
    """If a front end is killed after it stored the answer, a worker enqueues the run, or a repeated answer does."""
    async with Deployment.open(processes, broker_url, tmp_path) as deployment:
        _, url = await serve(processes)
        await deployment.worker("a", "asking_agents:asking")
        _, run = await post(session, url + COMPLETIONS, chat("once"))
        link = await open_link(broker_url, "a front end that is killed")
        try:
            store = InterruptStore(link, Keys())
            waiting = await store.read(run["id"])
            assert waiting is not None
            if who == "worker":  # a front end gives the workers this order before it stores the answer
                await store.remember(processes.queue, run["id"], int(time.time()))
            assert await store.answer(waiting, {"approval-1": {"answer": {"approve": True}}}, ttl_s=60)
        finally:
            await link.close()
        path = f"{COMPLETIONS}/{run['id']}"
        if who == "client":
            assert await deployment.field_of(run["id"], "status") == "queued"
            assert (await post(session, f"{url}{path}/resume", APPROVED))[0] == 200
        assert b'"content":"approved=True "' in await get(session, f"{url}{path}?stream=true")


async def test_an_answered_run_counts_as_active_again(broker_url: str) -> None:
    """A run that goes on counts against the limit of its owner; one without a limit does not."""
    link, keys = await open_link(broker_url, "test"), Keys("test-active")
    try:
        for limited in (True, False):
            job = Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=2.0, owner="o", limited=limited)
            await InterruptStore(link, keys).enqueue("q", job, ttl_s=60)
            score = await link.call("ZSCORE", keys.active_runs("o"), job.run_id)
            assert (score is not None) is limited
        await link.call("DEL", keys.active_runs("o"), keys.jobs("q"))
    finally:
        await link.close()


@pytest.mark.timeout(300)
async def test_a_thousand_parked_runs_hold_nothing(
    processes: Processes, broker_url: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Parked runs hold no slot, job, stream or connection, and few bytes in Redis; each of them can be answered."""
    port = free_port()
    async with Deployment.open(processes, broker_url, tmp_path) as deployment, Endpoint(broker_url).redis() as redis:
        _, url = await serve(processes)
        await deployment.worker("a", "asking_agents:asking", AGENTSTREAM_METRICS_PORT=str(port))
        _, first = await post(session, url + COMPLETIONS, chat("once"))
        connections = len(await redis.client_list())
        ids = [first["id"]]
        while len(ids) < MANY:
            asked = await asyncio.gather(*(post(session, url + COMPLETIONS, chat("once")) for _ in range(AT_ONCE)))
            assert {run["status"] for _, run in asked} == {"requires_action"}
            ids += [run["id"] for _, run in asked]
        await Scraper.of_port(port).until(lambda worker: worker.of(metric_names.WORKER_ACTIVE_RUNS) == 0)
        await Scraper(url).until(lambda frontend: frontend.of(metric_names.OPEN_RUNS) == 0)
        assert await redis.zcard(Keys().parked(processes.queue)) == len(ids)
        assert await redis.xlen(Keys().jobs(processes.queue)) == 0
        assert len(await redis.client_list()) <= connections
        each = [
            sum([await redis.memory_usage(name(run_id)) or 0 for name in (Keys().run, Keys().events)])
            for run_id in ids[:: MANY // AT_ONCE]
        ]
        print(f"bytes in Redis for a parked run: {sum(each) // len(each)}")  # noqa: T201 -- shown with -s
        assert max(each) < 8 << 10
        for place in range(0, len(ids), AT_ONCE):
            done = await asyncio.gather(
                *(
                    post(session, f"{url}{COMPLETIONS}/{run_id}/resume", APPROVED)
                    for run_id in ids[place : place + AT_ONCE]
                )
            )
            assert {(status, run["status"]) for status, run in done} == {(200, "completed")}
        assert await redis.zcard(Keys().parked(processes.queue)) == 0
