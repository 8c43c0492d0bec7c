"""The link to the broker, with the bundled real server and with a fake broker."""

import asyncio

import pytest

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.keys import Keys
from agentstream.store.connection import exchange, silence
from agentstream.store.connection import server_link as link_module
from agentstream.store.scripts import SCRIPTS
from tests.fake_broker import (
    Command,
    CutError,
    FakeBroker,
    answer_normally,
    connected_link,
    connecting_link,
    in_time,
    message,
    reconnected,
)
from tests.helpers import TIMEOUT_S

# Commands and replies


async def test_replies_come_in_the_order_of_the_commands(broker_url: str, keys: Keys) -> None:
    """Commands that are sent without waiting each get their own reply, in order."""
    async with connected_link(broker_url) as link, in_time():
        replies = await asyncio.gather(*(link.call("INCR", keys.jobs("n")) for _ in range(1000)))
        assert replies == list(range(1, 1001))


async def test_an_error_reply_is_raised(broker_url: str) -> None:
    """A refused command raises BusError with the server's text, and the next command works."""
    async with connected_link(broker_url) as link, in_time():
        with pytest.raises(BusError, match="unknown command"):
            await link.call("NOSUCHCOMMAND")
        assert await link.call("ECHO", "still here") == b"still here"
        assert link.reconnects == 0


