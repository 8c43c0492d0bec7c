"""Notices that a server has stopped answering."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from agentstream.errors import BusError
from agentstream.store.connection.link import late_s
from agentstream.store.connection.wire import RespConnection, await_while_connected

log = logging.getLogger(__name__)

PING_INTERVAL_S: Final = 2.0  # half of the front end's keepalive interval
PONG_DEADLINE_S: Final = 3.0  # a healthy broker answers within 1 ms, and its own pauses (fork, AOF) are below 1 s


async def until_silent(connection: RespConnection, ping: Callable[[], Awaitable[None]]) -> None:
    """Call ``ping`` every PING_INTERVAL_S; return when it has not returned within PONG_DEADLINE_S."""
    while True:
        await asyncio.sleep(PING_INTERVAL_S)
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(PONG_DEADLINE_S):
                await await_while_connected(connection, ping())
        except TimeoutError:
            if late_s(sent_s, PONG_DEADLINE_S):
                continue  # something blocked the event loop, so the pong may have arrived
            log.warning("the broker has not answered a PING within %g s", PONG_DEADLINE_S)
            return
        except BusError as exc:  # the connection is lost, so the loop ends; or the server answers with an error
            log.warning("the PING failed: %s", exc)
