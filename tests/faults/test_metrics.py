"""Every metric changes exactly as often as its cause happens, in real processes with real faults."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentstream.protocol.keys import Keys
from agentstream.telemetry import names as metric_names
from tests.faults.clients import (
    AGENT,
    PATH,
    Client,
    RawSocket,
    http_client,
    request,
    run_id_of,
)
from tests.faults.deployment import LEASE_S, Deployment, begun, freeze, kill_worker
from tests.faults.faults import Broker, cut_connections, frozen
from tests.helpers import TIMEOUT_S
from tests.processes import Processes
from tests.scrape import Scraper, metrics_port

LOSS_AGENT = "tests.faults.loss_agents:scripted"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client without an API key."""
    async with http_client() as opened:
        yield opened


class Site:
    """A front end and workers whose metrics the tests read."""

    def __init__(self, processes: Processes, client: Client) -> None:
        self._processes = processes
        self.client = client
        self.url = ""
        self.front = Scraper("")

    async def frontend(self, **settings: str) -> None:
        """Start the front end."""
        self.url = await self._processes.frontend(**settings)
        self.front = Scraper(self.url)

    async def worker(self, agent: str = AGENT, **settings: str) -> Scraper:
        """Start a worker, and return a scraper for its metrics."""
        port, serving = metrics_port()
        await self._processes.worker(agent, **serving | settings)
        return Scraper.of_port(port)

    @contextlib.asynccontextmanager
    async def stalled(self, *steps: object) -> AsyncIterator[None]:
        """Keep a client open that reads up to the first text of its stream and then reads nothing."""
        async with RawSocket.open(self.url, receive_buffer_bytes=4096) as raw:
            await raw.post(request(*steps) | {"stream": True})  # type: ignore[arg-type]
            await raw.until(b'"content":')
            yield

    async def cancel(self, run_id: str) -> None:
        """Cancel a run, and return when it has ended."""
        async with self.client.session.post(f"{self.url}{PATH}/{run_id}/cancel") as response:
            assert response.status == 200


@pytest.fixture
async def site(processes: Processes, client: Client) -> Site:
    """Return a site on the shared broker."""
    return Site(processes, client)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """Run the test's own real server, for faults."""
    async with Broker(tmp_path, append_only=False) as started:
        yield started


@pytest.fixture
async def own_site(broker: Broker, client: Client, tmp_path: Path) -> AsyncIterator[Site]:
    """Yield a site on the test's own server."""
    async with Processes(broker.url, tmp_path) as processes:
        yield Site(processes, client)


async def test_a_run_counts_once_in_everything_it_passes(site: Site) -> None:
    """For a streamed run with tools both processes report its pieces of text, its times and its outcome once."""
    await site.frontend()
    worker = await site.worker()
    await site.client.whole(site.url, request(["note", 1], ["say", 5], ["tool"], ["say", 3], ["tool"]))
    front = await site.front.scrape()
    assert front.of(metric_names.TOKENS) == 5 + 3 + 1  # the separator between the texts of two turns is one piece
    for histogram in (metric_names.DISPATCH_SECONDS, metric_names.FIRST_TOKEN_SECONDS):
        assert front.of(histogram) == 1
    assert front.of(metric_names.REQUESTS, route=PATH, status="200") == 1
    assert (
        front.of(metric_names.OPEN_RUNS)
        == front.of(metric_names.OPEN_STREAMS)
        == front.of(metric_names.BUFFERED_BYTES)
        == 0
    )
    queue = {"queue": site._processes.queue}
    numbers = await worker.until(lambda numbers: not numbers.of(metric_names.WORKER_ACTIVE_RUNS, **queue))
    assert (
        numbers.of(metric_names.WORKER_RUNS, outcome="completed", **queue) == numbers.of(metric_names.WORKER_RUNS) == 1
    )
    assert numbers.of(metric_names.WORKER_TOKENS, **queue) == 5 + 3
    assert (
        numbers.of(metric_names.WORKER_TOOL_CALLS, success="true", **queue)
        == numbers.of(metric_names.WORKER_TOOL_CALLS)
        == 2
    )
    assert numbers.of(metric_names.WORKER_CLAIMS, kind="new", **queue) == numbers.of(metric_names.WORKER_CLAIMS) == 1
    for histogram in (
        metric_names.WORKER_RUN_SECONDS,
        metric_names.WORKER_DISPATCH_SECONDS,
        metric_names.WORKER_PUBLISH_SECONDS,
    ):
        assert numbers.of(histogram) == 1
    assert numbers.of(metric_names.WORKER_SLOTS) == 32
    for nothing in (metric_names.WORKER_RETRIES, metric_names.WORKER_LEASES_LOST, metric_names.WORKER_PUBLISH_FAILURES):
        assert numbers.of(nothing) == 0


