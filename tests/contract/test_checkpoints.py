"""The contract of checkpoints and of continued attempts in the store, on fakeredis and real servers."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest

from agentstream.errors import BusError, Fenced, LogTrimmed, RunCancelled
from agentstream.protocol.events import RUN_CHECKPOINT, START, Cursor, decode_batch
from agentstream.protocol.jobs import Job, new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits, RunPublisher
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.server_link import ServerLink
from agentstream.store.queue import BegunAttempt, Claim, JobQueue
from agentstream.store.submission import JobSubmitter
from tests.contract.test_queue import claimed
from tests.helpers import TIMEOUT_S

LIMITS = LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=1 << 20)
STATE = b'{"turn":3}'
FIELDS = "checkpoint", "checkpoint_at", "state"


@pytest.fixture
def bus(link: Link, keys: Keys) -> Bus:
    return Bus(link, keys)


@pytest.fixture
async def run_id(link: Link, keys: Keys) -> str:
    """A run whose hash exists, as the front end creates it."""
    run_id = new_run_id()
    await link.call_script("create_run", [keys.run(run_id)], 100, "status", "running")
    return run_id


def publisher(bus: Bus, run_id: str, attempt: int = 1, limits: LogLimits = LIMITS) -> RunPublisher:
    return bus.publisher(run_id, attempt, limits, on_lost=lambda _: None)


async def hash_of(link: Link, keys: Keys, run_id: str) -> dict[str, bytes | None]:
    """Return the fields of the run's hash that hold its checkpoint."""
    return dict(zip(FIELDS, await link.call("HMGET", keys.run(run_id), *FIELDS), strict=True))


async def checkpointed(writer: RunPublisher, state: bytes = STATE) -> None:
    """Store a checkpoint, as an agent on the loop does."""
    assert not writer.put_checkpoint(state)
    async with asyncio.timeout(TIMEOUT_S):
        await writer.wait_for_room()


