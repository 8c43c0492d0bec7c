"""The handshake of a connection: optional steps, the fallback to RESP2, and errors that name the necessary change."""

import asyncio

import pytest

from agentstream.errors import BrokerUnavailable
from tests.fake_broker import (
    Command,
    CutError,
    FakeBroker,
    answer_normally,
    connected_link,
    connecting_link,
    failed,
    in_time,
    message,
)


@pytest.mark.parametrize("refusal", ["ERR unknown command 'HELLO', with args beginning with: '3' ", "NOPROTO sorry"])
async def test_a_server_that_refuses_hello_gets_resp2(
    peer: FakeBroker, caplog: pytest.LogCaptureFixture, refusal: str
) -> None:
    """If the server refuses HELLO, the link uses RESP2 with two connections, and names the option that asks for it."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == b"HELLO":
            return f"-{refusal}\r\n".encode()
        if words[0] == b"SUBSCRIBE":  # without RESP3 these are arrays
            return (answer_normally(words, connection) or b"").replace(b">", b"*")
        return answer_normally(words, connection)

    peer.answer = answer
    got = asyncio.Queue[bytes]()
    async with connected_link(peer.url) as link, in_time():
        assert not link.keeps_order()
        await link.subscribe(b"channel", got.put_nowait)
        peer.send(message(b"channel", b"x").replace(b">", b"*"))
        assert await got.get() == b"x"
        assert await link.call("SET", "key", "value") == b"OK"
        assert peer.connections == 3
    assert "?protocol=2" in caplog.text


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("command", [b"CLIENT", b"PING"])
async def test_optional_commands_may_be_refused(peer: FakeBroker, protocol: int, command: bytes) -> None:
    """The link connects to a server that refuses the name of the client, or a PING."""

    def answer(words: Command, connection: int) -> bytes | None:
        return b"-ERR unknown command\r\n" if words[0] == command else answer_normally(words, connection)

    peer.answer = answer
    async with connected_link(f"{peer.url}?protocol={protocol}") as link, in_time():
        assert await link.call("SET", "key", "value") == b"OK"


@pytest.mark.parametrize(
    ("refused", "hint"),
    [
        (b"AUTH", "check the user and the password in REDIS_URL"),
        (b"SELECT", "database 0"),
        (b"SCRIPT", "allow this Redis user SCRIPT LOAD and EVALSHA"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_required_command_that_is_refused_names_the_change(
    peer: FakeBroker, caplog: pytest.LogCaptureFixture, refused: bytes, hint: str, protocol: int
) -> None:
    """If a required command is refused, the error has the server's words and the change, and never the password."""

    def answer(words: Command, connection: int) -> bytes | None:
        if words[0] == refused:
            arguments = " ".join(f"'{word.decode()}'" for word in words[1:]).replace("\n", " ")[:128]  # as Redis quotes
            return f"-ERR unknown command, with args beginning with: {arguments}\r\n".encode()
        return answer_normally(words, connection)

    peer.answer = answer
    url = peer.url.replace("//", "//:s3cret@")
    async with connecting_link(f"{url}/3?protocol={protocol}") as link:
        await failed(link)
        with pytest.raises(
            BrokerUnavailable, match=f"refused {refused.decode()}: ERR unknown command.*{hint}"
        ) as error:
            await link.wait_ready(0)
    assert "s3cret" not in str(error.value) + caplog.text


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_words_before_a_closed_connection_are_the_cause(protocol: int) -> None:
    """If a server says why it closes a connection, such as too many clients, the error has its words."""

    class _Full(FakeBroker):
        async def _serve(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"-ERR max number of clients reached\r\n")
            writer.close()

    full = _Full()
    await full.listen()
    try:
        async with connecting_link(f"{full.url}?protocol={protocol}") as link:
            await failed(link)
            with pytest.raises(BrokerUnavailable, match="max number of clients reached"):
                await link.wait_ready(0)
            assert link.refusal == "ERR max number of clients reached"
    finally:
        await full.close()


async def test_a_connection_closed_without_a_word_names_what_may_help(peer: FakeBroker) -> None:
    """If a server closes the connection at HELLO, the error names the option without it, and TLS."""

    def answer(_words: Command, _connection: int) -> bytes | None:
        raise CutError

    peer.answer = answer
    async with connecting_link(peer.url) as link:
        await failed(link)
        with pytest.raises(BrokerUnavailable, match=r"add \?protocol=2 to REDIS_URL.*rediss://"):
            await link.wait_ready(0)
