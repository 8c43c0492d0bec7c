"""One socket to the broker: it turns received bytes into replies and pushes."""

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
    """Turns received bytes into replies and pushes. The future ``lost`` is done when the connection is lost."""

    def __init__(self, on_reply: OnReply, on_push: Callable[[list[Any]], None]) -> None:
        """Pass replies to ``on_reply`` and pushes to ``on_push``. Both attributes may be changed later."""
        self._reader = hiredis.Reader()
        self.on_reply = on_reply
        self.on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._aborted = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Handle all complete replies and pushes in the bytes so far, in order."""
        self._reader.feed(data)
        gets, push_type = self._reader.gets, hiredis.PushNotification
        try:
            while not self._aborted and (reply := gets()) is not False:
                if reply.__class__ is push_type:
                    self.on_push(reply)
                else:
                    self.on_reply(reply)
        except hiredis.ProtocolError:
            log.exception("the broker sent bytes that are not RESP; reconnecting")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """Complete ``lost``."""
        self._aborted = True
        if not self.lost.done():
            self.lost.set_result(None)

    def write(self, data: bytes) -> None:
        """Send bytes. A lost connection drops them; the link sends commands again after it has reconnected."""
        if self._transport is not None and not self._aborted:
            self._transport.write(data)

    def abort(self) -> None:
        """Abort the connection, and handle no more of its bytes."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()


async def await_while_connected(connection: RespConnection, work: Awaitable[None]) -> None:
    """Await ``work``; raises BusError as soon as the connection is lost."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, connection.lost}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            message = "the connection to the broker was lost"
            raise BusError(message)
        await task
    finally:
        task.cancel()


def pack(command: tuple[bytes | str | int, ...]) -> bytes:
    """Return the bytes of a command."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # the stub declares a tuple of one item
    return packed
