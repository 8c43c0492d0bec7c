"""One socket to the broker: bytes in, replies and pushes out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import hiredis

from agentstream.errors import BusError

log = logging.getLogger(__name__)

Reply = Any
OnReply = Callable[[Reply], None]


class RespConnection(asyncio.Protocol):
    """Bytes in, replies and pushes out. ``lost`` is done when the connection is."""

    def __init__(self, on_reply: OnReply, on_push: Callable[[list[Any]], None]) -> None:
        """Hand replies to ``on_reply`` and pushes to ``on_push``; both may be changed later."""
        self._reader = hiredis.Reader()
        self.on_reply = on_reply
        self.on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._aborted = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Handle every whole reply in the bytes so far, in order."""
        self._reader.feed(data)
        gets, push_type = self._reader.gets, hiredis.PushNotification
        try:
            while not self._aborted and (reply := gets()) is not False:
                if reply.__class__ is push_type:
                    self.on_push(reply)
                else:
                    self.on_reply(reply)
        except hiredis.ProtocolError:
            log.exception("the broker sent something that is not RESP; reconnecting")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """Say so."""
        self._aborted = True
        if not self.lost.done():
            self.lost.set_result(None)

    def write(self, data: bytes) -> None:
        """Send bytes; a lost connection swallows them, as they are sent again after a reconnect."""
        if self._transport is not None and not self._aborted:
            self._transport.write(data)

    def abort(self) -> None:
        """Cut the connection and handle nothing more of it."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()


async def await_while_connected(connection: RespConnection, work: Awaitable[None]) -> None:
    """Await ``work``; raises BusError as soon as the connection is lost."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, connection.lost}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            message = "the connection was closed"
            raise BusError(message)
        await task
    finally:
        task.cancel()


def pack(command: tuple[bytes | str | int, ...]) -> bytes:
    """Return a command's bytes."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub says: a tuple of one
    return packed