async def test_a_checkpoint_is_the_last_event_of_its_batch(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """A checkpoint ends its batch, so its position is an entry of the log, and later text comes in the next batch."""
    writer = publisher(bus, run_id)
    writer.put("text", "a")
    writer.put("text", "b")
    writer.put_checkpoint(STATE)
    writer.put("text", "c")
    await writer.flush()
    log = await link.call("XRANGE", keys.events(run_id), "-", "+")
    kinds = [[event.type for event in decode_batch(fields[1]).events()] for _, fields in log]
    assert kinds == [["text", "text", RUN_CHECKPOINT], ["text"]]
    assert log[0][0] == b"1-3"
    stored = await bus.last_checkpoint(run_id)
    assert stored == (Cursor(1, 3), STATE)
    assert [event.data for event in await bus.history(run_id, stored.position)] == ["c"]


async def test_a_checkpoint_is_stored_in_one_step_with_its_events(
    link: Link, bus: Bus, run_id: str, keys: Keys
) -> None:
    """If the broker refuses the batch of a checkpoint, it stores neither the events nor the state."""
    await link.call("SET", keys.events(run_id), "not a stream")
    writer = publisher(bus, run_id)
    writer.put("text", "a")
    writer.put_checkpoint(STATE)
    with pytest.raises(BusError, match="WRONGTYPE"):
        await writer.flush()
    with pytest.raises(RunCancelled, match="could not be stored"):
        await writer.wait_for_room()
    assert set((await hash_of(link, keys, run_id)).values()) == {None}


async def test_the_last_checkpoint_counts(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """Several checkpoints that wait together are stored in order, and the last one stays, with the time of storing."""
    writer = publisher(bus, run_id)
    for number in range(5):
        writer.put("text", str(number))
        writer.put_checkpoint(b"%d" % number)
    await writer.flush()
    assert await bus.last_checkpoint(run_id) == (Cursor(1, 10), b"4")
    fields = await hash_of(link, keys, run_id)
    assert fields["checkpoint"] == b"1-10"
    assert 0 <= time.time() - int(fields["checkpoint_at"] or 0) < TIMEOUT_S
    assert await link.call("TTL", keys.run(run_id)) > 0


async def test_a_thread_waits_until_its_checkpoint_is_stored(bus: Bus, run_id: str) -> None:
    """In a thread, a checkpoint is stored when the call returns, and states do not mix between threads."""
    writer = publisher(bus, run_id)

    def count(name: str) -> None:
        for number in range(50):
            writer.put("text", f"{name}{number}")
            assert writer.put_checkpoint(orjson.dumps([name, number]))
            assert writer.unflushed_bytes < 1000

    threads = [threading.Thread(target=count, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
    stored = await bus.last_checkpoint(run_id)
    assert stored is not None
    name, number = orjson.loads(stored.content)
    assert number == 49
    history = await bus.history(run_id)
    before = [event.data for event in history if event.type == "text" and event.seq < stored.position.seq]
    assert before.count(f"{name}49") == 1


async def test_an_older_attempt_stores_no_checkpoint(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """The checkpoint of a superseded attempt is refused with Fenced, and the newer state stays as it is."""
    old, new = publisher(bus, run_id, 1), publisher(bus, run_id, 2)
    await checkpointed(old, b'"old"')
    new.put("run_started", {})
    await checkpointed(new, b'"new"')
    before = await hash_of(link, keys, run_id)
    old.put("text", "zombie")
    old.put_checkpoint(b'"zombie"')
    with pytest.raises(Fenced):
        await old.flush()
    with pytest.raises(RunCancelled):
        await old.wait_for_room()
    with pytest.raises(RunCancelled):
        old.put_checkpoint(b'"later"')
    assert await hash_of(link, keys, run_id) == before
    assert await bus.last_checkpoint(run_id) == (Cursor(2, 2), b'"new"')


async def test_a_checkpoint_after_the_next_attempt_began_is_refused(
    link: Link, bus: Bus, run_id: str, keys: Keys
) -> None:
    """A checkpoint is refused as soon as a newer attempt has begun, even before that attempt stores anything else."""
    old = publisher(bus, run_id)
    await checkpointed(old, b'"old"')
    await begun_by(link, keys, run_id, attempt=2)
    old.put_checkpoint(b'"zombie"')
    with pytest.raises(Fenced):
        await old.flush()
    assert await bus.last_checkpoint(run_id) == (Cursor(1, 1), b'"old"')


async def begun_by(link: Link, keys: Keys, run_id: str, *, attempt: int) -> None:
    """Begin attempts until this one."""
    names = [keys.run(run_id), keys.events(run_id)]
    number = 0
    while number < attempt:
        number, *_ = await link.call_script("begin", names, "1-0", f"w{number}", 100, f"token {number}", 1)


async def test_a_checkpoint_sent_again_is_stored_once(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """If the reply to a checkpoint is lost, it is sent again: the log has it once, and a newer state stays."""
    names = [keys.events(run_id), keys.run(run_id)]
    writer = publisher(bus, run_id)
    writer.put("text", "a")
    await checkpointed(writer, b'"first"')
    [(entry_id, fields)] = await link.call("XRANGE", keys.events(run_id), "-", "+")
    first = "checkpoint", entry_id, "state", b'"first"'
    again = entry_id, fields[1], 0, "", entry_id, 0, *first
    assert await link.call_script("publish", names, *again) == b"DUPLICATE"
    await checkpointed(writer, b'"second"')
    for last in ("", entry_id):  # checked against the last entry, and not checked
        reply = await link.call_script("publish", names, entry_id, fields[1], 0, "", last, 0, *first)
        assert reply in (b"DUPLICATE", [b"LOST", b"1-3"])
    assert await bus.last_checkpoint(run_id) == (Cursor(1, 3), b'"second"')
    assert await link.call("XLEN", keys.events(run_id)) == 2


async def test_a_lost_checkpoint_is_stored_again_with_the_log(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """If the broker lost the log and the checkpoint, the publisher stores both again, at the same position."""
    writer = publisher(bus, run_id)
    for number in range(3):
        writer.put("text", str(number))
        await checkpointed(writer, b"%d" % number)
    writer.put("text", "after")
    await writer.flush()
    await link.call("DEL", keys.events(run_id))
    await link.call("HDEL", keys.run(run_id), *FIELDS)
    writer.put("text", "later")
    await writer.flush()
    assert await bus.last_checkpoint(run_id) == (Cursor(1, 6), b"2")
    history = await bus.history(run_id)
    assert [event.data for event in history if event.type == "text"] == ["0", "1", "2", "after", "later"]
    assert [event.seq for event in history] == list(range(1, 9))


@pytest.mark.one_server
async def test_an_older_checkpoint_is_replaced_after_a_loss(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """If the broker fell back to an older state, the publisher stores the lost end of the log and its checkpoint."""
    writer = publisher(bus, run_id)
    writer.put("text", "a")
    await checkpointed(writer, b'"old"')
    older = await link.call("DUMP", keys.events(run_id)), await hash_of(link, keys, run_id)
    writer.put("text", "b")
    await checkpointed(writer, b'"new"')
    await link.call("RESTORE", keys.events(run_id), 0, older[0], "REPLACE")
    for name, value in older[1].items():
        await link.call("HSET", keys.run(run_id), name, value or b"")
    assert isinstance(link, ServerLink)
    link._reconnects += 1  # after a reconnect the publisher checks the end of the log
    writer.put("text", "c")
    await writer.flush()
    stored = await bus.last_checkpoint(run_id)
    assert stored == (Cursor(1, 4), b'"new"')
    assert [event.data for event in await bus.history(run_id, stored.position)] == ["c"]


async def test_no_hash_is_created_for_a_checkpoint(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """If the hash of the run is gone, a checkpoint does not create it again, because it would have no TTL."""
    writer = publisher(bus, run_id)
    await link.call("DEL", keys.run(run_id))
    await checkpointed(writer)
    assert await link.call("EXISTS", keys.run(run_id)) == 0
    assert await bus.last_checkpoint(run_id) is None
    assert [event.type for event in await bus.history(run_id)] == [RUN_CHECKPOINT]


@pytest.mark.parametrize("attempt", [1, 2])
async def test_the_state_is_emptied_at_the_end(link: Link, bus: Bus, run_id: str, keys: Keys, attempt: int) -> None:
    """The terminal event empties the state, also if an earlier attempt stored it, and the position stays."""
    await checkpointed(publisher(bus, run_id, 1))
    writer = publisher(bus, run_id, attempt + 1)
    if attempt == 1:
        await checkpointed(writer)
    writer.put("run_completed", {})
    await writer.flush()
    fields = await hash_of(link, keys, run_id)
    assert fields["state"] == b""
    assert fields["checkpoint"]
    assert await bus.last_checkpoint(run_id) is None


async def test_a_run_without_checkpoints_has_no_fields_of_them(link: Link, bus: Bus, run_id: str, keys: Keys) -> None:
    """A run that makes no checkpoint stores none of their fields, not even at its end."""
    writer = publisher(bus, run_id)
    writer.put("text", "a")
    writer.put("run_completed", {})
    await writer.flush()
    assert set((await hash_of(link, keys, run_id)).values()) == {None}


async def test_a_log_trimmed_behind_the_checkpoint_is_enough(bus: Bus, run_id: str) -> None:
    """The events after a checkpoint can be read from a trimmed log, and LogTrimmed is raised for earlier positions."""
    writer = publisher(bus, run_id, limits=LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=64 << 10))
    for number in range(300):
        writer.put("text", "x" * 1000)
        await writer.flush()
        if number == 280:
            await checkpointed(writer)
    stored = await bus.last_checkpoint(run_id)
    assert stored is not None
    assert len(await bus.history(run_id, stored.position)) == 19
    for early in (START, Cursor(1, 5)):
        with pytest.raises(LogTrimmed):
            await bus.history(run_id, early)


@pytest.mark.parametrize("after_checkpoint", [False, True])
async def test_a_log_without_an_earlier_attempt_is_trimmed(
    link: Link,
    bus: Bus,
    run_id: str,
    keys: Keys,
    after_checkpoint: bool,
) -> None:
    """If the log lost all events of an attempt in the middle, its history is refused instead of read with a gap."""
    first = publisher(bus, run_id, 1)
    first.put("text", "seen")
    await first.flush()
    position = START
    if after_checkpoint:
        await checkpointed(first)
        position = Cursor(1, 2)
    await begun_by(link, keys, run_id, attempt=2)
    second = publisher(bus, run_id, 2)
    await link.call(
        "XDEL" if after_checkpoint else "XTRIM", keys.events(run_id), *(["2-1"] if after_checkpoint else ["MAXLEN", 0])
    )
    third = publisher(bus, run_id, 3)
    third.put("run_started", {})
    third.put("text", "new")
    await third.flush()
    second.close(BusError("lost"))
    with pytest.raises(LogTrimmed):
        await bus.history(run_id, position)


# -- the queue ------------------------------------------------------------------------------------------


@pytest.fixture
async def queues(any_broker_url: str, link: Link, keys: Keys) -> AsyncIterator[list[JobQueue]]:
    """Two workers of one queue."""
    names = "w1", "w2"
    queues = [JobQueue(Endpoint(any_broker_url), link, keys, "q", worker_id=name) for name in names]
    for queue in queues:
        await queue.open()
    yield queues
    for queue in queues:
        await queue.close()


async def submitted(link: Link, keys: Keys, queue: JobQueue) -> Claim:
    """Return the claim of a new job."""
    job = Job(run_id=new_run_id(), request={"model": "m"}, created=1, start_by=time.time() + 60, owner="me")
    await JobSubmitter(link, keys, "q", max_queued=3).submit(job, ttl_s=60)
    return await claimed(queue)


async def begun_attempt(queue: JobQueue, claim: Claim, *, resumable: bool) -> BegunAttempt:
    begun = await queue.begin(claim, ttl_s=60, resumable=resumable)
    assert begun is not None
    return begun


async def test_only_a_continued_attempt_says_that_it_resumes(
    link: Link, bus: Bus, keys: Keys, queues: list[JobQueue]
) -> None:
    """The run_started of a later attempt says that it resumes if its agent can; the worker knows the same event."""
    claim = await submitted(link, keys, queues[0])
    for attempt, resumable in enumerate((True, True, False, True), 1):
        begun = await begun_attempt(queues[0], claim, resumable=resumable)
        started = (await bus.history(claim.job.run_id))[-1]
        assert (started.attempt, started.type) == (attempt, "run_started")
        assert started.data == {"worker": "w1", **({"resumes": True} if resumable and attempt > 1 else {})}
        assert decode_batch(begun.first_batch).events() == [started]
        assert (begun.silent_s > 0) <= (attempt > 1)


async def test_the_pause_is_measured_from_the_last_renewal(link: Link, keys: Keys, queues: list[JobQueue]) -> None:
    """A new attempt learns the time since the earlier worker began or reported progress, by the server's clock."""
    claim = await submitted(link, keys, queues[0])
    first = await begun_attempt(queues[0], claim, resumable=True)
    assert first.silent_s == 0
    seen = int(await link.call("HGET", keys.run(claim.job.run_id), "seen"))
    await link.call("HSET", keys.run(claim.job.run_id), "seen", seen - 5000)
    second = await begun_attempt(queues[1], replace(claim, new=False), resumable=True)
    assert 5 <= second.silent_s < 5 + TIMEOUT_S
    await link.call("HSET", keys.run(claim.job.run_id), "seen", seen - 5000)
    await queues[1].report_progress([(claim.job.run_id, "agent", 3)])
    assert int(await link.call("HGET", keys.run(claim.job.run_id), "seen")) >= seen


async def test_a_hand_back_tells_the_other_workers(
    link: Link, other_link: Link, keys: Keys, queues: list[JobQueue]
) -> None:
    """A hand-back sends a message to the workers of the queue, and the job can be taken over at once."""
    claim = await submitted(link, keys, queues[0])
    await begun_attempt(queues[0], claim, resumable=True)
    told: asyncio.Queue[bytes] = asyncio.Queue()
    await other_link.subscribe(keys.handed_back("q").encode(), told.put_nowait, everywhere=True)
    await other_link.subscribe(
        keys.handed_back("other").encode(), lambda _: told.put_nowait(b"another queue"), everywhere=True
    )
    await queues[0].hand_back(claim)
    async with asyncio.timeout(TIMEOUT_S):
        assert await told.get() == claim.entry_id.encode()
    taken = await queues[1].reclaim(3600)
    assert taken is not None
    assert taken.entry_id == claim.entry_id
    begun = await begun_attempt(queues[1], taken, resumable=True)
    assert (begun.attempt, begun.hand_backs) == (2, 1)


async def test_a_worker_that_lost_the_job_cannot_hand_it_back(
    link: Link, other_link: Link, keys: Keys, queues: list[JobQueue]
) -> None:
    """A hand-back by a worker that no longer holds the job takes it from nobody, and sends no message."""
    claim = await submitted(link, keys, queues[0])
    await begun_attempt(queues[0], claim, resumable=True)
    taken = await queues[1].reclaim(0)
    assert taken is not None
    await begun_attempt(queues[1], taken, resumable=True)
    told: asyncio.Queue[bytes] = asyncio.Queue()
    await other_link.subscribe(keys.handed_back("q").encode(), told.put_nowait, everywhere=True)
    await queues[0].hand_back(claim)
    await other_link.call("PUBLISH", keys.handed_back("q"), "the next message")
    async with asyncio.timeout(TIMEOUT_S):
        assert await told.get() == b"the next message"
    assert await queues[0].reclaim(3600) is None
    assert await link.call("HGET", keys.run(claim.job.run_id), "handed_back") is None
