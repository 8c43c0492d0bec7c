"""The link to the broker: over the bundled real server, and over a peer whose every answer a test decides."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.keys import Keys
from agentstream.store.connection import link as link_module
from agentstream.store.scripts import SCRIPTS
from tests.fake_broker import (
    Command,
    CutError,
    FakeBroker,
    answer_normally,
    connected_link,
    connecting_link,
    fake_broker,
    in_time,
    message,
    push,
    reconnected,
)
from tests.helpers import TIMEOUT_S


@pytest.fixture
async def peer() -> AsyncIterator[FakeBroker]:
    """A peer in good health."""
    async with fake_broker() as peer:
        yield peer


# Commands and replies


async def test_replies_come_in_the_order_of_the_commands(broker_url: str, keys: Keys) -> None:
    """Commands sent without waiting are answered each with its own reply, in order."""
    async with connected_link(broker_url) as link, in_time():
        replies = await asyncio.gather(*(link.call("INCR", keys.jobs("n")) for _ in range(1000)))
        assert replies == list(range(1, 1001))


async def test_an_error_reply_is_raised(broker_url: str) -> None:
    """A refused command raises BusError in the server's words, and the next one works."""
    async with connected_link(broker_url) as link, in_time():
        with pytest.raises(BusError, match="unknown command"):
            await link.call("NOSUCHCOMMAND")
        assert await link.call("ECHO", "still here") == b"still here"
        assert link.reconnects == 0


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "BUSY Redis is busy running a script.",
        "OOM command not allowed when used memory > 'maxmemory'.",
    ],
    ids=lambda refusal: refusal.partition(" ")[0],
)
async def test_not_now_is_waited_out(peer: FakeBroker, refusal: str) -> None:
    """A server that cannot just now is asked again, with the same command, until it can."""
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