async def test_a_cancelled_command_is_not_retried(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a "not now" reply, a command whose caller was cancelled is not sent again."""
    monkeypatch.setattr(exchange, "RESEND_DELAY_S", 0.01)

    def answer(words: Command, connection: int) -> bytes | None:
        return b"-LOADING\r\n" if words[0] == b"SET" else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        cancelled, kept = (asyncio.create_task(link.call("SET", key, "value")) for key in ("cancelled", "kept"))
        await peer.until(lambda: len(peer.commands) >= 4)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await link.call("ECHO", "earlier commands have arrived")
        peer.received.clear()
        await peer.until(lambda: len(peer.commands) >= 3)
        assert {words[1] for words in peer.commands} == {b"kept"}
        kept.cancel()
        await asyncio.gather(kept, return_exceptions=True)


async def test_lost_scripts_are_loaded_again(broker_url: str, keys: Keys) -> None:
    """If the server has lost the scripts, the link loads them again, and the call succeeds."""
    async with connected_link(broker_url) as link, in_time():
        await link.call("SCRIPT", "FLUSH")
        assert await link.call_script("count_workers", [keys.workers("none")], 10) == 0
        loaded = await link.call("SCRIPT", "EXISTS", *(script.sha for script in SCRIPTS.values()))
        assert loaded == [1] * len(SCRIPTS)


async def test_a_failing_reply_handler_does_not_affect_others(
    broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a reply handler is logged, and later replies are still handled."""

    def fail(_reply: object) -> None:
        message = "broken on purpose"
        raise ValueError(message)

    async with connected_link(broker_url) as link, in_time():
        link.send("PING", on_reply=fail)
        assert await link.call("ECHO", "still here") == b"still here"
        assert link.reconnects == 0
    assert "broken on purpose" in caplog.text


# Broken connections


async def test_channels_are_subscribed_again_before_on_reconnect(broker_url: str, keys: Keys) -> None:
    """After a reconnect all channels are subscribed and confirmed before ``on_reconnect`` is called."""
    channel, got = keys.events("run").encode(), asyncio.Queue[bytes]()
    receivers = asyncio.Queue[int]()
    async with connected_link(broker_url) as link, connected_link(broker_url) as other, in_time():
        await link.subscribe(channel, got.put_nowait)

        def publish() -> None:
            other.send("PUBLISH", channel, "reconnected", on_reply=receivers.put_nowait)

        link.on_reconnect[publish] = None
        assert await other.call("CLIENT", "KILL", "ID", await link.call("CLIENT", "ID")) == 1
        assert await receivers.get() == 1
        assert await got.get() == b"reconnected"
        assert link.reconnects == 1
        assert link.connected


async def test_subscribing_without_a_connection_is_done_after_connecting(peer: FakeBroker) -> None:
    """A subscription that is made without a connection is done when the next connection has confirmed it."""
    port = peer.port
    await peer.close()
    async with connecting_link(f"redis://127.0.0.1:{port}") as link, in_time():
        got = asyncio.Queue[bytes]()
        subscribing = link.subscribe(b"channel", got.put_nowait)
        await peer.listen(port)
        await subscribing
        peer.send(message(b"channel", b"x"))
        assert await got.get() == b"x"


async def test_unanswered_commands_are_sent_again(peer: FakeBroker) -> None:
    """Commands without a reply when the connection is lost are sent again in order, and each gets one reply."""

    def answer(words: Command, connection: int) -> bytes | None:
        if connection == 1 and words[0] == b"EVALSHA" and SCRIPTS["probe"].sha not in words:
            raise CutError
        return answer_normally(words, connection)

    peer.answer = answer
    replies: list[object] = []
    async with connected_link(peer.url) as link, in_time():
        link.send_script("publish", ["{run}"], b"\x00binary\r\n", 7, on_reply=replies.append)
        link.send("SET", "key", "value", on_reply=replies.append)
        await link.call("ECHO", "last")
        expected = [
            [b"EVALSHA", SCRIPTS["publish"].sha, b"1", b"{run}", b"\x00binary\r\n", b"7"],
            [b"SET", b"key", b"value"],
            [b"ECHO", b"last"],
        ]
        assert [words for number, words in peer.received if number == 1 and words in expected] == expected[:1]
        assert [words for number, words in peer.received if number == 2 and words in expected] == expected
        assert replies == [b"OK", b"OK"]


async def test_answered_commands_are_not_sent_again(peer: FakeBroker) -> None:
    """After a reconnect the link does not repeat a command whose reply it received."""
    async with connected_link(peer.url) as link, in_time():
        await link.call("SET", "key", "value")
        reconnect = reconnected(link)
        peer.send(b"-ERR unasked\r\n")
        await reconnect.wait()
        await link.call("ECHO", "after")
        assert peer.commands == [[b"SET", b"key", b"value"], [b"ECHO", b"after"]]


async def test_a_call_cancelled_without_a_connection_is_never_sent(peer: FakeBroker) -> None:
    """A call that is cancelled while there is no connection is not sent by the next connection."""
    port = peer.port
    await peer.close()
    async with connecting_link(f"redis://127.0.0.1:{port}") as link, in_time():
        cancelled, kept = (asyncio.create_task(link.call("SET", key, "value")) for key in ("cancelled", "kept"))
        done, _ = await asyncio.wait({cancelled, kept}, timeout=0)
        assert not done
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await peer.listen(port)
        assert await kept == b"OK"
        assert await link.call("ECHO", "after") == b"OK"
        assert peer.commands == [[b"SET", b"kept", b"value"], [b"ECHO", b"after"]]


async def test_the_reply_of_a_cancelled_call_is_dropped(peer: FakeBroker) -> None:
    """The reply to a call that was cancelled after it was sent is dropped, and does not go to another call."""
    held: list[bytes] = []

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"HOLD":
            held.append(b"+held\r\n")
            return None
        return b"".join([*held, answer_normally(words, connection) or b""])

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        calling = asyncio.create_task(link.call("HOLD"))
        await peer.until(lambda: peer.commands == [[b"HOLD"]])
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        assert await link.call("SET", "key", "value") == b"OK"


async def test_a_frozen_peer_is_noticed(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server keeps the connection open but stops answering, the link makes a new connection."""
    monkeypatch.setattr(silence, "PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(silence, "PONG_DEADLINE_S", 0.1)
    frozen = False

    def answer(words: Command, connection: int) -> bytes | None:
        return None if frozen and connection == 1 else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        reconnect = reconnected(link)
        frozen = True
        calling = asyncio.create_task(link.call("SET", "key", "value"))
        await reconnect.wait()
        assert await calling == b"OK"
        assert link.reconnects == 1


async def test_a_silent_handshake_times_out(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server accepts a connection and does not answer, the link tries again until the server answers."""
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.1)
    peer.answer = lambda words, connection: None if connection == 1 else answer_normally(words, connection)
    async with connecting_link(peer.url) as link:
        await link.wait_ready(TIMEOUT_S)
        assert peer.connections == 2


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "cut"])
async def test_an_attempt_whose_second_connection_fails_leaves_none_open(
    peer: FakeBroker, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """With RESP2, if the connection for subscriptions fails, the one for commands is closed before the next attempt."""
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.1)

    def answer(words: Command, connection: int) -> bytes | None:
        if connection in {2, 4}:
            if silent:
                return None
            raise CutError
        return answer_normally(words, connection)

    peer.answer = answer
    async with connecting_link(f"{peer.url}?protocol=2") as link:
        await link.wait_ready(TIMEOUT_S)
        assert peer.connections >= 6  # more if a busy machine was too slow for an attempt
        await peer.until(lambda: peer.open_connections == 2)