async def test_an_answer_that_is_not_written_counts_by_its_words(site: Site) -> None:
    """A replayed answer counts as the pieces that are sent, its first piece has a time, and a failure has none."""
    await site.frontend()
    worker = await site.worker()
    await site.client.whole(site.url, request(["answer", "one two three"]))
    await site.client.whole(site.url, request(["fail", "no"]))
    front = await site.front.scrape()
    assert (
        front.of(metric_names.TOKENS),
        front.of(metric_names.FIRST_TOKEN_SECONDS),
        front.of(metric_names.DISPATCH_SECONDS),
    ) == (3, 1, 2)
    await worker.reaches(metric_names.WORKER_RUNS, outcome="agent_error")


async def test_runs_in_progress_are_seen(site: Site, tmp_path: Path) -> None:
    """While runs go on, their streams, their slots and their text so far are reported."""
    await site.frontend()
    worker = await site.worker()
    steps = (["say", 4], ["gate", str(tmp_path / "gate")])
    async with site.client.streaming(site.url, request(*steps)) as stream:
        await stream.until(b"3 ")
        waiting = asyncio.create_task(site.client.call("POST", site.url + PATH, request(*steps)))
        front = await site.front.reaches(metric_names.OPEN_RUNS, 2)
        assert front.of(metric_names.OPEN_STREAMS) == 1
        assert front.of(metric_names.TOKENS) == 4
        numbers = await worker.reaches(metric_names.WORKER_TOKENS, 8)
        assert numbers.of(metric_names.WORKER_ACTIVE_RUNS) == 2
        (tmp_path / "gate").touch()
        await stream.rest()
        await waiting
    await worker.reaches(metric_names.WORKER_RUNS, 2, outcome="completed")


async def test_waiting_jobs_are_reported_with_the_age_of_the_oldest(site: Site, tmp_path: Path) -> None:
    """Jobs that no worker has taken count as waiting with an age, and running jobs count only as outstanding."""
    await site.frontend()
    gate = request(["gate", str(tmp_path / "gate")], background=True)
    for _ in range(2):
        await site.client.call("POST", site.url + PATH, gate)
    front = await site.front.until(lambda numbers: numbers.of(metric_names.OLDEST_WAITING_SECONDS) > 0.2)
    assert (front.of(metric_names.QUEUED), front.of(metric_names.WAITING), front.of(metric_names.WORKERS_ALIVE)) == (
        2,
        2,
        0,
    )
    worker = await site.worker(AGENTSTREAM_CONCURRENCY="1")
    front = await site.front.until(lambda numbers: numbers.of(metric_names.WAITING) == 1)
    assert (front.of(metric_names.QUEUED), front.of(metric_names.WORKERS_ALIVE)) == (2, 1)
    assert front.of(metric_names.OLDEST_WAITING_SECONDS) > 0.2
    (tmp_path / "gate").touch()
    front = await site.front.until(lambda numbers: numbers.of(metric_names.QUEUED) == 0)
    assert (front.of(metric_names.WAITING), front.of(metric_names.OLDEST_WAITING_SECONDS)) == (0, 0)
    assert (await worker.scrape()).of(metric_names.WORKER_DISPATCH_SECONDS) == 2