async def test_a_command_given_up_during_a_wait_is_not_sent_again(
    peer: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its caller has gone, a command that was told "not now" is forgotten."""
    monkeypatch.setattr(link_module, "RESEND_DELAY_S", 0.01)

    def answer(words: Command, connection: int) -> bytes | None:
        return b"-LOADING\r\n" if words[0] == b"SET" else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        given_up, kept = (asyncio.create_task(link.call("SET", key, "value")) for key in ("given up", "kept"))
        await peer.until(lambda: len(peer.commands) >= 4)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await link.call("ECHO", "what was under way has come by now")
        peer.received.clear()
        await peer.until(lambda: len(peer.commands) >= 3)
        assert {words[1] for words in peer.commands} == {b"kept"}
        kept.cancel()
        await asyncio.gather(kept, return_exceptions=True)


async def test_forgotten_scripts_are_loaded_again(broker_url: str, keys: Keys) -> None:
    """A server that has lost our scripts is given them, and the call succeeds as if nothing had been."""
    async with connected_link(broker_url) as link, in_time():
        await link.call("SCRIPT", "FLUSH")
        assert await link.call_script("count_workers", [keys.workers("none")], 10) == 0
        known = await link.call("SCRIPT", "EXISTS", *(script.sha for script in SCRIPTS.values()))
        assert known == [1] * len(SCRIPTS)


async def test_a_failing_reply_handler_harms_nobody_else(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a reply handler raises is logged; the replies behind it are still handled."""

    def fail(_reply: object) -> None:
        message = "broken on purpose"
        raise ValueError(message)

    async with connected_link(broker_url) as link, in_time():
        link.send("PING", on_reply=fail)
        assert await link.call("ECHO", "still here") == b"still here"
        assert link.reconnects == 0
    assert "broken on purpose" in caplog.text


# Channels


async def test_subscribed_means_confirmed(broker_url: str, keys: Keys) -> None:
    """Once subscribe has returned, the server counts us among the receivers."""
    channel, got = keys.events("run").encode(), asyncio.Queue[bytes]()
    async with connected_link(broker_url) as link, connected_link(broker_url) as other, in_time():
        await link.subscribe(channel, got.put_nowait)
        assert await other.call("PUBLISH", channel, "first") == 1
        assert await got.get() == b"first"
        link.unsubscribe(channel, got.put_nowait)
        await link.call("PING")
        assert await other.call("PUBLISH", channel, "second") == 0


async def test_subscribe_waits_for_the_confirmation(peer: FakeBroker) -> None:
    """As long as the server has not confirmed, subscribe does not return."""

    def answer(words: Command, connection: int) -> bytes | None:
        return None if words[0] == b"SUBSCRIBE" else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        subscribing = link.subscribe(b"channel", lambda _: None)
        await peer.until(lambda: peer.count(b"SUBSCRIBE", 1) == 1)
        assert await link.call("SET", "key", "value") == b"OK"
        assert not subscribing.done()
        peer.send(push(b"subscribe", b"channel", b":1\r\n"))
        await subscribing


async def test_a_failing_message_handler_harms_nobody_else(
    broker_url: str, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """What a message handler raises is logged; the channel's other handlers and later messages go on."""
    channel, got = keys.events("run").encode(), asyncio.Queue[bytes]()

    def fail(payload: bytes) -> None:
        raise ValueError(payload)

    async with connected_link(broker_url) as link, in_time():
        await link.subscribe(channel, fail)
        await link.subscribe(channel, got.put_nowait)
        for payload in ("first", "second"):
            await link.call("PUBLISH", channel, payload)
        assert [await got.get(), await got.get()] == [b"first", b"second"]
        assert link.reconnects == 0
    assert caplog.text.count("a message handler failed") == 2


async def test_a_channel_is_left_with_its_last_handler(broker_url: str, keys: Keys) -> None:
    """One handler leaving a channel does not silence the other."""
    channel, gone, stays = keys.events("run").encode(), asyncio.Queue[bytes](), asyncio.Queue[bytes]()
    async with connected_link(broker_url) as link, in_time():
        gone_handler, stays_handler = gone.put_nowait, stays.put_nowait
        await link.subscribe(channel, gone_handler)
        await link.subscribe(channel, stays_handler)
        link.unsubscribe(channel, gone_handler)
        link.unsubscribe(channel, gone_handler)
        assert await link.call("PUBLISH", channel, "x") == 1
        assert await stays.get() == b"x"
        assert gone.empty()


async def test_three_handlers_of_a_channel_are_told_but_the_one_that_left(broker_url: str, keys: Keys) -> None:
    """Of three handlers any one may leave, first, middle or last: the other two get every message once."""
    for leaves in range(3):
        channel = keys.events(f"run-{leaves}").encode()
        got: list[list[bytes]] = [[], [], []]
        handlers = [told.append for told in got]
        async with connected_link(broker_url) as link, in_time():
            for handler in handlers:
                await link.subscribe(channel, handler)
            await link.call("PUBLISH", channel, "all")
            link.unsubscribe(channel, handlers[leaves])
            assert await link.call("PUBLISH", channel, "two") == 1
            await link.call("PING")
            assert got == [[b"all"] if number == leaves else [b"all", b"two"] for number in range(3)]
            for handler in handlers:
                link.unsubscribe(channel, handler)
            assert await link.call("PUBLISH", channel, "none") == 0


async def test_what_is_left_in_the_turn_it_was_asked_for_is_left(peer: FakeBroker) -> None:
    """An unsubscribe never overtakes its subscribe: no channel stays subscribed for nobody."""
    async with connected_link(peer.url) as link, in_time():
        handler = asyncio.Queue[bytes]().put_nowait
        await link.call("ECHO", "nothing is on its way")
        first = link.subscribe(b"channel", handler)
        link.unsubscribe(b"channel", handler)
        await link.call("ECHO", "all was sent")
        await first
        asked = [words[0] for _, words in peer.received if b"channel" in words]
        assert asked == [b"SUBSCRIBE", b"UNSUBSCRIBE"]


async def test_each_subscription_has_a_confirmation_of_its_own(peer: FakeBroker) -> None:
    """A channel left and asked for again counts as subscribed when the second time is confirmed, not the first."""

    def answer(words: Command, connection: int) -> bytes | None:
        return None if words[0] == b"SUBSCRIBE" else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        handler = asyncio.Queue[bytes]().put_nowait
        link.subscribe(b"channel", handler)
        link.unsubscribe(b"channel", handler)
        second = link.subscribe(b"channel", handler)
        await peer.until(lambda: peer.count(b"SUBSCRIBE", 1) == 2)
        peer.send(push(b"subscribe", b"channel", b":1\r\n"))
        await link.call("ECHO", "the first is confirmed")
        assert not second.done()
        peer.send(push(b"subscribe", b"channel", b":1\r\n"))
        await second


async def test_a_channel_left_while_channels_are_renewed_does_not_end_the_link(peer: FakeBroker) -> None:
    """A client that goes while a reconnect awaits the confirmation of its channel leaves the link whole."""

    def answer(words: Command, connection: int) -> bytes | None:
        return None if words[0] == b"SUBSCRIBE" and connection == 2 else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        stays, goes = asyncio.Queue[bytes](), asyncio.Queue[bytes]()
        goes_handler = goes.put_nowait
        await link.subscribe(b"stays", stays.put_nowait)
        await link.subscribe(b"goes", goes_handler)
        peer.send(b"-ERR unasked\r\n")
        await peer.until(lambda: peer.count(b"SUBSCRIBE", 2) == 1)
        link.unsubscribe(b"goes", goes_handler)
        told = reconnected(link)
        peer.send(push(b"subscribe", b"stays", b":1\r\n") + push(b"subscribe", b"goes", b":2\r\n"))
        await told.wait()
        peer.send(message(b"stays", b"x") + message(b"goes", b"y"))
        assert await stays.get() == b"x"
        assert await link.call("SET", "key", "value") == b"OK"
        assert goes.empty()


async def test_without_resp3_there_are_two_connections(broker_url: str, keys: Keys) -> None:
    """With protocol=2 in the URL messages come on a connection of their own, and commands go on working."""
    channel, got = keys.events("run").encode(), asyncio.Queue[bytes]()
    async with connected_link(f"{broker_url}?protocol=2") as link, in_time():
        await link.subscribe(channel, got.put_nowait)
        assert await link.call("PUBLISH", channel, "x") == 1
        assert await got.get() == b"x"
        assert b"resp=2" in await link.call("CLIENT", "INFO")


# Broken connections


async def test_channels_are_back_before_reconnect_is_told(broker_url: str, keys: Keys) -> None:
    """After a cut every channel is subscribed and confirmed again before anybody hears of the reconnect."""
    channel, got = keys.events("run").encode(), asyncio.Queue[bytes]()
    receivers = asyncio.Queue[int]()
    async with connected_link(broker_url) as link, connected_link(broker_url) as other, in_time():
        await link.subscribe(channel, got.put_nowait)

        def tell() -> None:
            other.send("PUBLISH", channel, "told", on_reply=receivers.put_nowait)

        link.on_reconnect[tell] = None
        assert await other.call("CLIENT", "KILL", "ID", await link.call("CLIENT", "ID")) == 1
        assert await receivers.get() == 1
        assert await got.get() == b"told"
        assert link.reconnects == 1
        assert link.connected


async def test_subscribing_while_away_is_confirmed_by_the_reconnect(peer: FakeBroker) -> None:
    """A subscription made without a connection returns once the connection has brought it."""
    port = peer.port
    await peer.close()
    async with connecting_link(f"redis://127.0.0.1:{port}") as link, in_time():
        got = asyncio.Queue[bytes]()
        subscribing = link.subscribe(b"channel", got.put_nowait)
        await peer.listen(port)
        await subscribing
        peer.send(message(b"channel", b"x"))
        assert await got.get() == b"x"


async def test_a_lost_reply_means_the_same_bytes_again(peer: FakeBroker) -> None:
    """Commands without an answer when the connection broke are sent again, whole and in order, and answered once."""

    def answer(words: Command, connection: int) -> bytes | None:
        if connection == 1 and words[0] == b"EVALSHA":
            raise CutError
        return answer_normally(words, connection)

    peer.answer = answer
    replies: list[object] = []
    async with connected_link(peer.url) as link, in_time():
        link.send_script("publish", ["{run}"], b"\x00binary\r\n", 7, on_reply=replies.append)
        link.send("SET", "behind", "it", on_reply=replies.append)
        await link.call("ECHO", "last")
        expected = [
            [b"EVALSHA", SCRIPTS["publish"].sha, b"1", b"{run}", b"\x00binary\r\n", b"7"],
            [b"SET", b"behind", b"it"],
            [b"ECHO", b"last"],
        ]
        assert [words for number, words in peer.received if number == 1 and words in expected] == expected[:1]
        assert [words for number, words in peer.received if number == 2 and words in expected] == expected
        assert replies == [b"OK", b"OK"]


async def test_what_was_answered_is_not_sent_again(peer: FakeBroker) -> None:
    """A reconnect repeats no command whose reply had come."""
    async with connected_link(peer.url) as link, in_time():
        await link.call("SET", "key", "value")
        told = reconnected(link)
        peer.send(b"-ERR unasked\r\n")
        await told.wait()
        await link.call("ECHO", "after")
        assert peer.commands == [[b"SET", b"key", b"value"], [b"ECHO", b"after"]]


async def test_a_call_given_up_while_away_is_never_sent(peer: FakeBroker) -> None:
    """A call cancelled while there is no connection does not reach the server when there is one again."""
    port = peer.port
    await peer.close()
    async with connecting_link(f"redis://127.0.0.1:{port}") as link, in_time():
        given_up, kept = (asyncio.create_task(link.call("SET", key, "value")) for key in ("given up", "kept"))
        done, _ = await asyncio.wait({given_up, kept}, timeout=0)
        assert not done
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await peer.listen(port)
        assert await kept == b"OK"
        assert await link.call("ECHO", "after") == b"OK"
        assert peer.commands == [[b"SET", b"kept", b"value"], [b"ECHO", b"after"]]


async def test_a_call_given_up_under_way_leaves_the_order_of_replies_whole(peer: FakeBroker) -> None:
    """The reply to a call that was cancelled after it was sent is dropped, and mistaken for no other's."""
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
    """A peer that keeps the connection open and answers nothing more is left for a new connection."""
    monkeypatch.setattr(link_module, "PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(link_module, "PONG_DEADLINE_S", 0.1)
    frozen = False

    def answer(words: Command, connection: int) -> bytes | None:
        return None if frozen and connection == 1 else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        told = reconnected(link)
        frozen = True
        calling = asyncio.create_task(link.call("SET", "key", "value"))
        await told.wait()
        assert await calling == b"OK"
        assert link.reconnects == 1


async def test_a_silent_handshake_is_given_up(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that accepts and never says a word is tried again, until one answers."""
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.1)
    peer.answer = lambda words, connection: None if connection == 1 else answer_normally(words, connection)
    async with connecting_link(peer.url) as link:
        await link.wait_ready(TIMEOUT_S)
        assert peer.connections == 2


async def test_silence_is_named_as_the_reason(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that accepts and never says a word is told from one that is not there."""
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.05)
    peer.answer = lambda _words, _connection: None
    async with connecting_link(peer.url) as link:
        with pytest.raises(BrokerUnavailable, match=r"cannot be reached within 0\.3 s: \S+"):
            await link.wait_ready(0.3)


async def test_a_cut_while_the_pong_is_awaited_is_noticed_at_once(
    peer: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is cut between PING and PONG is renewed without waiting for the pong's deadline."""
    monkeypatch.setattr(link_module, "PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(link_module, "PONG_DEADLINE_S", 10 * TIMEOUT_S)

    def answer(words: Command, connection: int) -> bytes | None:
        if (connection, words) == (1, [b"PING"]) and peer.count(b"PING", 1) == 2:  # the first ends the handshake
            raise CutError
        return answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        await reconnected(link).wait()


async def test_a_refused_ping_is_an_answer(peer: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses our PING is alive: the link stays, and goes on watching it."""
    monkeypatch.setattr(link_module, "PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(link_module, "PONG_DEADLINE_S", 0.1)
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
        told = reconnected(link)
        frozen = True
        await told.wait()


async def test_a_failing_reconnect_handler_harms_nobody_else(
    peer: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """What a handler raises when told of a reconnect is logged; the others are told, and the link lives on."""

    def fail() -> None:
        message = "broken on purpose"
        raise ValueError(message)

    async with connected_link(peer.url) as link, in_time():
        link.on_reconnect[fail] = None
        for times in (1, 2):
            told = reconnected(link)
            peer.send(b"+nobody asked\r\n")
            await told.wait()
            assert await link.call("SET", "key", "value") == b"OK"
            assert caplog.text.count("broken on purpose") == times


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+nobody asked\r\n"])
async def test_what_cannot_be_a_reply_ends_the_connection(peer: FakeBroker, nonsense: bytes) -> None:
    """Bytes that are no RESP, or a reply to no command, lead to a fresh connection, as nothing after fits any more."""
    async with connected_link(peer.url) as link, in_time():
        told = reconnected(link)
        peer.send(nonsense)
        await told.wait()
        assert await link.call("SET", "key", "value") == b"OK"
