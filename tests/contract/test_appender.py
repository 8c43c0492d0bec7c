"""The appender, which stores the batches of several runs with one command, on fakeredis and real servers."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from agentstream.errors import Fenced
from agentstream.protocol.events import encode_batch, encode_event
from agentstream.protocol.jobs import new_run_id
from agentstream.protocol.keys import Keys
from agentstream.store.bus import appender
from agentstream.store.bus.appender import FULL_BATCHES, MAX_RUNS
from agentstream.store.bus.bus import Bus
from agentstream.store.bus.publisher import LogLimits, RunPublisher
from agentstream.store.connection.link import Link
from agentstream.store.connection.server_link import ServerLink
from tests.helpers import TIMEOUT_S

LIMITS = LogLimits(open_ttl_s=100, closed_ttl_s=10, max_bytes=1 << 20)


@pytest.fixture
def bus(link: Link, keys: Keys) -> Bus:
    return Bus(link, keys)


async def begun_runs(bus: Bus, count: int) -> dict[str, RunPublisher]:
    """Return publishers whose logs hold one event, so that later batches go through the appender."""
    runs = {}
    for _ in range(count):
        run_id = new_run_id()
        runs[run_id] = bus.publisher(run_id, 1, LIMITS, on_lost=lambda _: None)
        runs[run_id].put("text", "a")
    await flush(runs)
    return runs


async def flush(runs: dict[str, RunPublisher]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(run.flush() for run in runs.values()))


async def texts_of(bus: Bus, run_id: str) -> list[str]:
    return [event.data for event in await bus.history(run_id)]


@contextlib.contextmanager
def scripts_sent(link: Link, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Record which scripts are sent, and with how many keys."""
    sent: list[tuple[str, int]] = []
    send_script = link.send_script

    def record(name: str, keys: list[str], *args: object, **kwargs: object) -> object:
        sent.append((name, len(keys)))
        return send_script(name, keys, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(link, "send_script", record)
        yield sent


@pytest.mark.parametrize("count", [1, 3, MAX_RUNS, MAX_RUNS + 1])
@pytest.mark.one_server
async def test_runs_of_one_turn_share_a_command(
    link: Link, bus: Bus, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Batches of several runs in one turn are stored by one command, or by several if there are more than MAX_RUNS."""
    runs = await begun_runs(bus, count)
    with scripts_sent(link, monkeypatch) as sent:
        for run in runs.values():
            run.put("text", "b")
            run.put("text", "c")
        await flush(runs)
    whole, rest = divmod(count, MAX_RUNS)
    assert sent == [("append", MAX_RUNS)] * whole + [("append", rest)] * bool(rest)
    for run_id in runs:
        assert await texts_of(bus, run_id) == ["a", "b", "c"]


async def write_in_turns(runs: dict[str, RunPublisher]) -> None:
    """Let each run write a text in its own turn of the event loop."""
    for run in runs.values():
        run.put("text", "b")
        await asyncio.sleep(0.001)


@pytest.mark.one_server
async def test_texts_of_busy_runs_gather(link: Link, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """While many runs write in different turns of the event loop, their batches share commands."""
    bus = Bus(link, keys, gather_s=0.1)
    runs = await begun_runs(bus, 10)
    with scripts_sent(link, monkeypatch) as sent:
        async with asyncio.timeout(TIMEOUT_S):
            while max((count for _, count in sent), default=0) <= 1:
                await write_in_turns(runs)
        await flush(runs)
    for run_id in runs:
        assert set("".join(await texts_of(bus, run_id))) == {"a", "b"}


@pytest.mark.one_server  # a new connection to a server of a cluster makes publishers verify their logs first
async def test_texts_do_not_gather_if_it_is_off(bus: Bus, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time to gather, every text is sent in the turn of the event loop in which it was written."""
    runs = await begun_runs(bus, 10)
    with scripts_sent(link, monkeypatch) as sent:
        for _ in range(5):
            for run in runs.values():
                run.put("text", "b")
                await asyncio.sleep(0)
                assert len(sent) == 1
                await run.flush()
                sent.clear()


@pytest.mark.parametrize("cause", ["event", "event of another run", "event in a thread", "silent run", "many runs"])
@pytest.mark.one_server
async def test_gathering_ends_early(link: Link, keys: Keys, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    """An event that is no text, the first text of a silent run and a full command are sent at once, with all texts."""
    bus = Bus(link, keys, gather_s=100 * TIMEOUT_S)
    runs = await begun_runs(bus, FULL_BATCHES)
    first, second, *_ = runs.values()
    bus._appender._busy = True
    monkeypatch.setattr(appender, "SILENT_S", 100 * TIMEOUT_S)
    with scripts_sent(link, monkeypatch) as sent:
        first.put("text", "b")
        await asyncio.sleep(0.01)
        assert sent == []
        if cause == "event":
            first.put("agent_turn_start", {})
        elif cause == "event of another run":
            second.put("agent_turn_start", {})
        elif cause == "event in a thread":
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.to_thread(first.put, "tool_call_start", {"tool": "t"})
        elif cause == "silent run":
            second.sent_at_s = -200 * TIMEOUT_S
            second.put("text", "b")
        else:
            await write_in_turns(runs)
        await flush(runs)
    assert len(sent) == 1


async def test_a_refused_append_does_not_affect_others(link: Link, bus: Bus, keys: Keys) -> None:
    """One command stores a batch, ends a fenced run, restores a lost log, and does not store a batch twice."""
    runs = await begun_runs(bus, 4)
    fine, fenced, lost, duplicate = runs
    newer = bus.publisher(fenced, 2, LIMITS, on_lost=lambda _: None)
    newer.put("text", "newer")
    await flush({fenced: newer})
    await link.call("DEL", keys.events(lost))
    batch = encode_batch(1, 2, [encode_event("text", "b")])
    await link.call("XADD", keys.events(duplicate), "1-2", "b", batch)
    for run in runs.values():
        run.put("text", "b")
    with pytest.raises(Fenced):
        await flush({fenced: runs.pop(fenced)})
    await flush(runs)
    for run_id in (fine, lost, duplicate):
        assert await texts_of(bus, run_id) == ["a", "b"]
    assert await texts_of(bus, fenced) == ["a", "newer"]
    # Three refused batches, and both batches of the lost log. The fine one was stored by the first command.
    assert bus._appender.counts.retries == 5


@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.one_server
async def test_an_append_whose_reply_was_lost_is_stored_once(
    link: Link, other_link: Link, bus: Bus, keys: Keys, emptied: bool
) -> None:
    """If the reply to an append is lost, all batches are stored once, even if the broker lost the logs too."""
    assert isinstance(link, ServerLink)
    runs = await begun_runs(bus, 3)
    for run in runs.values():
        run.put("text", "b")
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.sleep(0)
        assert [command.repack is not None for command in link._pending] == [True]
        assert link._command_connection is not None
        link._command_connection.on_reply = lambda _reply: None
        while any([await other_link.call("XLEN", keys.events(run_id)) != 2 for run_id in runs]):  # noqa: ASYNC110 -- the broker stores them
            await asyncio.sleep(0.005)
        if emptied:
            await other_link.call("DEL", *(keys.events(run_id) for run_id in runs))
        link._command_connection.abort()
    for run in runs.values():
        run.put("text", "c")
    await flush(runs)
    assert link.reconnects == 1
    for run_id in runs:
        assert await texts_of(bus, run_id) == ["a", "b", "c"]