async def test_refusals_are_counted_by_reason(site: Site) -> None:
    """A full queue, an invalid body, an unknown run and a wrong method are each counted under their reason."""
    await site.frontend(AGENTSTREAM_MAX_QUEUED="1")
    await site.client.call("POST", site.url + PATH, request(background=True))
    assert (await site.client.call("POST", site.url + PATH, request()))[0] == 429
    assert (await site.client.call("POST", site.url + PATH, {"model": "m"}))[0] == 400
    assert (await site.client.call("GET", f"{site.url}{PATH}/chatcmpl-{0:032x}"))[0] == 404
    assert (await site.client.call("DELETE", site.url + PATH))[0] == 405
    front = await site.front.scrape()
    for reason in ("queue_full", "invalid_request_error", "not_found", "method_not_allowed"):
        assert front.of(metric_names.REJECTED, reason=reason) == 1, reason
    assert front.of(metric_names.REJECTED) == 4


async def test_clients_cannot_add_label_values(site: Site) -> None:
    """Models, paths, methods, headers and runs that clients invent add no series."""
    await site.frontend()
    worker = await site.worker()

    async def pester(number: int) -> None:
        evil = f'x{number}"\n}}'
        for method, path in (("GET", f"/v1/{number}"), ("PUT", PATH), ("GET", f"{PATH}/{number}"), ("PURGE", "/")):
            await site.client.call(method, site.url + path)
        await site.client.call("POST", f"{site.url}{PATH}", request(model=evil.replace("\n", "")))
        await site.client.call("POST", f"{site.url}{PATH}", request(model=evil))
        await site.client.whole(site.url, request(["note", evil], ["tool"], user=evil))

    await pester(0)
    await worker.reaches(metric_names.WORKER_RUNS, 2, outcome="completed")
    await site.front.scrape()  # a request like any other
    before = [(await scraper.scrape()).series() for scraper in (site.front, worker)]
    for number in range(1, 20):
        await pester(number)
    await worker.reaches(metric_names.WORKER_RUNS, 40, outcome="completed")
    assert [(await scraper.scrape()).series() for scraper in (site.front, worker)] == before


async def test_a_slow_client_and_its_cut_are_counted(site: Site) -> None:
    """The bytes that a client does not read are reported, and then it is cut and its run is cancelled as abandoned."""
    await site.frontend(AGENTSTREAM_WRITE_TIMEOUT_S="2")
    worker = await site.worker()
    async with site.stalled(["flood", 100_000, 8192]):
        await site.front.reaches(metric_names.BUFFERED_BYTES, 64 << 10)
        front = await site.front.reaches(metric_names.SLOW_CLIENT_CUTS)
        assert front.of(metric_names.CANCELS, cause="abandoned") == front.of(metric_names.CANCELS) == 1
        assert (front.of(metric_names.BUFFERED_BYTES), front.of(metric_names.OPEN_STREAMS)) == (0, 0)
    numbers = await worker.reaches(metric_names.WORKER_RUNS, outcome="cancelled")
    assert numbers.of(metric_names.WORKER_CANCEL_SECONDS) == 1


async def test_a_client_that_reads_again_is_one_catch_up(site: Site) -> None:
    """A client that reads its bytes late counts as one catch-up of a slow client, and not as a gap."""
    await site.frontend()
    await site.worker(AGENTSTREAM_LOG_MAX_BYTES=str(64 << 20))
    async with RawSocket.open(site.url, receive_buffer_bytes=4096) as raw:
        await raw.post(request(["flood", 1000, 8192]) | {"stream": True})
        await site.front.reaches(metric_names.BUFFERED_BYTES, 64 << 10)
        await raw.until(b"data: [DONE]")
    front = await site.front.reaches(metric_names.CATCH_UPS, cause="slow_client")
    assert front.of(metric_names.GAPS) == front.of(metric_names.SLOW_CLIENT_CUTS) == 0
    assert front.of(metric_names.TOKENS) == 1000


