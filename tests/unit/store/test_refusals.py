"""Commands that the broker refuses for a while, or because it is a replica."""

import asyncio

import pytest

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.store.connection import silence
from tests.fake_broker import (
    Command,
    FakeBroker,
    answer_normally,
    connected_link,
    connecting_link,
    failed,
    in_time,
    reconnected,
)


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "BUSY Redis is busy running a script.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
        "ERR Error running script (call to f_1): @user_script:4: @user_script: 4: -OOM command not allowed.",  # 6.2
    ],
    ids=lambda refusal: refusal.partition(" ")[0],
)
async def test_a_not_now_reply_is_retried(peer: FakeBroker, refusal: str) -> None:
    """After a reply that means "not now" the link sends the same command again until it succeeds."""
    refusals = iter([refusal] * 2)

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"SET" and (text := next(refusals, None)):
            return f"-{text}\r\n".encode()
        return answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        assert await link.call("SET", "key", "value") == b"OK"
        assert peer.commands == [[b"SET", b"key", b"value"]] * 3
        assert link.reconnects == 0


NOT_PRIMARY = [
    "READONLY You can't write against a read only replica.",
    "READONLY You can't write against a read only replica. script: abc, on @user_script:3.",
    "ERR Error running script (call to f_1): @user_script:4: @user_script: 4: -READONLY You can't write.",  # Redis 6.2
    "MASTERDOWN ServerLink with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
]


@pytest.mark.parametrize("refusal", NOT_PRIMARY)
async def test_a_server_that_is_no_longer_the_primary_is_left(peer: FakeBroker, refusal: str) -> None:
    """After a reply that only a replica sends, the link connects anew and sends its commands there, in order."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"SET" and connection == 1:
            return f"-{refusal}\r\n".encode()
        return answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        replies = await asyncio.gather(*(link.call("SET", key, "1") for key in "ab"))
        assert replies == [b"OK", b"OK"]
        assert [words[1] for number, words in peer.received if number == 2 and words[0] == b"SET"] == [b"a", b"b"]
        assert link.reconnects == 1


async def test_an_idle_link_finds_out_that_its_server_is_a_replica(
    peer: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle link disconnects from a server that refuses writes, because it tests a write with each PING."""
    monkeypatch.setattr(silence, "PING_INTERVAL_S", 0.02)
    demoted = False

    def answer(words: Command, connection: int) -> bytes | None:
        if demoted and connection == 1 and words[0] == b"EVALSHA":
            return f"-{NOT_PRIMARY[0]}\r\n".encode()
        return answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        reconnect = reconnected(link)
        demoted = True
        await reconnect.wait()


async def test_a_replica_is_refused_with_its_words(peer: FakeBroker) -> None:
    """The link does not connect to a server that refuses writes, says so in its words, and tries again with pauses."""
    replica = True

    def answer(words: Command, connection: int) -> bytes | None:
        if replica and words[0] == b"EVALSHA":
            return f"-{NOT_PRIMARY[0]}\r\n".encode()
        return answer_normally(words, connection)

    peer.answer = answer
    async with connecting_link(peer.url) as link, in_time():
        await failed(link)
        assert not link.connected
        assert link.refusal == "READONLY You can't write against a read only replica"
        with pytest.raises(BrokerUnavailable, match=r"READONLY .* \(.*REDIS_URL must lead to the primary\)"):
            await link.wait_ready(0)
        calling = asyncio.create_task(link.call("SET", "key", "value"))
        replica = False
        assert await calling == b"OK"
        assert link.connected


async def test_full_memory_does_not_break_the_link(peer: FakeBroker) -> None:
    """A server without memory is connected, a proof of writes fails at once with its words, and reads still work."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] in {b"EVALSHA", b"SET"}:
            return b"-OOM command not allowed when used memory > 'maxmemory'. script: abc, on @user_script:3.\r\n"
        return answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        assert link.unanswered(5) == "Redis did not answer within 5 s"
        with pytest.raises(BusError, match=r"^OOM command not allowed when used memory > 'maxmemory'$"):
            await link.prove_writable()
        assert await link.call("GET", "key") == b"OK"
        writing = asyncio.create_task(link.call("SET", "key", "value"))
        await peer.until(lambda: [b"SET", b"key", b"value"] in peer.commands)
        await link.call("GET", "key")  # its reply comes after the refusal
        assert link.unanswered(5) == "Redis refuses: OOM command not allowed when used memory > 'maxmemory'"
        writing.cancel()
