"""The base class of admin queries: it owns a short-lived link, and waits only for a bounded time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final, Self

from agentstream.errors import BrokerUnavailable, BusError
from agentstream.protocol.keys import Keys
from agentstream.store.connection.endpoint import COMMAND_TIMEOUT_S, Endpoint
from agentstream.store.connection.new_link import new_link

NO_PERMISSION: Final = "NOPERM"


class AdminClient:
    """A link for admin queries: each command goes to the server of its key. Use it as an asynchronous context manager.

    Every method raises BrokerUnavailable if Redis is unreachable, and BusError if Redis refuses, for example because
    the user lacks a permission. Entering raises StartupError if REDIS_URL names another kind of broker.
    """

    def __init__(self, endpoint: Endpoint, keys: Keys) -> None:
        """Prepare a client. ``keys`` must be those of the front ends and workers."""
        self._link = new_link(endpoint, keys, name="agentstream-admin")
        self._keys = keys
        self._several = endpoint.kind != "standalone"

    async def __aenter__(self) -> Self:
        """Connect, and return the client."""
        self._link.open()
        try:
            await self._link.wait_ready(COMMAND_TIMEOUT_S, patient=False)
        except BaseException:
            await self._link.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._link.close()

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Give the commands inside COMMAND_TIMEOUT_S, and explain the broker's errors."""
        since_s = time.monotonic()
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                yield
        except TimeoutError as exc:
            message = self._link.unanswered(COMMAND_TIMEOUT_S, since_s)
            if self._several:
                message += "; `agentstream doctor` shows which server is down"
            raise BrokerUnavailable(message) from exc
        except BusError as exc:
            lacks = str(exc).startswith(NO_PERMISSION)
            message = f"{'this Redis user lacks a permission' if lacks else 'Redis refuses the command'}: {exc}"
            raise BusError(message) from exc
