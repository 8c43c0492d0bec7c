"""The contract of the admin queries, on fakeredis and real servers."""

import time
from typing import Any

import pytest

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.events import encode_batch, encode_event
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.admin.open_runs import OpenRun, OpenRunReader, QueueListing
from agentstream.store.admin.probe_run import ProbeRun
from agentstream.store.admin.queue_state import QueueReader, QueueSummary
from agentstream.store.admin.server_state import ServerState
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.queue import JobQueue
from agentstream.store.runs import RunStore
from agentstream.store.submission import JobSubmitter

MODEL = "org/model"


def job(text: str = "") -> Job:
    request = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    now = time.time()
    return Job(run_id=new_run_id(), request=request, created=int(now), start_by=now + 60, owner="me")


def one_server(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint of the first server."""
    return endpoint if endpoint.kind == "standalone" else endpoint.at(*endpoint.addresses[0])


async def listed(url: str, keys: Keys, *queues: str, **bounds: Any) -> list[QueueListing]:
    async with OpenRunReader(Endpoint(url), keys) as reader:
        return await reader.open_runs(queues, **bounds)


async def submitted(link: Link, keys: Keys, queue: str, *jobs: Job) -> None:
    submitter = JobSubmitter(link, keys, queue, max_queued=100)
    for one in jobs:
        await submitter.submit(one, ttl_s=60)


async def test_queued_runs_are_listed_in_order(any_broker_url: str, link: Link, keys: Keys) -> None:
    """The runs of each queue are listed with model and age, oldest first, also if a request is large."""
    small, large, other = job(), job("x" * (2 << 20)), job()
    await submitted(link, keys, "a", small, large)
    await submitted(link, keys, "b", other)
    a, b, nothing = await listed(any_broker_url, keys, "a", "b", "c")
    assert [run.run_id for run in a.runs] == [small.run_id, large.run_id]
    assert [run.run_id for run in b.runs] == [other.run_id]
    assert nothing == QueueListing("c", 0, 0, [])
    assert a.outstanding == 2
    [run] = b.runs
    assert run.age_s in range(30)
    assert run == OpenRun(other.run_id, "b", "queued", MODEL, run.age_s, attempt=0, worker="", events=0)


async def test_a_listing_is_bounded(any_broker_url: str, link: Link, keys: Keys) -> None:
    """A listing has at most ``limit`` runs, and the number of all outstanding jobs."""
    jobs = [job() for _ in range(5)]
    await submitted(link, keys, "q", *jobs)
    [listing] = await listed(any_broker_url, keys, "q", limit=3)
    assert [run.run_id for run in listing.runs] == [one.run_id for one in jobs[:3]]
    assert listing.outstanding == 5


async def test_a_run_is_listed_with_its_last_checkpoint(any_broker_url: str, link: Link, keys: Keys) -> None:
    """A run is listed with the position and the age of its last checkpoint, by the clock of the server."""
    one = job()
    await submitted(link, keys, "q", one)
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w1")
    await queue.open()
    [claim] = await queue.claim()
    begun = await queue.begin(claim, ttl_s=60)
    assert begun is not None
    [[run]] = [listing.runs for listing in await listed(any_broker_url, keys, "q")]
    assert (run.checkpoint, run.checkpoint_age_s) == (None, None)
    writer = Bus(link, keys).publisher(
        one.run_id,
        1,
        LogLimits(max_bytes=1 << 20, open_ttl_s=60, closed_ttl_s=60),
        lambda _cause: None,
        begun.first_batch,
    )
    writer.put("text", "a")
    writer.put_checkpoint(b"{}")
    await writer.flush()
    writer.close(BusError("the test ends"))
    await queue.close()
    [[run]] = [listing.runs for listing in await listed(any_broker_url, keys, "q")]
    assert run.checkpoint == "1-3"
    assert run.checkpoint_age_s in range(30)


async def test_a_running_run_is_listed_with_its_progress(any_broker_url: str, link: Link, keys: Keys) -> None:
    """A running run is listed with its attempt, worker and events, and has the state cancelling after a cancel."""
    one = job()
    await submitted(link, keys, "q", one)
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w1")
    await queue.open()
    [claim] = await queue.claim()
    await queue.begin(claim, ttl_s=60)
    batch = encode_batch(1, 2, [encode_event("text", "a"), encode_event("text", "b")])
    await link.call_script("append", [keys.events(one.run_id)], "1-3", batch)
    [[run]] = [listing.runs for listing in await listed(any_broker_url, keys, "q")]
    assert (run.state, run.attempt, run.worker, run.events) == ("running", 1, "w1", 3)
    await RunStore(link, keys).cancel(one.run_id, ttl_s=60)
    [[run]] = [listing.runs for listing in await listed(any_broker_url, keys, "q")]
    assert run.state == "cancelling"
    await queue.finish(claim)
    await queue.close()


async def test_entries_without_a_run_are_listed_as_unknown(any_broker_url: str, link: Link, keys: Keys) -> None:
    """An entry that is not a job, and a job whose run has no hash, are listed as unknown."""
    lost = job()
    await link.call("XADD", keys.jobs("q"), "*", "job", "not a job")
    await link.call("XADD", keys.jobs("q"), "*", "job", lost.encode())
    [listing] = await listed(any_broker_url, keys, "q")
    assert [(run.run_id, run.state) for run in listing.runs] == [("", "unknown"), (lost.run_id, "unknown")]


async def test_the_server_state_has_workers_jobs_clock_and_pings(any_broker_url: str, link: Link, keys: Keys) -> None:
    """The server state counts live workers and outstanding jobs, and has the clock offset and sorted ping times."""
    await submitted(link, keys, "q", job(), job())
    queue = JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id="w1")
    await queue.open()
    async with QueueReader(Endpoint(any_broker_url), keys) as reader:
        assert await reader.queue("q") == QueueSummary(workers=1, outstanding=2)
        assert await reader.queue("nobody's") == QueueSummary(workers=0, outstanding=0)
    async with ServerState(one_server(Endpoint(any_broker_url))) as server:
        clock = await server.clock()
        assert abs(clock.offset_s) - clock.uncertainty_s < 2
        times_s = await server.ping_times_s()
        assert times_s == sorted(times_s)
    await queue.close()


async def test_a_probe_leaves_nothing_behind(any_broker_url: str, link: Link, keys: Keys) -> None:
    """Inside its context a probe is a running run with a log, and afterwards none of its keys exists."""
    probe = ProbeRun(Endpoint(any_broker_url), keys, owner="me")
    async with probe:
        await probe.write("a")
        info = await RunStore(link, keys).get_info(probe.run_id)
        assert info is not None
        assert (info.status, info.owner) == ("running", "me")
        for name in (keys.run(probe.run_id), keys.events(probe.run_id)):
            assert await link.call("TTL", name) in range(1, 61)  # so the keys expire if the process is killed
        assert await link.call("XLEN", keys.events(probe.run_id)) == 2
    assert await link.call("EXISTS", keys.run(probe.run_id), keys.events(probe.run_id)) == 0


async def test_an_unreachable_broker_is_reported(keys: Keys) -> None:
    """If nothing listens at the address, each query raises an error that says that Redis does not answer."""
    nowhere = Endpoint("redis://127.0.0.1:1")
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        await listed("redis://127.0.0.1:1", keys, "q")
    async with ServerState(nowhere) as server:
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            await server.ping_times_s()
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        async with ProbeRun(nowhere, keys, owner=""):
            pass
