"""A name server for tests. It answers for the front ends as Docker's does: with the addresses of all containers."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Final, cast

NAME: Final = b"frontend"
_A, _IN = 1, 1
_TTL_S = 600  # as Docker's: the proxies must not believe it
_NO_SUCH_NAME = 3


class NameServer(asyncio.DatagramProtocol):
    """Answers questions about the name ``frontend``. ``addresses`` may be changed at any time."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer a query with one question (RFC 1035, section 4)."""
        assert self._transport is not None
        end = data.index(b"\0", 12) + 5  # after the name: its type and class
        question = data[12:end]
        kind, _ = struct.unpack("!HH", question[-4:])
        known = question[1 : 1 + question[0]].lower() == NAME
        found = self.addresses if known and kind == _A else []
        flags = 0x8180 | (0 if known else _NO_SUCH_NAME)  # a recursive answer
        head = data[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0)
        answers = [
            struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL_S, 4) + bytes(map(int, address.split("."))) for address in found
        ]
        self._transport.sendto(head + question + b"".join(answers), addr)


@contextlib.asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """Run a name server on a free port of loopback."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