async def test_cancels_are_counted_and_timed(site: Site, tmp_path: Path) -> None:
    """A cancel by request and a cancel by a disconnect count under different causes, and the worker times both."""
    await site.frontend()
    worker = await site.worker()
    steps = (["say", 1], ["gate", str(tmp_path / "never")])
    async with site.client.streaming(site.url, request(*steps)) as stream:
        await site.cancel(run_id_of(await stream.until(b"0 ")))
    front = await site.front.scrape()
    assert (
        front.of(metric_names.CANCELS, cause="request")
        == front.of(metric_names.CANCELS)
        == front.of(metric_names.CANCEL_SECONDS)
        == 1
    )
    async with site.client.streaming(site.url, request(*steps)) as stream:
        await stream.until(b"0 ")
    front = await site.front.reaches(metric_names.CANCELS, cause="abandoned")
    assert front.of(metric_names.CANCEL_SECONDS) == 1
    numbers = await worker.reaches(metric_names.WORKER_RUNS, 2, outcome="cancelled")
    assert numbers.of(metric_names.WORKER_CANCEL_SECONDS) == 2


async def test_a_killed_workers_run_is_a_retry_elsewhere(processes: Processes, broker_url: str, tmp_path: Path) -> None:
    """The worker that takes over a run counts a reclaim and a retry, and the front end counts a catch-up for it."""
    async with Deployment.open(processes, broker_url, tmp_path) as deployment:
        await deployment.frontend()
        lost = await deployment.worker("a")
        async with deployment.stream("silent on a") as stream:
            await begun(lost, "silent")
            port, serving = metrics_port()
            await deployment.worker("b", **serving)
            await kill_worker(lost)
            await stream.whole()
        numbers = await Scraper.of_port(port).reaches(metric_names.WORKER_RUNS, outcome="completed")
        assert numbers.of(metric_names.WORKER_CLAIMS, kind="reclaimed") == numbers.of(metric_names.WORKER_RETRIES) == 1
        assert numbers.of(metric_names.WORKER_DISPATCH_SECONDS) == 0  # the run was dispatched before
        front = await Scraper(deployment.url).scrape()
        assert front.of(metric_names.CATCH_UPS, cause="attempt") == 1
        assert front.of(metric_names.DISPATCH_SECONDS) == 1
        assert front.of(metric_names.GAPS) == 0


async def test_a_frozen_worker_counts_its_lost_lease(processes: Processes, broker_url: str, tmp_path: Path) -> None:
    """A worker that was frozen for longer than a lease counts a lost lease and this outcome."""
    async with Deployment.open(processes, broker_url, tmp_path) as deployment:
        await deployment.frontend()
        port, serving = metrics_port()
        frozen_one = await deployment.worker("a", **serving)
        async with deployment.stream("silent on a") as stream:
            await begun(frozen_one, "silent")
            await deployment.worker("b")
            with freeze(frozen_one):
                await stream.whole()
        numbers = await Scraper.of_port(port).reaches(metric_names.WORKER_LEASES_LOST)
        assert numbers.of(metric_names.WORKER_RUNS, outcome="lease_lost") == numbers.of(metric_names.WORKER_RUNS) == 1


