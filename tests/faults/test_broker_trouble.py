"""The broker is killed, emptied, frozen, full or replaced: streams continue, and no word is lost or repeated."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import pytest

from agentstream.protocol.keys import Keys
from tests.faults.chaos_agents import FOLDER_VARIABLE, Plan
from tests.faults.checking_client import CheckingClient, StreamRecord, client_session
from tests.faults.faults import (
    Broker,
    SwitchableProxy,
    count_cut_subscribers,
    count_oom_errors,
    cut_connections,
    forget_scripts,
    frozen,
    full_memory,
    leftovers,
    outage,
    tiny_push_buffer,
    until,
)
from tests.helpers import TIME_SCALE
from tests.ports import free_port
from tests.processes import Process, Processes

RUNS = 8
LEASE_S = 2 * TIME_SCALE
AGENT = "tests.faults.chaos_agents:chaotic"
# Long enough to run before, during and after the fault.
LONG = Plan(words=150, pause_ms=int(30 * TIME_SCALE), tool_between=True)
BURSTS = Plan(words=300, pause_ms=2, padding=2000)
PATIENCE_S = 60 * TIME_SCALE

pytestmark = pytest.mark.timeout(120 * TIME_SCALE)


@dataclass
class Deployment:
    """A front end, two workers, and a session for clients that follow runs."""

    processes: Processes
    session: aiohttp.ClientSession
    url: str
    workers: list[Process]

    def follower(self) -> CheckingClient:
        return CheckingClient(self.session, [self.url])

    def streams(self, plan: Plan, count: int = RUNS, **body: object) -> "Streams":
        return Streams(self, [StreamRecord(plan) for _ in range(count)], body)


class Streams:
    """Several runs, each followed by its own client. At the end of the context all clients have finished."""

    def __init__(self, deployment: Deployment, received: Sequence[StreamRecord], body: dict[str, object]) -> None:
        self._scene = deployment
        self.received = received
        self._body = body
        self._clients: list[asyncio.Task[StreamRecord]] = []

    async def __aenter__(self) -> Self:
        self._clients = [
            asyncio.create_task(self._scene.follower().follow(received, **self._body), name="client")
            for received in self.received
        ]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.gather(*self._clients)
        finally:
            await self.hang_up()

    async def all_said(self, words: int) -> None:
        """Return when every client has this many words. Fail if a client ends before that."""

        async def said() -> bool:
            assert not any(client.done() for client in self._clients), self.received
            return all(received.words >= words for received in self.received)

        await until(said, PATIENCE_S)

    async def all_begun(self) -> None:
        """Return when every client has received its role chunk."""

        async def begun() -> bool:
            return all(received.run_id for received in self.received)

        await until(begun)

    async def hang_up(self) -> None:
        """Disconnect every client."""
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._clients = []

    def assert_complete(self) -> None:
        """Assert that every stream has all its words once, in order, over one connection."""
        for received in self.received:
            assert received.wrong == {}, received
            assert received.outcome == "complete", received
            assert received.words == received.plan.words
            assert received.connections == 1, "the client's connection did not survive"


@asynccontextmanager
async def scene_on(url: str, folder: Path, agent: str = AGENT, **settings: str) -> AsyncIterator[Deployment]:
    marks = folder / "marks"
    marks.mkdir()
    env = {"AGENTSTREAM_LEASE_S": str(LEASE_S), FOLDER_VARIABLE: str(marks), **settings}
    async with Processes(url, folder) as processes, client_session() as session:
        frontend = await processes.frontend(**env)
        workers = [await processes.worker(agent, **env) for _ in range(2)]
        yield Deployment(processes, session, frontend, workers)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """Run a broker with an append-only file."""
    async with Broker(tmp_path, append_only=True) as started:
        yield started


@pytest.fixture
async def forgetful(tmp_path: Path) -> AsyncIterator[Broker]:
    """Run a broker that comes back empty after a restart."""
    async with Broker(tmp_path, append_only=False) as started:
        yield started


async def assert_nothing_left(broker: Broker, deployment: Deployment) -> None:
    """Assert that every job is done, no worker holds one, and every key but the queue has a TTL."""

    async def nothing_left() -> bool:
        return not await leftovers(broker, deployment.processes.queue)

    try:
        await until(nothing_left)
    except TimeoutError:
        pytest.fail(f"left over: {await leftovers(broker, deployment.processes.queue)}")
    for process in deployment.processes.started:
        assert "Traceback" not in process.output, process.output


async def restart(broker: Broker) -> None:
    async with outage(broker):
        pass


async def stay_away(broker: Broker) -> None:
    async with outage(broker):
        await asyncio.sleep(12 * TIME_SCALE)


async def freeze(broker: Broker) -> None:
    with frozen(broker.pid):
        await asyncio.sleep(10 * TIME_SCALE)


async def cut_again_and_again(broker: Broker) -> None:
    for _ in range(15):
        await cut_connections(broker)
        await asyncio.sleep(0.15 * TIME_SCALE)


@pytest.mark.parametrize("fault", [restart, stay_away, freeze, cut_again_and_again, forget_scripts])
async def test_streams_continue_if_the_broker_keeps_its_data(
    broker: Broker, tmp_path: Path, fault: Callable[[Broker], Awaitable[None]]
) -> None:
    """Open streams complete after the broker was killed, away or frozen, cut connections, or lost its scripts."""
    async with scene_on(broker.url, tmp_path) as deployment:
        async with deployment.streams(LONG) as streams:
            await streams.all_said(10)
            await fault(broker)
        streams.assert_complete()
        await assert_nothing_left(broker, deployment)


async def test_workers_fill_an_emptied_log_again(forgetful: Broker, tmp_path: Path) -> None:
    """If the broker comes back empty, workers fill the replay logs of their runs again, and the streams complete."""
    async with scene_on(forgetful.url, tmp_path) as deployment:
        async with deployment.streams(LONG) as streams:
            await streams.all_said(10)
            await restart(forgetful)
        streams.assert_complete()
        for received in streams.received:
            assert await forgetful.admin.xlen(Keys().events(received.run_id)) > 0
        await assert_nothing_left(forgetful, deployment)


async def test_queued_jobs_are_enqueued_again(forgetful: Broker, tmp_path: Path) -> None:
    """Jobs that the broker lost before a worker took them are enqueued again, and run once."""
    settings = {"AGENTSTREAM_LEASE_S": str(LEASE_S), FOLDER_VARIABLE: str(tmp_path)}
    async with Processes(forgetful.url, tmp_path) as processes, client_session() as session:
        deployment = Deployment(processes, session, await processes.frontend(**settings), [])
        async with deployment.streams(Plan(words=5, tools_first=1), count=3) as streams:
            await streams.all_begun()
            await restart(forgetful)
            await processes.worker(AGENT, **settings)
        streams.assert_complete()
        marks = [(tmp_path / received.run_id).read_text() for received in streams.received]
        assert marks == ["0\n"] * 3
        await assert_nothing_left(forgetful, deployment)


async def test_a_job_handed_back_to_an_emptied_broker_leaves_no_key(forgetful: Broker, tmp_path: Path) -> None:
    """A worker that stops after the broker lost its runs leaves no key without a TTL."""
    count = 2

    async def under_way() -> bool:
        return len([key async for key in forgetful.admin.scan_iter("*:events")]) == count

    async with (
        scene_on(forgetful.url, tmp_path, AGENTSTREAM_DRAIN_TIMEOUT_S="0") as deployment,
        deployment.streams(Plan(words=3, think_ms=60_000), count, background=True) as streams,
    ):
        await until(under_way)
        await restart(forgetful)
        for worker in deployment.workers:
            await worker.stop()
        await streams.hang_up()
        assert [line for line in await leftovers(forgetful, deployment.processes.queue) if "TTL" in line] == []


@pytest.mark.parametrize("agent", [AGENT, f"{AGENT}_in_a_thread"], ids=["async", "thread"])
async def test_a_tool_does_not_run_before_its_start_is_stored(broker: Broker, tmp_path: Path, agent: str) -> None:
    """While the broker is away an agent does not run its tool, so no tool runs twice if the worker is killed."""
    async with scene_on(broker.url, tmp_path, agent) as deployment:
        async with deployment.streams(Plan(words=5, think_ms=1500, tools_first=1), background=True) as streams:
            await streams.all_begun()
            async with outage(broker):
                await asyncio.sleep(2.5 * TIME_SCALE)  # by now the agents have emitted the start of their tool
                deployment.workers[0].send_signal(signal.SIGKILL)
                assert list((tmp_path / "marks").iterdir()) == []
        streams.assert_complete()
        marks = [(tmp_path / "marks" / received.run_id).read_text() for received in streams.received]
        assert marks == ["0\n"] * RUNS
        await assert_nothing_left(broker, deployment)


async def test_a_cut_subscriber_reads_the_replay_log(broker: Broker, tmp_path: Path) -> None:
    """A front end that the broker cuts because of a full output buffer continues from the replay log."""

    async def some_cut() -> bool:
        return await count_cut_subscribers(broker) > 0

    async with scene_on(broker.url, tmp_path) as deployment:
        async with deployment.streams(BURSTS, count=4) as streams:
            await streams.all_said(1)
            async with tiny_push_buffer(broker):
                await until(some_cut, PATIENCE_S)
        streams.assert_complete()
        await assert_nothing_left(broker, deployment)


async def test_full_memory_refuses_new_runs_and_delays_running_ones(broker: Broker, tmp_path: Path) -> None:
    """While the broker is out of memory new requests get 503, and running streams wait and then complete."""
    request = {"model": "m", "messages": [{"role": "user", "content": LONG.text()}], "stream": True}
    async with scene_on(broker.url, tmp_path) as deployment:
        async with deployment.streams(LONG) as streams:
            await streams.all_said(10)
            async with full_memory(broker):
                async with deployment.session.post(f"{deployment.url}/v1/chat/completions", json=request) as response:
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) > 0
                    assert (await response.json())["error"]["code"] == "broker_unavailable"
                assert await count_oom_errors(broker) > 0
                said = [received.words for received in streams.received]
                assert max(said) < LONG.words
        streams.assert_complete()
        await assert_nothing_left(broker, deployment)


async def test_a_promoted_replica_gets_the_missing_batches(broker: Broker, tmp_path: Path) -> None:
    """If a replica with less data replaces the primary, workers notice it and store the missing batches again."""
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(Broker(tmp_path, append_only=True, replica_of=broker))
        switch = await stack.enter_async_context(SwitchableProxy(broker))

        async def in_step() -> bool:
            return bool((await replica.admin.info("replication"))["master_link_status"] == "up")

        await until(in_step)
        deployment = await stack.enter_async_context(scene_on(switch.url, tmp_path))
        async with deployment.streams(LONG) as streams:
            await streams.all_said(10)
            await replica.admin.replicaof("127.0.0.1", free_port())  # cut off: it misses everything from now on
            await streams.all_said(30)
            await broker.kill()
            switch.switch_to(replica)  # it is still read-only, which means "not now" and is no error
            await asyncio.sleep(1 * TIME_SCALE)
            await replica.admin.replicaof("NO", "ONE")
        streams.assert_complete()
        assert any("storing" in worker.output for worker in deployment.workers), "no worker stored batches again"
        await assert_nothing_left(replica, deployment)