async def test_a_link_that_is_closed_while_it_connects_leaves_no_connection_open(peer: FakeBroker) -> None:
    """With RESP2, a link that is closed between its two connections closes the first one, too."""
    peer.answer = lambda words, connection: None if connection == 2 else answer_normally(words, connection)
    async with connecting_link(f"{peer.url}?protocol=2"):
        await peer.until(lambda: peer.count(b"PING", 2) == 1)
    await peer.until(lambda: not peer.open_connections)


async def test_the_error_for_a_silent_server_has_a_cause(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server accepts connections and never answers, wait_ready raises an error with a cause."""
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.05)
    peer.answer = lambda _words, _connection: None
    async with connecting_link(peer.url) as link:
        with pytest.raises(BrokerUnavailable, match=r"cannot be reached within 0\.3 s: \S+"):
            await link.wait_ready(0.3)


async def test_a_connection_lost_before_the_pong_is_replaced_at_once(
    peer: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connection is lost between PING and pong, the link reconnects without waiting for the pong's deadline."""
    monkeypatch.setattr(silence, "PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(silence, "PONG_DEADLINE_S", 10 * TIMEOUT_S)

    def answer(words: Command, connection: int) -> bytes | None:
        if (connection, words) == (1, [b"PING"]) and peer.count(b"PING", 1) == 2:  # the first ends the handshake
            raise CutError
        return answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        await reconnected(link).wait()


async def test_a_refused_ping_counts_as_a_pong(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server refuses a PING, the link keeps the connection and continues to send PINGs."""
    monkeypatch.setattr(silence, "PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(silence, "PONG_DEADLINE_S", 0.1)
    frozen = False

    def answer(words: Command, connection: int) -> bytes | None:
        if frozen and connection == 1:
            return None
        if words == [b"PING"] and peer.count(b"PING", connection) > 1:  # the first ends the handshake
            return b"-NOPERM this user has no permissions to run the 'ping' command\r\n"
        return answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        await peer.until(lambda: peer.count(b"PING", 1) == 4)
        assert link.reconnects == 0
        reconnect = reconnected(link)
        frozen = True
        await reconnect.wait()


async def test_a_failing_reconnect_handler_does_not_affect_others(
    peer: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in an ``on_reconnect`` handler is logged, the other handlers are called, and the link works."""

    def fail() -> None:
        message = "broken on purpose"
        raise ValueError(message)

    async with connected_link(peer.url) as link, in_time():
        link.on_reconnect[fail] = None
        for times in (1, 2):
            reconnect = reconnected(link)
            peer.send(b"+unasked\r\n")
            await reconnect.wait()
            assert await link.call("SET", "key", "value") == b"OK"
            assert caplog.text.count("broken on purpose") == times


@pytest.mark.parametrize("unexpected", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+unasked\r\n"])
async def test_unexpected_bytes_end_the_connection(peer: FakeBroker, unexpected: bytes) -> None:
    """After bytes that are not RESP, or a reply to no command, the link makes a new connection."""
    async with connected_link(peer.url) as link, in_time():
        reconnect = reconnected(link)
        peer.send(unexpected)
        await reconnect.wait()
        assert await link.call("SET", "key", "value") == b"OK"
