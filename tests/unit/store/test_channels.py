"""Subscriptions of the link to the broker, with the bundled real server and with a fake broker."""

import asyncio
from collections.abc import Sequence

import pytest

from agentstream.errors import BusError
from agentstream.protocol.keys import Keys
from agentstream.store.connection.command import Command as LinkCommand
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.server_link import ServerLink
from tests.fake_broker import (
    Command,
    FakeBroker,
    answer_normally,
    connected_link,
    in_time,
    message,
    push,
    reconnected,
)
from tests.helpers import TIMEOUT_S


async def test_subscribe_and_unsubscribe_reach_the_server(broker_url: str, keys: Keys) -> None:
    """After ``subscribe`` is done the server has one receiver, and after ``unsubscribe`` it has none."""
    channel, got = keys.events("run").encode(), asyncio.Queue[bytes]()
    async with connected_link(broker_url) as link, connected_link(broker_url) as other, in_time():
        await link.subscribe(channel, got.put_nowait)
        assert await other.call("PUBLISH", channel, "first") == 1
        assert await got.get() == b"first"
        link.unsubscribe(channel, got.put_nowait)
        await link.call("PING")
        assert await other.call("PUBLISH", channel, "second") == 0


async def test_a_refused_subscription_shifts_no_reply(peer: FakeBroker) -> None:
    """If the server refuses a subscription, its future raises the words, and each command gets its own reply."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"ECHO":
            return b"+%b\r\n" % words[1]
        return b"-NOPERM no channels\r\n" if words[0] == b"SUBSCRIBE" else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        refused = link.subscribe(b"channel", lambda _: None)
        replies = [link.start_call("ECHO", str(number)) for number in range(3)]
        with pytest.raises(BusError, match="NOPERM"):
            await refused
        assert await asyncio.gather(*replies) == [b"0", b"1", b"2"]
        assert link.reconnects == 0


async def test_a_reply_instead_of_a_confirmation_ends_the_connection(
    peer: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """If the server answers a subscription with a reply that belongs to no command, the link reconnects."""
    subscriptions = 0

    def answer(words: Command, connection: int) -> bytes | None:
        nonlocal subscriptions
        subscriptions += words[0] == b"SUBSCRIBE"
        return b"+OK\r\n" if words[0] == b"SUBSCRIBE" and subscriptions == 1 else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(peer.url) as link, in_time():
        await link.subscribe(b"channel", lambda _: None)
        assert link.reconnects == 1
    assert "a reply to no command" in caplog.text


class QuietRouter:
    """The router of a link to one primary of a cluster. It leaves every error to the caller of the command."""

    def on_error(self, _link: ServerLink, _command: LinkCommand, _text: str) -> bool:
        """Leave the error to the caller."""
        return False

    def on_lost(self, _link: ServerLink) -> None:
        """Do nothing."""

    def on_dropped(self, _link: ServerLink, _channels: Sequence[bytes]) -> None:
        """Do nothing."""

    def on_connected(self, _link: ServerLink) -> None:
        """Do nothing."""


@pytest.mark.parametrize("moved", [True, False])
async def test_the_end_of_a_sharded_subscription_shifts_no_reply(peer: FakeBroker, *, moved: bool) -> None:
    """Whether the server confirms the end of a subscription or has lost its slot, each command gets its own reply."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"ECHO":
            return b"+%b\r\n" % words[1]
        if words[0] == b"SUNSUBSCRIBE" and moved:
            return b"-MOVED 1 127.0.0.1:1\r\n"
        if words[0] in {b"SSUBSCRIBE", b"SUNSUBSCRIBE"}:
            return push(words[0].lower(), words[1], b":1\r\n")
        return answer_normally(words, connection)

    peer.answer = answer
    link = ServerLink(Endpoint(peer.url), name="test", probe_key=None, router=QuietRouter())
    link.open()
    async with in_time():
        await link.wait_ready(TIMEOUT_S)
        for number in range(3):
            handler = asyncio.Queue[bytes]().put_nowait
            await link.subscribe(b"{p1}", handler)
            link.unsubscribe(b"{p1}", handler)
            assert await link.call("ECHO", str(number)) == str(number).encode()
        await link.close()