async def test_a_fenced_worker_counts_it(processes: Processes, broker_url: str, tmp_path: Path) -> None:
    """A worker whose append is refused after a takeover counts a fenced publisher and one retry of the batch."""
    async with Deployment.open(processes, broker_url, tmp_path) as deployment:
        await deployment.frontend()
        port, serving = metrics_port()
        frozen_one = await deployment.worker("a", AGENTSTREAM_LEASE_S=str(60 * LEASE_S), **serving)
        async with deployment.stream("ticks on a") as stream:
            await begun(frozen_one, "ticks")
            await deployment.worker("b")  # its leases are short
            with freeze(frozen_one):
                await stream.whole()
        numbers = await Scraper.of_port(port).reaches(metric_names.WORKER_PUBLISH_FAILURES, reason="fenced")
        assert numbers.of(metric_names.WORKER_PUBLISH_RETRIES) >= 1
        await Scraper.of_port(port).reaches(metric_names.WORKER_LEASES_LOST)


async def test_reconnects_are_counted_by_both_processes(own_site: Site, broker: Broker) -> None:
    """When the broker cuts all connections, both processes count reconnects, and missed messages count as gaps."""
    await own_site.frontend()
    worker = await own_site.worker(LOSS_AGENT)
    async with own_site.client.streaming(own_site.url, loss_request("ticks")) as stream:
        await stream.until(b"worker:1 ")
        async with asyncio.timeout(3 * TIMEOUT_S):
            while not (front := await own_site.front.scrape()).of(metric_names.GAPS):
                await cut_connections(broker)
                await asyncio.sleep(0.5)
        assert front.of(metric_names.BROKER_RECONNECTS) >= 1
        assert front.of(metric_names.CATCH_UPS, cause="reconnect") >= front.of(metric_names.GAPS)
        await worker.reaches(metric_names.WORKER_RECONNECTS)
        await own_site.cancel(run_id_of(await stream.until(b"data")))


async def test_a_feed_counts_what_it_receives(own_site: Site, broker: Broker, tmp_path: Path) -> None:
    """Duplicates, gaps, silences, joining readers and foreign messages are each counted under their cause."""
    await own_site.frontend()
    await own_site.worker()
    gate = tmp_path / "gate"
    body = request(["say", 1], ["gate", str(gate)], ["say", 1], ["gate", str(tmp_path / "never")])
    async with own_site.client.streaming(own_site.url, body) as stream:
        run_id = run_id_of(await stream.until(b"0 "))
        log = Keys().events(run_id)
        await broker.admin.publish(log, batch_of(await broker.admin.xrange(log)))
        front = await own_site.front.reaches(metric_names.DUPLICATES)
        assert (front.of(metric_names.DUPLICATES), front.of(metric_names.CATCH_UPS)) == (1, 0)
        await broker.admin.publish(log, b'{"v":1,"a":1,"s":99,"e":["x"]}')
        front = await own_site.front.reaches(metric_names.CATCH_UPS, cause="gap")
        assert front.of(metric_names.GAPS) == 0  # the replay log had no more events
        async with own_site.client.streaming(own_site.url, run_id=run_id) as joined:
            await joined.until(b"0 ")
            front = await own_site.front.reaches(metric_names.CATCH_UPS, cause="joined")
        assert (front.of(metric_names.CATCH_UPS, cause="joined"), front.of(metric_names.GAPS)) == (1, 0)
        assert front.of(metric_names.FIRST_TOKEN_SECONDS) == 1  # for the new run, not for the reader that joined it
        await own_site.front.reaches(metric_names.CATCH_UPS, cause="silence")
        await broker.admin.publish(log, b"nonsense")
        await stream.rest()
    front = await own_site.front.scrape()
    assert front.of(metric_names.GIVEN_UP, code="stream_lost") == front.of(metric_names.GIVEN_UP) == 1
    assert front.of(metric_names.CANCELS, cause="abandoned") == 1


async def test_a_job_that_no_worker_takes_is_given_up(site: Site) -> None:
    """A run without an event within its queue timeout counts as given up with queue_timeout."""
    await site.frontend(AGENTSTREAM_QUEUE_TIMEOUT_S="0.5")
    await site.client.whole(site.url, request(["say", 1]))
    front = await site.front.scrape()
    assert front.of(metric_names.GIVEN_UP, code="queue_timeout") == front.of(metric_names.GIVEN_UP) == 1
    assert front.of(metric_names.DISPATCH_SECONDS) == 0


async def test_batches_stored_again_are_counted(own_site: Site, broker: Broker) -> None:
    """If the broker loses a replay log, the batches stored again count as publish retries, and the stream continues."""
    await own_site.frontend()
    worker = await own_site.worker(LOSS_AGENT)
    async with own_site.client.streaming(own_site.url, loss_request("ticks")) as stream:
        run_id = run_id_of(await stream.until(b"worker:3 "))
        await broker.admin.delete(Keys().events(run_id))
        await worker.reaches(metric_names.WORKER_PUBLISH_RETRIES, 3)
        await stream.until(b"worker:20 ")
        await own_site.cancel(run_id)


async def test_a_refused_append_ends_the_run_and_is_counted(own_site: Site, broker: Broker, tmp_path: Path) -> None:
    """If Redis refuses to append to a replay log, a refused publish and a run that was not stored are counted."""
    await own_site.frontend()
    worker = await own_site.worker()
    body = request(["say", 1], ["gate", str(tmp_path / "gate")])
    async with own_site.client.streaming(own_site.url, body) as stream:
        log = Keys().events(run_id_of(await stream.until(b"0 ")))
        await broker.admin.delete(log)
        await broker.admin.set(log, "no log")
        (tmp_path / "gate").touch()
        numbers = await worker.reaches(metric_names.WORKER_RUNS, outcome="not_stored")
    assert numbers.of(metric_names.WORKER_PUBLISH_FAILURES, reason="refused") == 1
    assert numbers.of(metric_names.WORKER_PUBLISH_FAILURES) == numbers.of(metric_names.WORKER_RUNS) == 1
    assert numbers.of(metric_names.WORKER_LEASES_LOST) == 0


async def test_a_trimmed_log_is_counted_once(site: Site) -> None:
    """A run whose replay log was trimmed counts once, even if it is trimmed several times."""
    await site.frontend()
    worker = await site.worker(AGENTSTREAM_LOG_MAX_BYTES=str(64 << 10))
    await site.client.whole(site.url, request(["flood", 64, 8192]))
    await site.client.whole(site.url, request(["say", 3]))
    numbers = await worker.reaches(metric_names.WORKER_RUNS, 2, outcome="completed")
    assert numbers.of(metric_names.WORKER_LOG_TRIMS) == 1


async def test_unpublished_bytes_are_reported_while_the_broker_is_frozen(own_site: Site, broker: Broker) -> None:
    """While the broker is frozen a worker reports its unpublished bytes, and publishes them after that."""
    await own_site.frontend()
    worker = await own_site.worker(LOSS_AGENT)
    async with own_site.client.streaming(own_site.url, loss_request("ticks")) as stream:
        run_id = run_id_of(await stream.until(b"worker:1 "))
        with frozen(broker.pid):
            await worker.reaches(metric_names.WORKER_UNFLUSHED_BYTES, 500)
        await worker.until(lambda numbers: numbers.of(metric_names.WORKER_UNFLUSHED_BYTES) < 500)
        await own_site.cancel(run_id)


async def test_the_bus_latency_is_measured_without_any_run(site: Site) -> None:
    """A front end without runs measures the bus latency every few seconds."""
    await site.frontend()
    await site.front.reaches(metric_names.BUS_LATENCY_SECONDS, 2)


def batch_of(log: Any) -> bytes:
    """Return the batch in the first entry of a replay log."""
    batch: bytes = log[0][1][b"b"]
    return batch


def loss_request(script: str) -> dict[str, object]:
    """Return a request for the agent of the tests that lose workers."""
    return {"model": "m1", "messages": [{"role": "user", "content": script}]}