async def test_a_subscription_that_waited_for_the_connection_may_be_refused(peer: FakeBroker) -> None:
    """If a new connection may not subscribe to one channel of a cluster, only its future raises the words."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"SSUBSCRIBE" and words[1] == b"{p1}":
            return b"-NOPERM no channels\r\n"
        if words[0] == b"SSUBSCRIBE":
            return push(b"ssubscribe", words[1], b":1\r\n")
        return answer_normally(words, connection)

    peer.answer = answer
    link = ServerLink(Endpoint(peer.url), name="test", probe_key=None, router=QuietRouter())
    refused, confirmed = (link.subscribe(name, lambda _: None) for name in (b"{p1}", b"{p2}"))
    link.open()
    async with in_time():
        with pytest.raises(BusError, match="NOPERM"):
            await refused
        await confirmed
        await link.close()


async def test_subscribe_waits_for_the_confirmation(peer: FakeBroker) -> None:
    """``subscribe`` is not done until the server has confirmed."""

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


async def test_a_failing_message_handler_does_not_affect_others(
    broker_url: str, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a message handler is logged, and other handlers and later messages are not affected."""
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


async def test_a_channel_stays_subscribed_until_its_last_handler_leaves(broker_url: str, keys: Keys) -> None:
    """When one of two handlers unsubscribes, the other still gets the messages of the channel."""
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


async def test_any_of_three_handlers_may_unsubscribe(broker_url: str, keys: Keys) -> None:
    """When any one of three handlers unsubscribes, the other two get every message once."""
    for leaves in range(3):
        channel = keys.events(f"run-{leaves}").encode()
        got: list[list[bytes]] = [[], [], []]
        handlers = [messages.append for messages in got]
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


async def test_unsubscribe_is_sent_after_subscribe_of_the_same_turn(peer: FakeBroker) -> None:
    """If a handler subscribes and unsubscribes in one turn of the loop, the commands are sent in this order."""
    async with connected_link(peer.url) as link, in_time():
        handler = asyncio.Queue[bytes]().put_nowait
        await link.call("ECHO", "no command is in flight")
        first = link.subscribe(b"channel", handler)
        link.unsubscribe(b"channel", handler)
        await link.call("ECHO", "all commands were sent")
        await first
        sent = [words[0] for _, words in peer.received if b"channel" in words]
        assert sent == [b"SUBSCRIBE", b"UNSUBSCRIBE"]


async def test_each_subscription_has_its_own_confirmation(peer: FakeBroker) -> None:
    """A second subscription to a channel is done when its own confirmation arrives, not that of the first."""

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


async def test_unsubscribing_during_a_reconnect_is_harmless(peer: FakeBroker) -> None:
    """A handler may unsubscribe while the reconnect waits for the confirmation of its channel."""

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
        reconnect = reconnected(link)
        peer.send(push(b"subscribe", b"stays", b":1\r\n") + push(b"subscribe", b"goes", b":2\r\n"))
        await reconnect.wait()
        peer.send(message(b"stays", b"x") + message(b"goes", b"y"))
        assert await stays.get() == b"x"
        assert await link.call("SET", "key", "value") == b"OK"
        assert goes.empty()


async def test_without_resp3_there_are_two_connections(broker_url: str, keys: Keys) -> None:
    """With protocol=2 in the URL, messages arrive on a second connection, and commands work on the first."""
    channel, got = keys.events("run").encode(), asyncio.Queue[bytes]()
    async with connected_link(f"{broker_url}?protocol=2") as link, in_time():
        await link.subscribe(channel, got.put_nowait)
        assert await link.call("PUBLISH", channel, "x") == 1
        assert await got.get() == b"x"
        assert b"resp=2" in await link.call("CLIENT", "INFO")
